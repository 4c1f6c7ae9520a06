"""What each cheap form in GeST saves on this machine, against the plain form of the same computation.

    python benchmarks/speed_gest.py --out speed_gest.json            # minutes on one core
    python benchmarks/speed_gest.py --out speed_gest.json --quick    # small sizes, to see that it runs

One process, so that ratios mean something: forms take turns, medians are told, and a pair must give the same numbers
before it is timed.

1. windows: share of a training step that finding them takes, and the same windows by distances to all cells.
2. a training step: bands of tokens in attention and a last block that answers for queries alone, against one mask
   over all tokens in all blocks (the loss and its gradient are one).
3. vocabulary: matrices folded with it once a step, against going through T genes for every token, in and out.
4. a niche: N cells and one query, against the 2N + 1 tokens that training runs.
5. unseen places: cells encoded once and all places of a window read together, against a pass for every place.
6. seconds to embed the niches of all cells, and the cost of a cell in a small and a large section.
7. memory of what is kept of millions of cells.

B windows, N cells of a window, Q places asked in a window, T genes, K meta cells.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch
from _report import kept, write_document
from _run import command_of
from torch import Tensor

from stgen.data._cells import CellTable
from stgen.data._grid import default_window_um
from stgen.data._loaders import Batches
from stgen.models.gest._asking import Asking
from stgen.models.gest._generation import Windows
from stgen.models.gest._network import CORNERS, GeSTNetwork
from stgen.nn._grouped import (
    GroupedDecoder,
    context_sees_context,
    masked_attention,
    query_sees_context,
    query_sees_query,
)
from stgen.nn._network import Batch

if TYPE_CHECKING:
    from anndata import AnnData

    from stgen.models import GeST

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    repeats: int = 15
    n_fit: int = 1000
    """Cells that the model is fitted to; speed does not depend on what it knows."""
    n_small: int = 10_000
    n_large: int = 100_000
    n_timed: int = 2000
    """Rows whose cost is compared between the small and the large section."""
    n_memory: int = 4_000_000
    n_genes: int = 1000
    n_meta_cells: int = 512
    n_windows: int = 8
    n_cells: int = 200
    n_places: int = 20
    n_hidden: int = 200
    """Cells of a hole that is filled."""
    batch_sizes: tuple[int, ...] = (4, 16)


QUICK = Sizes(
    repeats=3, n_fit=300, n_small=600, n_large=2400, n_timed=200, n_memory=100_000, n_windows=2, n_hidden=20
)


# -- measuring ------------------------------------------------------------------------------------------------------


def race(forms: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each form, which take turns: a busy moment of the machine meets all. The first round warms up."""
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for repeat in range(repeats + 1):
        for form, run in forms.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[form].append(time.perf_counter() - start)
    return seconds


def compared(what: str, forms: Mapping[str, Callable[[], Any]], repeats: int, **facts: Any) -> list[Row]:
    """A row for each form; ``times`` is what a form costs over the first, pair by pair."""
    seconds = race(forms, repeats)
    first = next(iter(seconds.values()))
    return [
        {"what": what, "form": form, "seconds": statistics.median(runs)}
        | {"times": statistics.median(b / a for a, b in zip(first, runs, strict=True))}
        | facts
        for form, runs in seconds.items()
    ]


def check_same(what: str, fast: Any, plain: Any, *, allowed: float = 1e-4) -> float:
    """The largest difference over the largest number; an error if the forms are not one computation."""
    fast, plain = torch.as_tensor(fast).double(), torch.as_tensor(plain).double()
    if fast.shape != plain.shape:
        raise RuntimeError(f"{what}: forms give {tuple(fast.shape)} and {tuple(plain.shape)}.")
    apart = float((fast - plain).abs().max() / plain.abs().max().clamp(min=1e-12)) if plain.numel() else 0.0
    if not apart <= allowed:
        raise RuntimeError(f"{what}: forms differ by {apart:.2g} of the largest value, allowed {allowed:g}.")
    return apart


