"""Does CausalGeD's network learn anything from the reference alone? It is pretrained on pseudo-spots, whose genes are all known.

    python benchmarks/pretraining.py --data DIR --out pretraining.json
    python benchmarks/pretraining.py --out pretraining.json --datasets toy --quick

Pseudo-spots are Poisson draws of mixtures of alike cells, with a factor for each gene as between technologies; those that
are alike lie together. Measured genes are the context, other genes of the reference the targets, views are weighed anew
in each pseudo-dataset. Then the network is used as it is, or adapted to the measured genes of the real spots.

Folds of genes, preparation and scores are those of `imputation.py`. Every arm is told twice: with the share of the
generated residual that validation genes allow, and with all of it. Differences are paired over hidden genes, 95 %
intervals by bootstrap over genes.

p pseudo-spots, G genes of the reference, m measured ones, L length of a latent.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from _report import environment, heading, kept, plain, show, write_document
from _run import command_of, folders_of, forget, limit_threads, names_of
from imputation import (
    PSEUDO,
    TOY,
    Task,
    make_task,
    paired_by_gene,
    read_pair,
    score_genes,
    verdict,
)
from sklearn.neighbors import NearestNeighbors

from stgen.models import CausalGeD
from stgen.models.causalged._fitting import share_of_network
from stgen.models.causalged._sets import Axes, identities, known
from stgen.models.causalged._tables import ReferenceTable
from stgen.models.causalged._views import Hints, Predictor, Spots, gene_folds

if TYPE_CHECKING:
    from anndata import AnnData

    from stgen.nn._network import Batch

DATASETS = ("pair_pdac_a", "pseudo_visp", TOY)
MORE_GENES = 4000
"""Further genes of the reference, those that vary most, that a real pair is pretrained on."""
N_SETS, N_CHECKED = 16, 2
"""Pseudo-datasets, and how many of them are kept to look at: their targets are genes that no other set has."""
N_STEPS, WARM_UP, LEARNING_RATE, ADAPTED_RATE = 400, 20, 1e-3, 3e-4
N_PSEUDO, N_TARGETS, N_CELLS, N_ALIKE, N_NEAR = 1500, 64, 3, 30, 40
KEPT_FOR_CHECK, LEAST_KEPT = 0.2, 6
ARMS = ("views alone", "trained on measured genes", "pretrained", "pretrained, then adapted")
AS_IT_IS, ALL = "share of validation genes", "all of the residual"


# -------------------------------------------------------------------------------------------------------- pseudo-spots


def pseudo_spots(
    cells: np.ndarray, measured: np.ndarray, rng: np.random.Generator
) -> tuple[Spots, np.ndarray]:
    """Spots made of log-normalised cells (n, G): measured genes as a model sees them, and all genes (p, G)."""
    u, s, _ = np.linalg.svd(cells[:, measured] - cells[:, measured].mean(axis=0), full_matrices=False)
    z = u[:, :10] * s[:10]
    centre = rng.choice(len(z), N_PSEUDO)
    alike = NearestNeighbors(n_neighbors=min(N_ALIKE, len(z))).fit(z).kneighbors(z[centre])[1]
    picked = np.take_along_axis(alike, rng.integers(0, alike.shape[1], (N_PSEUDO, N_CELLS)), axis=1)
    if rng.random() < 0.5:
        picked[:, -1] = rng.choice(len(z), N_PSEUDO)  # a neighbour of another kind
    share = rng.dirichlet(np.ones(N_CELLS), N_PSEUDO)
    rate = sum(share[:, [k]] * np.expm1(cells[picked[:, k]]) for k in range(N_CELLS))
    depth = rng.lognormal(0, 0.3, N_PSEUDO)[:, None] * rng.uniform(0.3, 1.0)
    counts = rng.poisson(rate * rng.lognormal(0, 0.5, cells.shape[1]) * depth)
    total = counts[:, measured].sum(axis=1)
    counts, centre, total = counts[total > 0], centre[total > 0], total[total > 0]
    x = np.log1p(counts / total[:, None] * np.median(total)).astype(np.float32)
    place = z[centre, :2] + 0.3 * z[:, :2].std(axis=0) * rng.normal(size=(len(centre), 2))
    near = NearestNeighbors(n_neighbors=N_NEAR + 1).fit(place).kneighbors(place)[1][:, 1:]
    return Spots(x[:, measured], near, np.arange(len(x))), x


def pseudo_set(model: CausalGeD, cells: np.ndarray, rng: np.random.Generator, *, is_check: bool) -> Batch:
    """One set of genes: measured ones as context, some others as targets, not divided by any scale."""
    reference, measured = model._reference(), model._measured()
    spots, x = pseudo_spots(cells, measured, rng)
    others = np.random.default_rng(5).permutation(np.setdiff1d(np.arange(cells.shape[1]), measured))
    n_kept = max(LEAST_KEPT, round(KEPT_FOR_CHECK * len(others)))
    others = others[:n_kept] if is_check else others[n_kept:]
    allowed = others[x[:, others].std(axis=0) > 0.02]
    if len(allowed) < 3:
        raise SystemExit(f"The reference must have genes beside the measured ones; {len(allowed)} vary.")
    wanted = rng.permutation(allowed)[:N_TARGETS]
    seen = known(reference, measured, spots.of_sample, gene_folds(len(measured), int(rng.integers(1e6))))
    predictor = Predictor.make(reference, measured, np.arange(len(measured)), wanted)
    axes, hints = Axes(reference, predictor, spots.of_sample), Hints(predictor, spots.of_sample, seen.weight)
    truth = ((x[:, wanted] - x[:, wanted].mean(axis=0)) / x[:, wanted].std(axis=0)).astype(np.float32)
    none = [np.zeros((len(genes), model.config.n_axes), dtype=np.float32) for genes in (measured, wanted)]
    parts = {
        "identity": [identities(reference, measured), identities(reference, wanted)],
        "hint": [axes.latents(seen.hint), axes.latents(hints.of_sample)],
        "residual": [axes.latents(spots.of_sample[0] - seen.hint), none[1]],
        "target": [none[0], axes.latents(truth - hints.of_sample)],
        "is_target": [np.zeros(len(measured), dtype=bool), np.ones(len(wanted), dtype=bool)],
    }
    return {name: torch.from_numpy(np.concatenate(part))[None] for name, part in parts.items()}


def pretrain(model: CausalGeD, cells: np.ndarray, seed: int, n_sets: int, n_steps: int) -> float:
    """Train the network on pseudo-datasets; the share of the residual that helps genes it never trained on."""
    rng = np.random.default_rng(seed)
    sets = [pseudo_set(model, cells, rng, is_check=i < N_CHECKED) for i in range(n_sets)]
    target = torch.cat([one["target"][one["is_target"]] for one in sets])
    scale = target.std(dim=0).clamp(min=1e-6)
    sets = [one | {name: one[name] / scale for name in ("hint", "residual", "target")} for one in sets]
    network, generator = model.module.train(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    for step in range(n_steps):
        rate = min(1.0, step / WARM_UP) * (0.5 * (1 + np.cos(np.pi * step / n_steps)) + 0.02)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate
        optimizer.zero_grad()
        one = sets[N_CHECKED + step % (n_sets - N_CHECKED)]
        network.loss(one, generator=generator).total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval()
    return float(np.mean([share_of_network(network, one, seed) for one in sets[:N_CHECKED]]))


# ---------------------------------------------------------------------------------------------------------------- arms


def reference_of(task: Task, data: Path | None) -> AnnData:
    """The reference of a fold; that of a real pair with more of its genes than the benchmark judges."""
    import anndata

    reference = task.reference()
    if data is None or task.dataset == TOY or task.dataset in PSEUDO or not task.cells.is_counts:
        return reference
    whole = anndata.read_h5ad(data / task.dataset / "sc.h5ad")
    logged = whole.X.log1p()
    spread = np.asarray(logged.power(2).mean(axis=0)).ravel() - np.asarray(logged.mean(axis=0)).ravel() ** 2
    own = set(task.genes)
    more = [gene for gene in whole.var_names[np.argsort(-spread)] if gene not in own][:MORE_GENES]
    wide = whole[:, [*task.genes, *more]].copy()
    wide.uns = {}
    return wide


def answers(task: Task, reference: AnnData, seed: int, n_sets: int, n_steps: int) -> dict[tuple[str, str], np.ndarray]:  # fmt: skip
    """What each arm says of the hidden genes, with each share; and what pretraining was worth on pseudo-spots."""
    said = {}
    for arm in ARMS:
        adata, cells = task.adata(), reference.copy()
        CausalGeD.setup_anndata(adata, expression="counts" if task.spots.is_counts else "log")
        CausalGeD.setup_reference(cells, expression="counts" if task.cells.is_counts else "log")
        model = CausalGeD(adata, cells, random_state=seed, use_network=arm != ARMS[0])
        quiet: dict[str, Any] = {"random_state": seed, "progress_bar": False}
        if arm == ARMS[0]:
            model.train(max_epochs=1, **quiet)
        elif arm == ARMS[1]:
            model.train(**quiet)
        else:
            model.train(max_epochs=1, lr=1e-9, **quiet)  # everything but the network
            table = ReferenceTable.read(cells, model.measured_genes)
            logged = np.concatenate([block.toarray() for block in table.blocks()])
            helped = pretrain(model, logged, seed, n_sets, n_steps)
            say(f"{task.dataset} fold {task.fold}: {arm}, share on pseudo-spots {helped:.2f}")
            if arm == ARMS[2]:
                model._finish(model._table(adata, targets=True))
            else:
                model.train(lr=ADAPTED_RATE, **quiet)
        for name in (AS_IT_IS, ALL):
            if name == ALL:
                if arm == ARMS[0]:
                    continue
                model.module.share.fill_(1.0)
            made = model.impute(genes=task.hidden_genes, intervals=False)
            said[arm, name] = np.asarray(made[:, task.hidden_genes].X)
        forget(adata)
        forget(cells)
    return said


def compare(scores: dict[str, dict[tuple[str, str], list[pd.Series]]]) -> list[dict[str, Any]]:
    """Every arm less the network that is trained on measured genes alone, with the same share."""
    entries = []
    for dataset, arms in scores.items():
        for (arm, share), parts in arms.items():
            mine, usual = pd.concat(parts), pd.concat(arms[ARMS[1], share])
            entry = {"dataset": dataset, "arm": arm, "share": share, "pearson": float(mine.mean())}
            if arm != ARMS[1]:
                found = paired_by_gene([(mine - usual).dropna().to_numpy()])
                entry |= found | {"verdict": verdict({**found, "smaller_is_better": False})}
            entries.append(entry)
    return entries


_START = time.perf_counter()


def say(text: str) -> None:
    print(f"[{time.perf_counter() - _START:6.0f} s] {text}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    """Parse, run, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of pairs; `toy` does without")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--datasets", default=",".join(DATASETS))
    parser.add_argument("--folds", type=int, default=5, help="folds of genes that are run, of five")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="little training: to see that it runs")
    given = parser.parse_args(arguments)
    limit_threads(given.threads)
    warnings.filterwarnings("ignore")
    n_sets, n_steps = (4, 20) if given.quick else (N_SETS, N_STEPS)
    scores: dict[str, dict[tuple[str, str], list[pd.Series]]] = {}
    datasets = names_of(parser, "--datasets", given.datasets, folders_of(given.data, DATASETS))
    rows: list[dict[str, Any]] = []
    with kept(given.out, command_of("pretraining", arguments), lambda: {"rows": rows}) as keep:
        for dataset in datasets:
            pair, arms = read_pair(dataset, given.data), scores.setdefault(dataset, {})
            for fold in range(given.folds):
                task = make_task(pair, fold)
                reference = reference_of(task, given.data)
                for key, said in answers(task, reference, given.seed, n_sets, n_steps).items():
                    found = score_genes(task, said, task.target)["pearson"]
                    arms.setdefault(key, []).append(found)
                    rows.append(
                        {
                            "dataset": dataset,
                            "fold": fold,
                            "arm": key[0],
                            "share": key[1],
                            "pearson": float(found.mean()),
                        }
                    )
                    keep()
                    say(f"{dataset} fold {fold}: {key[0]}, {key[1]}: pearson {found.mean():.4f}")
    entries = compare(scores)
    for dataset in scores:
        heading(f"{dataset}: Pearson over hidden genes, and less that of a network trained on measured genes")
        table = pd.DataFrame([entry for entry in entries if entry["dataset"] == dataset])
        columns = ["arm", "share", "pearson", "difference", "low", "high", "n_genes", "verdict"]
        show(table.reindex(columns=columns).set_index("arm").astype({"n_genes": "Int64"}), digits=4)
    meta = {
        "benchmark": "pretraining",
        "command": command_of("pretraining", arguments),
        "versions": environment(),
        "options": {"n_sets": n_sets, "n_steps": n_steps, "folds": given.folds, "seed": given.seed},
        "seconds": time.perf_counter() - _START,
    }
    write_document(given.out, plain({"meta": meta, "paired": entries}))


if __name__ == "__main__":
    main(sys.argv[1:])
