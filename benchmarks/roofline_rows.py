"""The rows of `roofline.py`: training steps and decoded tokens, each counted on the stand-in device.

A model whose layers cost alike is counted with one and with two repetitions of its layout; the rest is their
difference, as often as it is deep.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from gpu_models import Model, Plain, Scale, models
from on_gpu_decode import decoded, lengths
from roofline_costs import H200
from roofline_device import DEVICE, moved
from roofline_kernels import FLASH_KERNELS
from roofline_run import Count, Run, simulated
from torch import Tensor

__all__ = ["FLOOR", "KERNEL", "Row", "Rows"]

FLOOR = "floor: plain transformer, SDPA"
KERNEL = "flash, its kernel (modelled)"
# What is also counted as torch.compile would launch it, which takes half a minute.
COMPILED = (FLOOR, "attn ff, rotary", "flash", "gau")
# Tokens that a state has room for beside those that are there.
AHEAD = 64
# FlexAttention's, of keys and queries.
BLOCK = 128
BOUNDS = ("math", "memory", "least")
Costs = dict[str, float]
Prepared = Callable[[Run, Any], Callable[[], Any]]


class Row(NamedTuple):
    """What a training step or a token costs; the time is the larger of the host's and the device's."""

    what: str
    size: str
    launches: int
    gb: float
    tflop: float
    host_ms: float
    device_ms: float
    ms: float
    bound: str
    peak_gb: float
    waits: list[str]


def costs_of(count: Count) -> Costs:
    """Numbers that grow by the same with each repetition of the layers."""
    found = {name: sum(k.seconds for k in count.kernels if k.bound == name) for name in BOUNDS}
    return found | {"launches": count.launches, "bytes": count.bytes, "flops": count.flops, "peak": count.peak}


def row_of(what: str, size: str, costs: Costs, waits: list[str]) -> Row:
    device = sum(costs[name] for name in BOUNDS)
    host, longest = costs["launches"] * H200.host, max(BOUNDS, key=lambda name: costs[name])
    return Row(
        what, size, round(costs["launches"]), costs["bytes"] / 1e9, costs["flops"] / 1e12, 1e3 * host, 1e3 * device,
        1e3 * max(host, device), "host" if host > device else f"{longest} {costs[longest] / max(device, 1e-12):.0%}",
        costs["peak"] / 1e9, waits,
    )  # fmt: skip


def ids(rows: int, n: int) -> Tensor:
    return torch.empty(rows, n, dtype=torch.long, device=DEVICE)


def built(model: Model, scale: Scale, n: int, depth: int) -> Any:
    with torch.device("meta"):
        net = model.build(scale, n, depth=depth)
    return net.requires_grad_(True)


def share_of(beside: dict[str, Tensor], causal: bool, rows: int, n: int) -> float:
    """Of all pairs of queries and keys, those that are read in blocks of keys and queries."""
    groups = beside.get("doc_ids", torch.zeros(rows, n, dtype=torch.long))
    real = beside.get("mask", torch.ones(rows, n, dtype=torch.bool))
    seen = 0.0
    for row, there in zip(groups, real, strict=True):
        for length in torch.bincount(row[there]).tolist():
            seen += (length * length / 2 if causal else length * length) + length * BLOCK / (2 if causal else 1)
    return min(1.0, seen / (rows * n * n))


def training(model: Model, rows: int, n: int, run: Run, net: Any) -> Callable[[], None]:
    """Forward and backward in bfloat16."""
    run.share = share_of(model.beside(rows, n), model.causal, rows, n)
    return step_of(model, rows, n, net)


def step_of(model: Model, rows: int, n: int, net: Any) -> Callable[[], None]:
    beside = {name: torch.empty_like(t, device=DEVICE) for name, t in model.beside(rows, n).items()}

    def call() -> None:
        y = net.train()(ids(rows, n), **beside)
        (y[0] if isinstance(y, tuple) else y).float().square().mean().backward()

    return call


def counted(net: Any, prepared: Prepared, instead: Any = None, places: bool = False) -> Count:
    with simulated(instead=instead, places=places) as run:
        call = prepared(run, moved(net, torch.bfloat16))
        with run.counted() as count:
            call()
    return count


def said(rows: int, n: int, ragged: bool) -> str:
    return f"token b={rows} after {n:,}{' ragged' if ragged else ''}"


class Rows:
    """How rows are counted at a scale; by: what a row's costs are also told apart by, 'op' or 'place'."""

    def __init__(self, scale: Scale, by: str = ""):
        self.scale, self.by = scale, by

    def named(self, contexts: tuple[int, ...], batches: tuple[int, ...]) -> dict[str, Callable[[], Row]]:
        """How each row is counted, by name: 'train 8 x 2,048: flash'."""
        found: dict[str, Callable[[], Row]] = {}
        for rows, n in self.scale.sizes:
            size = f"train {rows} x {n:,}"
            for name, model in {FLOOR: Model(Plain), **models()}.items():
                found[f"{size}: {name}"] = functools.partial(self.trained, name, model, rows, n)
            for name in COMPILED:
                model = Model(Plain) if name == FLOOR else models()[name]
                found[f"{size}, compiled: {name}"] = functools.partial(self.compiled, name, model, rows, n)
            kernel = functools.partial(self.trained, KERNEL, models()["flash"], rows, n, FLASH_KERNELS)
            found[f"{size}: {KERNEL}"] = kernel
        sizes = [(rows, False) for rows in batches] + [(batches[-1], True)]
        for n, (rows, ragged) in itertools.product(contexts, sizes):
            for name, kind in decoded().items():
                if kind.ragged or not ragged:
                    what = FLOOR if name == "floor" else name
                    found[f"{said(rows, n, ragged)}: {what}"] = functools.partial(self.token, what, rows, n, ragged)
        return found

    def trained(self, what: str, model: Model, rows: int, n: int, instead: Any = None) -> Row:
        prepared = functools.partial(training, model, rows, n)
        return self.deep(what, f"train {rows} x {n:,}", model, n, prepared, instead)

    def token(self, what: str, rows: int, n: int, ragged: bool) -> Row:
        """One token more behind n, in a state that has taken one already."""
        kind = decoded()["floor" if what == FLOOR else what]

        def prepared(run: Run, net: Any) -> Callable[[], Any]:
            mask = torch.empty_like(lengths(rows, n, "cpu"), device=DEVICE) if ragged else None
            step = kind.begin(net.eval(), ids(rows, n), mask)
            step()
            return step

        with torch.no_grad():
            return self.deep(what, said(rows, n, ragged), kind.model, n + AHEAD, prepared, None)

    def deep(self, what: str, size: str, model: Model, n: int, prepared: Prepared, instead: Any) -> Row:
        """A row of a model in its whole depth."""
        depth = self.scale.of(model.layers)
        few = (1, 2) if model.alike else (depth,)
        counts = [counted(built(model, self.scale, n, d), prepared, instead, bool(self.by)) for d in few]
        return self.whole(what, size, depth, few, counts)

    def compiled(self, name: str, model: Model, rows: int, n: int) -> Row:
        """A training step as torch.compile would launch it; its peak is not known."""
        from roofline_compiled import compiled

        def prepared(depth: int, wrap: Callable[[Any], Any]) -> Callable[[], None]:
            return step_of(model, rows, n, wrap(moved(built(model, self.scale, n, depth), torch.bfloat16)))

        counts = [compiled(functools.partial(prepared, depth)) for depth in (1, 2)]
        size = f"train {rows} x {n:,}, compiled"
        return self.whole(name, size, self.scale.of(model.layers), (1, 2), counts)

    def whole(self, what: str, size: str, depth: int, few: tuple[int, ...], counts: list[Count]) -> Row:
        """The row of a model of a depth, from what one or two of other depths cost."""
        first, last = costs_of(counts[0]), costs_of(counts[-1])
        more = depth - 1 if len(few) > 1 else 0
        costs = {name: first[name] + more * (last[name] - first[name]) for name in first}
        row = row_of(what, size, costs, list(counts[-1].waits))
        if self.by:
            self.show(row, counts[-1], few[-1])
        return row

    def show(self, row: Row, count: Count, depth: int) -> None:
        print(f"{row.size}: {row.what}, {depth} deep")
        for name, launches, moved_bytes, seconds in count.by(lambda k: k.name if self.by == "op" else k.place)[:16]:
            print(f"  {name:<60} {launches:>5}x {moved_bytes / 1e9:>9.3f} GB {1e3 * seconds:>9.3f} ms")