def tissue(n: int, *, n_genes: int = 100) -> AnnData:
    from stgen.datasets import toy_tissue

    return toy_tissue(n_sections=1, n_patients=1, spots_per_section=n, n_genes=n_genes, unit="cells")


def fitted(n: int, like: AnnData) -> GeST:
    """A small model, with as many meta cells and the window that one of all cells of ``like`` would have."""
    from stgen.models import GeST

    n_meta_cells = max(16, min(512, like.n_obs // 50))
    window_um = default_window_um(like.obsm["spatial"], np.zeros(like.n_obs, dtype=np.int64))

    adata = tissue(n)
    GeST.setup_anndata(adata)
    model = GeST(adata, preset="small", n_meta_cells=min(n_meta_cells, n // 4), window_um=window_um)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=1, batch_size=64)
    model.module.eval()
    return model


def network(sizes: Sizes) -> GeSTNetwork:
    """A network of the small preset with T genes and K meta cells that were never measured."""
    from stgen.models import GeST

    config = dataclasses.replace(GeST._presets["small"], window_um=300.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = GeSTNetwork(
            config, n_genes=sizes.n_genes, n_meta_cells=sizes.n_meta_cells, n_components=config.n_components
        )
        net.words.profiles.copy_(torch.rand_like(net.words.profiles))
        net.words.mean.copy_(net.words.profiles.mean(0))
        for labels, n in zip(net.words.coarse, net.words.level_sizes, strict=True):
            labels.copy_(torch.randint(n, labels.shape))
    return net.eval()


def made_batch(net: GeSTNetwork, n_windows: int, n_cells: int) -> Batch:
    """Full windows of cells anywhere."""
    generator = torch.Generator().manual_seed(0)
    cell = torch.randint(len(net.words.profiles), (n_windows, n_cells), generator=generator)
    place = torch.rand(n_windows, n_cells, 2, generator=generator) - 0.5
    size = torch.full((n_windows,), n_cells)
    return {"cell": cell, "label": cell, "offset": place * net.window_um, "size": size}


# -- 1. windows ------------------------------------------------------------------------------------------------------


def brute_force(xy: np.ndarray, rows: np.ndarray, window_um: float, max_cells: int) -> list[list[int]]:
    """Cells of each window by distances to all cells, nearest first; places are whole nanometres."""
    place = np.rint(xy * 1000).astype(np.int64)
    found = []
    for row in rows:
        d = place - place[row]
        inside = np.flatnonzero((np.abs(d) <= np.floor(window_um * 500 + 1e-6)).all(axis=1))
        order = np.lexsort((inside, d[inside, 1], d[inside, 0], (d[inside] ** 2).sum(axis=1)))
        found.append(inside[order][:max_cells].tolist())
    return found


def windows(model: GeST, adata: AnnData, sizes: Sizes) -> list[Row]:
    """Seconds of a training step and of finding its windows, batch by batch as training does."""
    net = model.module
    table = model._table(adata, targets=True)
    xy = np.asarray(adata.obsm["spatial"], dtype=np.float64)
    # nanometres from the middle of the section, as the grid keeps them
    xy = xy - table.grid._centre_um[0]

    def search(rows: Tensor) -> list[list[int]]:
        return brute_force(xy, rows.numpy(), float(net.window_um), table.max_cells)

    rows: list[Row] = []
    for size in sizes.batch_sizes:
        batches = iter(Batches(table, np.arange(len(table)), size, seed=lambda: 0))
        first = next(batches)
        listed = [member[member >= 0].tolist() for member in first["member"]]
        if listed != search(first["index"]):
            raise RuntimeError("Windows of the grid are not those that distances to all cells give.")
        optimiser = torch.optim.AdamW(net.parameters(), lr=0.0)
        net.train()
        train_step(net, first, optimiser)
        found: list[float] = []
        stepped: list[float] = []
        for _ in range(2 * sizes.repeats):
            start = time.perf_counter()
            batch = next(batches)
            middle = time.perf_counter()
            train_step(net, batch, optimiser)
            found.append(middle - start)
            stepped.append(time.perf_counter() - middle)
        net.eval()
        facts = {"batch_size": size, "n_cells": float(first["size"].float().mean()), "n": len(table)}
        seconds = statistics.median(found)
        rows.append(
            {"what": "windows", "form": "training step", "seconds": statistics.median(stepped)} | facts
        )
        rows.append(
            {"what": "windows", "form": "search in a step", "seconds": seconds}
            | {"share": statistics.median(a / (a + b) for a, b in zip(found, stepped, strict=True))}
            | facts
        )
        index = first["index"]
        forms = {"grid": lambda i=index: table.batch(i), "all cells": lambda i=index: search(i)}
        rows += compared("window search", forms, sizes.repeats, **facts)
    return rows


def train_step(net: GeSTNetwork, batch: Batch, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad()
    net.loss(batch).total.backward()
    optimiser.step()


# -- 2. attention ----------------------------------------------------------------------------------------------------


def in_full(
    self: GroupedDecoder,
    context: Tensor,
    context_group: Tensor,
    query: Tensor,
    query_group: Tensor,
    condition: Tensor,
) -> Tensor:
    """Every token in every block, each stream behind one mask."""
    n = context.shape[1]
    context_mask = context_sees_context(context_group)
    query_mask = torch.cat(
        [query_sees_context(query_group, context_group), query_sees_query(query_group)], dim=-1
    )

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen = masked_attention(q[:, :, :n], k[:, :, :n], v[:, :, :n], context_mask)
        return torch.cat([seen, masked_attention(q[:, :, n:], k, v, query_mask)], dim=2)

    x = torch.cat([context, query], dim=1)
    for block in self.blocks:
        x = block(x, attend, condition)
    return x[:, n:]


@contextmanager
def decoded(form: Callable[..., Tensor]) -> Iterator[None]:
    """Tiny groups in order take another form of the decoder."""
    banded = GroupedDecoder._banded
    GroupedDecoder._banded = form  # type: ignore[method-assign]
    try:
        yield
    finally:
        GroupedDecoder._banded = banded  # type: ignore[method-assign]


def attention(net: GeSTNetwork, sizes: Sizes) -> list[Row]:
    rows = []
    for n_cells in (sizes.n_cells, 2 * sizes.n_cells):
        batch = made_batch(net, 4, n_cells)

        def gradient(batch: Batch = batch) -> tuple[float, Tensor]:
            net.zero_grad()
            loss = net.loss(batch, generator=torch.Generator().manual_seed(0)).total
            loss.backward()
            return loss.item(), torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

        (loss, fast), apart = gradient(), {}
        with decoded(in_full):
            plain_loss, plain = gradient()
        apart["loss"] = check_same("loss by bands", loss, plain_loss)
        apart["gradient"] = check_same("gradient by bands", fast, plain, allowed=1e-3)
        optimiser = torch.optim.AdamW(net.parameters(), lr=0.0)

        def step(
            form: Callable[..., Tensor], batch: Batch = batch, optimiser: torch.optim.Optimizer = optimiser
        ) -> None:
            with decoded(form):
                train_step(net, batch, optimiser)

        net.train()
        forms = {
            "bands": partial(step, GroupedDecoder._banded),
            "one mask": partial(step, GroupedDecoder._masked),
            "one mask, all blocks": partial(step, in_full),
        }
        rows += compared("training step", forms, sizes.repeats, n_cells=n_cells, batch_size=4, apart=apart)
        net.eval()
    return rows


# -- 3. vocabulary ---------------------------------------------------------------------------------------------------


def vocabulary(net: GeSTNetwork, sizes: Sizes) -> list[Row]:
    """Both ends of the network, forward and backward, with as many tokens as a small batch has."""
    n_tokens = 4 * sizes.n_cells
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(n_tokens, net.config.width, generator=generator)
    cell = torch.randint(sizes.n_meta_cells, (n_tokens,), generator=generator)
    words = net.words

    def through_genes() -> Tensor:
        return (net.answer(h) - words.mean) @ (words.profiles - words.mean).T

    def logits() -> Tensor:
        return net.logits(h)

    def looked_up() -> Tensor:
        return net.table()[cell]

    def looked_at() -> Tensor:
        return net.look(words.profiles[cell])

    rows = []
    facts = {"n_tokens": n_tokens, "n_genes": sizes.n_genes, "n_meta_cells": sizes.n_meta_cells}
    pairs = {"logits": (logits, through_genes), "tokens": (looked_up, looked_at)}
    for what, (fast, plain) in pairs.items():
        apart = check_same(what, fast().detach(), plain().detach(), allowed=1e-3)
        forms = {
            "folded": lambda fast=fast: fast().square().sum().backward(),
            "T genes for every token": lambda plain=plain: plain().square().sum().backward(),
        }
        rows += compared(what, forms, sizes.repeats, apart=apart, **facts)
        net.zero_grad()
    return rows


# -- 4. niches -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def niches(net: GeSTNetwork, sizes: Sizes) -> list[Row]:
    batch = made_batch(net, sizes.n_windows, sizes.n_cells)
    place, size, (b, n) = net.places(batch["offset"]), batch["size"], batch["cell"].shape
    tokens, query = net.table()[batch["cell"]], torch.zeros(b, 1, 2)

    def one_query() -> Tensor:
        return net.ask(tokens, place, size, query)[:, 0]

    def all_queries(by_window: bool) -> Tensor:
        """The sequence of training, which also asks for every cell of the window; only the last answer is read."""
        order = net.order(place, size, corner=CORNERS[:1].expand(b, 2))[..., None].expand(-1, -1, 2)
        ordered = place.gather(1, order)
        cells = tokens.gather(1, order[..., :1].expand(-1, -1, tokens.shape[-1]))
        places, step = torch.cat([ordered, query], dim=1), torch.arange(n + 1)
        if by_window:
            step = step.expand(b, -1)
        asked = net.start + net.where(places)
        context = cells + net.where(ordered)
        return net.decoder(context, step[..., :n], asked, step, torch.cat([ordered, places], dim=1))[:, -1]

    apart = max(check_same("niche", one_query(), all_queries(by_window)) for by_window in (True, False))
    forms = {
        "N + 1 tokens": one_query,
        "2N + 1 tokens, one mask": lambda: all_queries(True),
        "2N + 1 tokens, bands": lambda: all_queries(False),
    }
    return compared("niche", forms, sizes.repeats, n_windows=b, n_cells=n, apart=apart)


# -- 5. unseen places ------------------------------------------------------------------------------------------------


def places(model: GeST, adata: AnnData, net: GeSTNetwork, sizes: Sizes) -> list[Row]:
    """Places of a window together and one by one: in the network alone, and in a hole that the model fills."""
    with torch.no_grad():
        batch = made_batch(net, sizes.n_windows, sizes.n_cells)
        place, size = net.places(batch["offset"]), batch["size"]
        tokens = net.table()[batch["cell"]]
        query = torch.rand(len(size), sizes.n_places, 2, generator=torch.Generator().manual_seed(1)) - 0.5

        def together() -> Tensor:
            return net.ask(tokens, place, size, query)

        def one_by_one() -> Tensor:
            return torch.cat([net.ask(tokens, place, size, one) for one in query.split(1, dim=1)], dim=1)

        apart = check_same("places", together(), one_by_one())
        forms = {"read together": together, "a pass for each": one_by_one}
        facts = {"n_windows": len(size), "n_cells": sizes.n_cells, "n_places": sizes.n_places}
        rows = compared("places of a window", forms, sizes.repeats, apart=apart, **facts)

    xy = np.asarray(adata.obsm["spatial"])
    hole = np.zeros(adata.n_obs, dtype=bool)
    hole[np.square(xy - np.median(xy, axis=0)).sum(axis=1).argsort()[: sizes.n_hidden]] = True
    ask = model._asking()._ask

    def alone(asked: Windows) -> np.ndarray:
        """One pass for each place, in windows of the same cells."""
        n = asked.query.shape[1]
        answers = np.zeros((*asked.is_asked.shape, len(model.module.words.profiles)), dtype=np.float32)
        for i in range(n):
            column = asked.is_asked[:, i]
            if column.any():
                label, size, offset = asked.label[column], asked.size[column], asked.offset[column]
                query = asked.query[column, i : i + 1]
                answers[column, i] = ask(Windows(label, size, offset, query, column[column, None]))
        return answers[asked.is_asked]

    def fill(how: Callable[[Windows], np.ndarray]) -> np.ndarray:
        with patch.object(Asking, "_ask", lambda _, windows: how(windows)):
            return np.asarray(model.generate(adata, mask=hole, interpolate=False).X)

    apart = check_same("filled hole", fill(ask), fill(alone))
    fills = {"read together": lambda: fill(ask), "a pass for each": lambda: fill(alone)}
    repeats = max(1, sizes.repeats // 5)
    return rows + compared(
        "filled hole", fills, repeats, n=adata.n_obs, n_places=int(hole.sum()), apart=apart
    )


# -- 6. all cells ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def embedding(model: GeST, small: AnnData, large: AnnData, sizes: Sizes) -> list[Row]:
    """All niches of the small section; then what one pass costs for as many rows of either section, table included."""
    start, used = time.perf_counter(), time.process_time()
    model.embed_niches(small)
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - used}
    facts = {"n": small.n_obs, "window_um": float(model.module.window_um)}
    rows: list[Row] = [{"what": "embed niches", "form": "all cells"} | spent | facts]
    tables, made = {}, {}
    for name, adata in (("small section", small), ("large section", large)):
        start = time.perf_counter()
        tables[name] = model._table(adata, targets=False)
        made[name] = (time.perf_counter() - start) / adata.n_obs
    rng = np.random.default_rng(0)
    chosen = {
        name: rng.choice(len(table), min(sizes.n_timed, len(table)), replace=False)
        for name, table in tables.items()
    }

    def some(name: str) -> None:
        for _ in model._asking().own_places(tables[name], chosen[name]):
            pass

    check_some_rows(model, tables["small section"], chosen["small section"][:50])
    forms = {name: lambda name=name: some(name) for name in tables}
    for row in compared("cost of a cell", forms, max(2, sizes.repeats // 2)):
        name = row["form"]
        row["seconds"] = row["seconds"] / len(chosen[name]) + made[name]
        # windows at the border of a section hold fewer cells, and a small section has more border
        n_cells = float(tables[name].sizes(torch.from_numpy(chosen[name])).float().mean())
        rows.append(row | {"n": len(tables[name]), "n_cells": n_cells, "seconds_of_table": made[name]})
    rows[-1]["times"] = rows[-1]["seconds"] / rows[-2]["seconds"]
    return rows


def check_some_rows(model: GeST, table: CellTable, rows: np.ndarray) -> None:
    """Windows of a size together say what each window says alone."""
    module = model.module
    together: dict[int, Tensor] = {}
    for some_rows, h in model._asking().own_places(table, rows):
        together.update(zip(some_rows.tolist(), h[0], strict=True))
    for row, state in together.items():
        one = table.batch(torch.tensor([row]))
        alone = module.ask(
            module.table()[one["cell"]], module.places(one["offset"]), one["size"], torch.zeros(1, 1, 2)
        )
        check_same("windows together", state, alone[0, 0])


# -- 7. memory -------------------------------------------------------------------------------------------------------


def memory(sizes: Sizes) -> list[Row]:
    """Cells anywhere in one section, at a density of 2000 a mm²."""
    rng = np.random.default_rng(0)
    n, side = sizes.n_memory, 1000 * (sizes.n_memory / 2000) ** 0.5
    xy = rng.uniform(0, side, (n, 2))
    start = time.perf_counter()
    table = CellTable.make(rng.integers(0, 512, n), rng.integers(0, 2**62, n), xy, window_um=316.0)
    seconds = time.perf_counter() - start
    rows = rng.choice(n, 3, replace=False)
    found = [member[member >= 0].tolist() for member in table.batch(torch.from_numpy(rows))["member"]]
    if found != brute_force(xy - table.grid._centre_um[0], rows, 316.0, table.max_cells):
        raise RuntimeError("Windows of the grid are not those that distances to all cells give.")
    keys = table.key_n.nbytes
    facts = {"n": n, "seconds": seconds}
    return [
        {"what": "memory", "form": "cells and grid", "mb": (table.nbytes - keys) / 1e6} | facts,
        {"what": "memory", "form": "with keys of names", "mb": table.nbytes / 1e6} | facts,
    ]


# -- report ----------------------------------------------------------------------------------------------------------


def print_table(rows: list[Row]) -> None:
    shown = ("batch_size", "n_cells", "n_places", "n_tokens", "n")
    print(f"\n{'what':20} {'form':26} {'ms':>11} {'times':>7}")
    for row in rows:
        milliseconds = f"{1e3 * row['seconds']:11.3f}"
        times = f"{row['times']:7.2f}" if "times" in row else " " * 7
        more = [f"share {100 * row['share']:.1f} %"] if "share" in row else []
        more += [f"cpu {row['cpu_seconds']:.1f} s"] if "cpu_seconds" in row else []
        more += [f"{row['mb']:.1f} MB"] if "mb" in row else []
        more += [f"{name} {row[name]:.6g}" for name in shown if name in row]
        print(f"{row['what']:20} {row['form']:26} {milliseconds} {times}  {', '.join(more)}")


def meta(args: argparse.Namespace, sizes: Sizes, model: GeST) -> dict[str, Any]:
    import stgen

    return {
        "stgen": stgen.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "command": f"python benchmarks/speed_gest.py{' --quick' * args.quick} --threads {torch.get_num_threads()}",
        "sizes": dataclasses.asdict(sizes),
        "config": dataclasses.asdict(model.config),
        "meaning": {
            "seconds": "median of a form that took turns with the others; of a cell where `what` is its cost",
            "times": "median over rounds of this form's seconds over those of the first form of the same `what`",
            "cpu_seconds": "seconds of all threads, which others on the machine hardly change",
            "share": "median over batches of the search's share of search and training step",
            "apart": "largest difference of a form from the plain one, over the largest value",
            "mb": "10^6 bytes that the table holds",
        },
    }


def main(given: list[str] | None = None, sizes: Sizes | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats")
    parser.add_argument("--threads", type=int, help="threads of torch; by default what torch takes")
    args = parser.parse_args(sys.argv[1:] if given is None else given)
    if args.threads:
        torch.set_num_threads(args.threads)
    sizes = sizes or (QUICK if args.quick else Sizes())

    small, large = tissue(sizes.n_small), tissue(sizes.n_large)
    model = fitted(sizes.n_fit, like=small)
    net = network(sizes)
    rows: list[Row] = []
    parts: tuple[Callable[[], list[Row]], ...] = (
        lambda: windows(model, small, sizes),
        lambda: attention(net, sizes),
        lambda: vocabulary(net, sizes),
        lambda: niches(net, sizes),
        lambda: places(model, small, net, sizes),
        lambda: embedding(model, small, large, sizes),
        lambda: memory(sizes),
    )
    command = command_of("speed_gest", sys.argv[1:] if given is None else given)
    with kept(args.out, command, lambda: {"rows": rows}) as keep:
        for part in parts:
            rows += part()
            keep()
            print(f"{rows[-1]['what']}: measured", flush=True)
    print_table(rows)
    if args.out:
        write_document(args.out, {"meta": meta(args, sizes, model), "rows": rows})


if __name__ == "__main__":
    main()
