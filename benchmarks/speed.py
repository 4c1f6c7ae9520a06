"""What the grouped one-pass form of GenAR saves on this machine, against a plain form of the same network.

    python benchmarks/speed.py --out speed.json            # minutes on two cores
    python benchmarks/speed.py --out speed.json --quick    # one or two repeats, to see that it runs

Three questions, answered in one process so that ratios mean something:

1. a training step: one pass with windowed labels, against K passes as the method was published. There, scale k is
   a pass of its own over [prefix, all coarser tokens, own queries] with a dense mask and un-fused attention, and
   labels are dense (B, T, V). Both forms share weights, and give one loss and one gradient: checked before timing.
2. prediction: scale after scale against a cache, against running the whole context again at every scale.
3. peak memory of a step, each form in a process of its own.

B batch, G genes, K scales, T tokens, V vocabulary, N positions of a pass.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _report import kept, write_document
from _run import command_of, names_of
from torch import Tensor

from stgen.models.genar._config import GenARConfig
from stgen.models.genar._network import GenARNetwork
from stgen.nn._attention import Attend
from stgen.nn._grouped import GroupedDecoder, context_sees_context, query_sees_context, query_sees_query
from stgen.nn._network import Batch

N_GENES, N_FEATURES, N_NEIGHBORS = 200, 256, 6
BATCH_SIZE = {"small": 64, "paper": 16}
REPEATS = {"small": 15, "paper": 5}
DTYPES = {"fp32": None, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": (1e-4, 2e-3), "bf16": (2e-2, None)}
"""Relative difference allowed between the forms: of the loss, and of the gradient over its norm."""
Answers = tuple[list[list[Tensor]], Tensor]
"""Logits by scale and bucket, and the shift (B, T) of each token's log mean."""


# -- the plain form -------------------------------------------------------------------------------------------------


def unfused(mask: Tensor) -> Attend:
    """All scores of all positions, then the mask, then a softmax."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2)).masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype) @ v

    return attend


def dense_mask(context_group: Tensor, query_group: Tensor) -> Tensor:
    """(N, N), True means "may attend"."""
    n, m = len(context_group), len(query_group)
    mask = torch.zeros(n + m, n + m, dtype=torch.bool, device=context_group.device)
    mask[:n, :n] = context_sees_context(context_group)
    mask[n:, :n] = query_sees_context(query_group, context_group)
    mask[n:, n:] = query_sees_query(query_group)
    return mask


def plain_logits(net: GenARNetwork, batch: Batch, generator: torch.Generator | None = None) -> Answers:
    """K passes; each embeds everything finished before its scale anew."""
    expected = net._expected(batch, held_out=net.training and not net.config.steer)
    token = net._tokens(batch).round()
    known = torch.ones_like(token[:, :1])
    if net.training and net.config.blind_share:
        blind = torch.rand(len(token), 1, generator=generator, device=token.device) < net.config.blind_share
        token = torch.where(blind, (expected + net.log_bias.detach()).exp(), token)
        known = 1.0 - blind.to(token.dtype)
    condition, prefix = net.condition(net.expected.linear, net._features(batch), batch["xy"], generator)
    surprise, logits, shift = expected.new_zeros(len(expected), 1), [], []
    for k in range(len(net.scales)):
        parts = [slice(net.starts[j], net.starts[j + 1]) for j in range(k + 1)]
        context = [net._context(token[:, parts[j]], expected[:, parts[j]], j, known) for j in range(k)]
        query = net._query(context[-1] if k else None, expected[:, parts[k]], k)
        group = net.token_scale[: net.starts[k + 1]]
        prefix_group = group.new_full((prefix.shape[1],), -1)
        mask = dense_mask(torch.cat([prefix_group, group[: net.starts[k]]]), group[net.starts[k] :])
        x = torch.cat([prefix, *context, query], dim=1)
        for block in net.decoder.blocks:
            x = block(x, unfused(mask), condition)
        answer = net.head(x[:, -net.scales[k] :], condition, net._identity()[parts[k]])
        log_mean = net._log_mean(expected, answer, surprise, k)
        logits.append(net._logits(answer, log_mean, k))
        shift.append(answer[..., 0])
        surprise = net._surprise(surprise, token[:, parts[k]], log_mean, k)
    return logits, torch.cat(shift, dim=1)


def dense_label(net: GenARNetwork, token: Tensor, size: int, k: int) -> Tensor:
    """(B, n, V): every label over the whole vocabulary."""
    token = token.clamp(max=size - 1)
    v = torch.arange(size, device=token.device, dtype=token.dtype)
    if k < len(net.scales) - 1:
        return (1 - (token[..., None] - v).abs()).clamp(min=0)
    if net.config.final_label == "onehot":
        return F.one_hot(token.long(), size).to(token.dtype)
    sigma = net.config.label_slope * token + net.config.label_width * token / (1 + token)
    mass = torch.exp(-0.5 * ((v - token[..., None]) / sigma.clamp(min=1e-3)[..., None]) ** 2)
    return mass / mass.sum(-1, keepdim=True)


def plain_divergence(net: GenARNetwork, batch: Batch, answers: Answers) -> Tensor:
    """KL against dense labels, and the price of shifts."""
    (logits, shift), tokens, scales = answers, net._tokens(batch), []
    for k, buckets in enumerate(logits):
        own = tokens[:, net.starts[k] : net.starts[k + 1]]
        total = own.new_zeros(())
        for (columns, size), values in zip(net.buckets[k], buckets, strict=True):
            label = dense_label(net, own[:, columns], size, k)
            total = total + F.kl_div(values.log_softmax(-1), label, reduction="none").sum((-1, -2)).mean()
        scales.append(total)
    prior = 0.5 * net.config.shift_penalty * shift.square().sum(-1).mean() / len(net.scales)
    return torch.stack(scales).mean() + prior


class Uncached(GroupedDecoder):
    """The same blocks without a cache: every reading runs the whole context again, fused and by slices."""

    def __init__(self, decoder: GroupedDecoder) -> None:
        super().__init__(decoder.blocks)

    def start(self) -> Any:
        return None

    def extend(self, cache: Any, context: Tensor, group: Tensor, condition: Tensor) -> Any:
        if cache is None:
            return context, group
        return torch.cat([cache[0], context], dim=1), torch.cat([cache[1], group])

    def read(self, cache: Any, query: Tensor, group: Tensor, condition: Tensor) -> Tensor:
        context, context_group = cache
        return self.forward(context, context_group, query, group, condition)


# -- what is measured -----------------------------------------------------------------------------------------------


def one_pass_logits(net: GenARNetwork, batch: Batch, generator: torch.Generator | None = None) -> Answers:
    return net.training_logits(batch, generator=generator)


def one_pass_divergence(net: GenARNetwork, batch: Batch, answers: Answers) -> Tensor:
    """The network's own loss, told what the decoder answered, so that its two halves can be timed apart."""
    net.training_logits = lambda batch, *, generator=None: answers  # type: ignore[method-assign]
    try:
        return net.loss(batch).total
    finally:
        del net.training_logits


