"""FLASH's kernels in Triton (XFLASH_TRITON=1) beside the operator that they stand for: a part of `on_gpu.py`.

`right`: results and gradients in half precision must not be further from those in float64 than the plain operator's
are, and the same bits every time. `fast`: a layer's groups forward and backward. `step`: a model, as `speed` has it
without. `verdict`: whether the kernels could be the default, by the lines of this run. Where they cannot be tried, each
case says so.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from on_gpu_speed import Cases, Floors, Row, in_turn, launched, peak_of, scale_of, timed
from torch import Tensor

from xflash.layers.kernels.fused_groups import Settings, Turn, fused_groups
from xflash.layers.kernels.triton_choice import triton_groups_for

__all__ = ["cases", "verdict"]

# How much further off than the plain operator the kernels may be, for rounding is by chance.
MORE = 1.5


class Groups(NamedTuple):
    """Sizes and settings of a call: e channels of values, k of queries, groups of w tokens; turned: channels."""

    b: int
    n: int
    e: int = 2048
    k: int = 128
    w: int = 256
    attn_fn: str = "relu2"
    turned: int = 32
    interleaved: bool = False
    ragged: bool = False
    closed: bool = False
    mean: bool = True
    dtype: torch.dtype = torch.bfloat16

    def leaves(self, dtype: torch.dtype, device: str) -> list[Tensor]:
        """hidden, gamma, beta, the bias by distance, closed, asking for gradients; hidden alone is no float32."""
        chance = torch.Generator(device).manual_seed(3)
        shapes = (self.b, self.n, 2 * self.e + self.k), (4, self.k), (4, self.k), (1, 2 * self.w - 1)
        kinds = (dtype, *[torch.promote_types(dtype, torch.float32)] * 4)
        shapes = (*shapes, (self.b, self.k, self.e))
        return [self.drawn(shape, chance).to(kind).requires_grad_() for shape, kind in zip(shapes, kinds, strict=True)]

    def drawn(self, shape: Iterable[int], chance: torch.Generator) -> Tensor:
        """Numbers that half precision can hold, so that nothing is lost before it begins."""
        return torch.randn(*shape, generator=chance, dtype=self.dtype, device=chance.device)

    def turn(self, like: Tensor) -> Turn:
        angles = torch.outer(torch.arange(self.n), 10000.0 ** -torch.linspace(0, 1, self.turned // 2))
        cos, sin = angles.cos(), angles.sin()
        cos, sin = torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1)
        if self.interleaved:
            cos, sin = (t.unflatten(1, (2, -1)).mT.flatten(1) for t in (cos, sin))
        return Turn(cos.to(self.dtype).to(like), sin.to(self.dtype).to(like), self.interleaved)

    def made(self, dtype: torch.dtype, device: str) -> Callable[[], tuple[Tensor, ...]]:
        """A call forward and backward: the results, and the gradients of their sum with numbers by chance."""
        hidden, gamma, beta, vector, closed = leaves = self.leaves(dtype, device)
        settings = Settings(self.w, self.attn_fn, 1 / self.w, 1.0, self.mean, 3 if self.closed else 0)
        chance = torch.Generator(device).manual_seed(8)
        above = [self.drawn((self.b, self.n, self.e), chance).to(dtype), self.drawn(closed.shape, chance).to(closed)]
        new = None
        if self.ragged:
            new = torch.linspace(self.n // 3, self.n, self.b).long().to(device)
            above[0] *= (torch.arange(self.n, device=device) < new[:, None])[..., None]
        beside = {"vector": vector, "turn": self.turn(hidden), "closed": closed if self.closed else None, "new": new}

        def call() -> tuple[Tensor, ...]:
            out, after = fused_groups(hidden, gamma, beta, settings, **beside)
            grads = torch.autograd.grad((out, after), leaves if self.closed else leaves[:4], above)
            return out.detach(), after.detach(), *grads

        return call


@contextlib.contextmanager
def asked(kernels: bool) -> Iterator[None]:
    """XFLASH_TRITON as it is said here."""
    before = os.environ.get("XFLASH_TRITON")
    os.environ["XFLASH_TRITON"] = str(int(kernels))
    try:
        yield
    finally:
        del os.environ["XFLASH_TRITON"]
        if before is not None:
            os.environ["XFLASH_TRITON"] = before


def not_tried(call: Groups, options: Any) -> Row | None:
    """What is said where the kernels would not be used."""
    hidden, gamma, *_ = call._replace(b=1, n=1).leaves(call.dtype, options.device)
    with asked(True):
        if triton_groups_for(hidden, gamma, call.w) is not None:
            return None
    return {"skipped": f"the kernels in Triton were not tried: they are not for {options.device}"}


def apart(found: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> list[float]:
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, right, strict=True)]


def right(call: Groups, options: Any) -> Iterator[Row]:
    exact = call.made(torch.float64, options.device)()
    run = call.made(call.dtype, options.device)
    with asked(False):
        plain = apart(run(), exact)
    if why := not_tried(call, options):
        yield why | {"plain_off": max(plain)}
        return
    with asked(True):
        first, again = run(), run()
    off = apart(first, exact)
    names = ("out", "after", "hidden", "gamma", "beta", "bias", "closed")
    failed = {
        name: f"off by {a:.1e}, the plain operator by {b:.1e}"
        for name, a, b in zip(names, off, plain, strict=False)
        if not a <= MORE * b + 1e-6
    }
    if not all(map(torch.equal, first, again)):
        failed["again"] = "not the same bits"
    yield {"off": max(off), "plain_off": max(plain), "failed": failed}


def fast(call: Groups, options: Any) -> Iterator[Row]:
    """Forward and backward of a layer's groups, eager, in turn with the plain operator."""
    made = call.made(call.dtype, options.device)

    def run(kernels: bool) -> None:
        with asked(kernels):
            made()

    run(False)
    if why := not_tried(call, options):
        yield why | {"plain_ms": in_turn({"": lambda: run(False)}, options.device, options.each)[""][0]}
        return
    run(True)
    calls = {kernels: functools.partial(run, kernels) for kernels in (False, True)}
    times = in_turn(calls, options.device, options.each)
    gb = {kernels: peak_of(call, options.device).get("peak_gb") for kernels, call in calls.items()}
    row = {"ms": times[True][0], "host_ms": times[True][1], "peak_gb": gb[True]}
    row |= {"plain_ms": times[False][0], "plain_gb": gb[False], "faster": times[False][0] / times[True][0]}
    yield row | launched(calls[True], options.device)