FORMS: dict[str, tuple[Callable[..., Answers], Callable[..., Tensor]]] = {
    "one pass": (one_pass_logits, one_pass_divergence),
    "plain": (plain_logits, plain_divergence),
}


def make_batch(n: int, device: str, seed: int = 0) -> Batch:
    """Spots with counts as sparse as on real sections: about half of them 0, a few genes in the hundreds."""
    generator = torch.Generator().manual_seed(seed)
    histology = torch.randn(n, N_FEATURES, generator=generator)
    level = torch.linspace(-1.5, 4.0, N_GENES) + 0.5 * histology[:, torch.arange(N_GENES) % 8]
    batch = {
        "histology": histology,
        "neighbours": torch.randn(n, N_NEIGHBORS, N_FEATURES, generator=generator),
        "xy": 6000 * torch.rand(n, 2, generator=generator) - 3000,
        "counts": torch.poisson(level.exp(), generator=generator),
        "unit": torch.arange(n) % 4,
        "patch": torch.arange(n) % 4 + 4 * (torch.arange(n) // 80),
        "key": torch.arange(n),
    }
    return {name: value.to(device) for name, value in batch.items()}


def make_network(config: GenARConfig, device: str) -> GenARNetwork:
    """Prepared, and with weights where training starts from 0: equal forms must be equal with all paths open."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = GenARNetwork(config, n_features=N_FEATURES, n_genes=N_GENES)
        net.prepare([make_batch(512, "cpu", seed=1)])
        for p in net.parameters():
            if p.dim() == 2 and not p.any():
                torch.nn.init.normal_(p, std=0.02)
    return net.to(device)


def mixed(device: str, dtype: str) -> AbstractContextManager[Any]:
    kind = DTYPES[dtype]
    return nullcontext() if kind is None else torch.autocast(device, dtype=kind)


class Clock:
    """Seconds between calls, added up by name; waits for the device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.parts: dict[str, float] = {}
        self.last = self._now()

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self, name: str) -> None:
        now = self._now()
        self.parts[name] = self.parts.get(name, 0.0) + now - self.last
        self.last = now


def step(
    net: GenARNetwork, optimiser: torch.optim.Optimizer, batch: Batch, form: str, device: str, dtype: str
) -> dict[str, float]:
    """One training step; seconds of its parts."""
    logits_of, divergence_of = FORMS[form]
    net.train()
    optimiser.zero_grad()
    clock = Clock(device)
    distribution_of = net._logits

    def timed(answer: Tensor, log_mean: Tensor, k: int) -> list[Tensor]:
        clock("decoder")
        logits = distribution_of(answer, log_mean, k)
        clock("logits")
        return logits

    net._logits = timed  # type: ignore[method-assign]
    try:
        with mixed(device, dtype):
            answers = logits_of(net, batch)
            clock("decoder")
            loss = divergence_of(net, batch, answers)
            clock("labels")
    finally:
        del net._logits
    loss.backward()
    clock("backward")
    optimiser.step()
    clock("optimiser")
    return clock.parts


def gradient(net: GenARNetwork, batch: Batch, form: str, device: str, dtype: str) -> tuple[float, Tensor]:
    """Loss and gradient without dropout."""
    logits_of, divergence_of = FORMS[form]
    net.eval()
    net.zero_grad()
    with mixed(device, dtype):
        loss = divergence_of(net, batch, logits_of(net, batch))
    loss.backward()
    flat = [p.grad.flatten().float() for p in net.parameters() if p.grad is not None]
    return loss.item(), torch.cat(flat)


def check_equal(net: GenARNetwork, batch: Batch, device: str, dtype: str) -> dict[str, float]:
    """The forms must be one network; in bf16 only the losses are compared."""
    (loss, one), (plain_loss, plain) = (gradient(net, batch, form, device, dtype) for form in FORMS)
    apart = {
        "loss": abs(loss - plain_loss) / abs(plain_loss),
        "gradient": float((one - plain).norm() / plain.norm()),
    }
    for name, allowed in zip(apart, TOLERANCE[dtype], strict=True):
        if allowed is not None and not apart[name] <= allowed:
            raise RuntimeError(
                f"The two forms differ in {dtype}: {name} by {apart[name]:.2g}, allowed {allowed:g}."
            )
    return apart