def stepped(rows: int, n: int, floors: Floors, options: Any) -> Iterator[Row]:
    """A training step of a whole model, as `speed` has it without."""
    if why := not_tried(Groups(rows, n), options):
        yield why
        return
    with asked(True):
        yield from timed("flash", rows, n, floors, options)


def verdict(options: Any) -> Iterator[Row]:
    """Whether the kernels could be the default, by the lines that are there."""
    from on_gpu import lines

    rows = lines(options.out, "kernel")
    compared, times = [row for row in rows if "off" in row], [row for row in rows if "faster" in row]
    wrong = {row["case"] for row in rows if row.get("failed") or "error" in row}
    begun, ended = ({row["case"] for row in rows if key in row} for key in ("begun", "seconds"))
    # What took the process with it too.
    wrong = sorted(wrong | (begun - ended - {"verdict"}))
    slower = [row["case"] for row in times if row["faster"] <= 1]
    if not (compared and times):
        yield {"said": "nothing is decided: the kernels in Triton were not tried"}
        return
    better = "stays a choice" if wrong or slower else "could be the default"
    said = f"compared in {len(compared)} cases, wrong or broken off: {', '.join(wrong) or 'none'}"
    said += f"; timed at {len(times)} sizes, slower: {', '.join(slower) or 'none'}"
    yield {"said": f"XFLASH_TRITON {better}: {said}", "wrong": wrong, "slower": slower}


def cases(options: Any) -> Cases:
    tiny = {"e": 32, "k": 16, "w": 16, "turned": 8} if options.tiny else {}
    few, some = (3, 37) if options.tiny else (3, 1000), (1, 50) if options.tiny else (1, 4000)
    for name, call in {
        "whole": Groups(*few, **tiny),
        "float16": Groups(*few, **tiny)._replace(dtype=torch.float16),
        "laplace, pairs": Groups(*few, **tiny)._replace(attn_fn="laplace", interleaved=True),
        "ragged": Groups(*few, **tiny)._replace(ragged=True, mean=False),
        "one row, behind a state": Groups(*some, **tiny)._replace(closed=True),
        "short groups": Groups(*few, **tiny)._replace(w=tiny.get("w", 64), k=tiny.get("k", 64)),
        "long groups": Groups(*some, **tiny)._replace(w=tiny.get("w", 1024)),
    }.items():
        yield f"right {name}", functools.partial(right, call, options)
    floors, sizes = Floors(options), scale_of(options).sizes
    for rows, n in (*sizes, *(((1, 48),) if options.tiny else ((1, 2048), (1, 65536)))):
        yield f"fast {rows}x{n}", functools.partial(fast, Groups(rows, n, **tiny), options)
    for rows, n in sizes:
        yield f"step {rows}x{n} flash", functools.partial(stepped, rows, n, floors, options)
    yield "verdict", functools.partial(verdict, options)