def time_steps(name: str, net: GenARNetwork, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Forms take turns, so that a busy moment of the machine meets both."""
    rows = []
    batch = make_batch(BATCH_SIZE[name], args.device)
    repeats = args.repeats or REPEATS[name]
    for dtype in DTYPES:
        apart = check_equal(net, batch, args.device, dtype)
        print(
            f"{name} {dtype}: forms differ by {apart['loss']:.1e} in loss, {apart['gradient']:.1e} in gradient"
        )
        working = copy.deepcopy(net)
        optimiser = torch.optim.AdamW(working.parameters(), lr=1e-4)
        seconds: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
        for repeat in range(repeats + 1):
            for form in FORMS:
                parts = step(working, optimiser, batch, form, args.device, dtype)
                if repeat:  # the first round warms up
                    seconds[form].append(parts)
        for form, runs in seconds.items():
            parts = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
            parts["step"] = statistics.median(sum(run.values()) for run in runs)
            rows.append({"what": "step", "preset": name, "dtype": dtype, "form": form, "seconds": parts})
            print(f"  {form}: {parts['step']:.2f} s a step", flush=True)
    return rows


@torch.no_grad()
def time_prediction(name: str, net: GenARNetwork, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Cached and uncached in turn, with one path and with eight; models predict in fp32 only."""
    rows: list[dict[str, Any]] = []
    batch = make_batch(BATCH_SIZE[name], args.device)
    forms = {"cached": copy.deepcopy(net).eval(), "uncached": copy.deepcopy(net).eval()}
    forms["uncached"].decoder = Uncached(forms["uncached"].decoder)
    for n_paths in (1, 8):
        seconds: dict[str, list[float]] = {form: [] for form in forms}
        answers = {}
        for repeat in range((args.repeats or REPEATS[name]) + 1):
            for form, one in forms.items():
                clock = Clock(args.device)
                for path in one.generate(batch, n_paths=n_paths):
                    answers[form] = path.probability[0]
                clock("predict")
                if repeat:  # the first round warms up
                    seconds[form].append(clock.parts["predict"])
        apart = float((answers["cached"] - answers["uncached"]).abs().max())
        # a sampled coarse token that lies on an edge may fall on either side
        if n_paths == 1 and apart > 1e-3:
            raise RuntimeError(f"Cached and uncached predictions differ by {apart:.2g}, allowed 1e-3.")
        what = f"predict {n_paths} path{'s' * (n_paths > 1)}"
        for form, runs in seconds.items():
            row = {"what": what, "preset": name, "dtype": "fp32", "form": form}
            rows.append(row | {"seconds": {"predict": statistics.median(runs)}})
    return rows


def peak_mb() -> float:
    """High-water mark of this process; ru_maxrss may hold the parent's, so it is the second choice."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def memory_of_a_step(task: dict[str, Any]) -> None:
    """Run in a process of its own: peak before and after two steps, printed as JSON."""
    device, dtype, form = task["device"], task["dtype"], task["form"]
    torch.set_num_threads(task["threads"])
    config: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in task["config"].items()}
    net = make_network(GenARConfig(**config), device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)
    batch = make_batch(task["batch_size"], device)
    before = peak_mb()
    for _ in range(2):
        step(net, optimiser, batch, form, device, dtype)
    after = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak_mb()
    print(json.dumps({"start_mb": 0.0 if device == "cuda" else before, "peak_mb": after}))


def measure_memory(name: str, config: GenARConfig, args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for dtype in DTYPES:
        for form in FORMS:
            task = {"config": dataclasses.asdict(config), "batch_size": BATCH_SIZE[name], "dtype": dtype}
            task |= {"form": form, "device": args.device, "threads": torch.get_num_threads()}
            command = [sys.executable, __file__, "--memory-task", json.dumps(task)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            row = {"what": "memory", "preset": name, "dtype": dtype, "form": form}
            rows.append(row | json.loads(printed.splitlines()[-1]))
    return rows


# -- report ---------------------------------------------------------------------------------------------------------


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times longer, or larger, the plain form is."""
    against = {"one pass": "plain", "cached": "uncached"}
    key = lambda row: (row["what"], row["preset"], row["dtype"])  # noqa: E731
    found = {(*key(row), row["form"]): row for row in rows}
    result = []
    for row in rows:
        if row["form"] not in against:
            continue
        other = found[(*key(row), against[row["form"]])]
        if row["what"] == "memory":
            value = (other["peak_mb"] - other["start_mb"]) / max(row["peak_mb"] - row["start_mb"], 1.0)
        else:
            value = list(other["seconds"].values())[-1] / list(row["seconds"].values())[-1]
        result.append(dict(zip(("what", "preset", "dtype"), key(row))) | {"ratio": value})
    return result


def print_table(rows: list[dict[str, Any]], shares: list[dict[str, Any]]) -> None:
    print(f"\n{'preset':7} {'dtype':5} {'what':16} {'form':9} ms, or MB above the start")
    for row in rows:
        if row["what"] == "memory":
            numbers = f"{row['peak_mb'] - row['start_mb']:.0f} MB (peak {row['peak_mb']:.0f})"
        else:
            numbers = "  ".join(f"{part} {1e3 * value:.1f}" for part, value in row["seconds"].items())
        print(f"{row['preset']:7} {row['dtype']:5} {row['what']:16} {row['form']:9} {numbers}")
    print("\nHow many times the plain (uncached) form costs")
    for row in shares:
        print(f"{row['preset']:7} {row['dtype']:5} {row['what']:16} {row['ratio']:.2f}")


def meta(args: argparse.Namespace, configs: dict[str, GenARConfig]) -> dict[str, Any]:
    import stgen

    device = (
        torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    )
    return {
        "stgen": stgen.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
        "threads": torch.get_num_threads(),
        "command": " ".join(["python", "benchmarks/speed.py", *args.given]),
        "n_genes": N_GENES,
        "n_features": N_FEATURES,
        "batch_size": BATCH_SIZE,
        "configs": {name: dataclasses.asdict(config) for name, config in configs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--quick", action="store_true", help="two repeats, one path")
    parser.add_argument("--presets", default="small,paper")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="threads of torch; by default what torch takes")
    parser.add_argument("--repeats", type=int, help="timed rounds of each form")
    parser.add_argument("--memory-task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.given = sys.argv[1:]
    if args.memory_task:
        memory_of_a_step(json.loads(args.memory_task))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.repeats = args.repeats or 2

    from stgen.models import GenAR

    presets = names_of(parser, "--presets", args.presets, GenAR._presets)
    configs = {name: GenAR._presets[name] for name in presets}
    rows: list[dict[str, Any]] = []
    with kept(args.out, command_of("speed", args.given), lambda: {"rows": rows}) as keep:
        for name, config in configs.items():
            net = make_network(config, args.device)
            size = sum(p.numel() for p in net.parameters()) / 1e6
            print(
                f"{name}: {size:.2f} M parameters, scales {net.scales}, batch {BATCH_SIZE[name]}", flush=True
            )
            for measure in (partial(time_steps, name, net), partial(time_prediction, name, net)):
                rows += measure(args)
                keep()
            del net, measure
            rows += measure_memory(name, config, args)
            keep()
    shares = ratios(rows)
    print_table(rows, shares)
    if args.out:
        write_document(args.out, {"meta": meta(args, configs), "rows": rows, "ratios": shares})


if __name__ == "__main__":
    main()
