"""Milliseconds a token on a device, eager and compiled: the part of `on_gpu.py` that decodes."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from common import median
from gpu_models import Model, Plain, Scale, made, ours, peers, scale_of
from on_gpu_speed import ids, launched, placed, synchronized
from torch import Tensor

__all__ = ["cases", "decoded"]

TOKENS, ROUNDS, WARM = 24, 3, 3
Row = dict[str, Any]
Begin = Callable[[Tensor, Tensor | None], Callable[[], Tensor]]


def stepping(net: Any, prompt: Tensor, mask: Tensor | None) -> Callable[[], Tensor]:
    """Reads a prompt; one token more at every call."""
    _, state = net.step(prompt, None, mask)
    held, token = [state], prompt[:, :1].contiguous()

    def step() -> Tensor:
        logits, held[0] = net.step(token, held[0])
        return logits

    return step


def plainly(net: Plain, prompt: Tensor, mask: Tensor | None) -> Callable[[], Tensor]:
    """The same with buffers that were made for all tokens."""
    length = [prompt.shape[1]]
    kept = net.buffers_for(len(prompt), length[0] + 2 * TOKENS * (ROUNDS + 2))
    net(prompt, kept)

    def step() -> Tensor:
        logits = net(prompt[:, :1], kept, length[0])
        length[0] += 1
        return logits

    return step


def cached(net: Any, prompt: Tensor, mask: Tensor | None) -> Callable[[], Tensor]:
    """The same with x-transformers' cache, which is given all tokens and takes the last."""
    _, cache = net(prompt, return_intermediates=True)
    kept: list[Any] = [cache, torch.cat((prompt, prompt[:, :1]), 1)]

    def step() -> Tensor:
        logits, kept[0] = net(kept[1], return_intermediates=True, cache=kept[0])
        kept[1] = torch.cat((kept[1], prompt[:, :1]), 1)
        return logits

    return step


def again(net: Any, prompt: Tensor, mask: Tensor | None) -> Callable[[], Tensor]:
    """The same where nothing is kept: all tokens are read once more."""
    kept = [prompt]

    def step() -> Tensor:
        kept[0] = torch.cat((kept[0], prompt[:, :1]), 1)
        return net(kept[0])

    return step


class Decoder(NamedTuple):
    """A model, how it goes on token by token, and whether its rows may differ in length."""

    model: Model
    begin: Begin
    ragged: bool = False


def decoded() -> dict[str, Decoder]:
    """What decodes, by name: ours, then the plain transformer and the libraries that are there."""
    layouts: dict[str, Row] = {
        "attn ff": {}, "flash": {}, "gau": {}, "attn(window=512) ff": {}, "attn ff, kv_heads=4": {"attn_kv_heads": 4},
        "block_attn ff": {},
    }  # fmt: skip
    found = {
        name: Decoder(made(name.partition(",")[0], pos="rotary", **flags), stepping, True)
        for name, flags in layouts.items()
    }
    theirs = {"x-transformers, rotary, attn_flash": cached, "FLASH-pytorch FLASHTransformer": again}
    others = {name: Decoder(model, theirs[name]) for name, model in peers().items() if name in theirs}
    return {"floor": Decoder(Model(Plain), plainly), **found, **others}


def sizes(options: Any) -> Iterator[tuple[int, int, bool]]:
    """Rows, tokens of context, and whether the rows' lengths differ."""
    rows, contexts = ((1, 3), (5, 9)) if options.tiny else ((1, 64), (64, 2048))
    yield from ((b, n, False) for b in rows for n in contexts)
    yield rows[1], contexts[1], True


def lengths(rows: int, n: int, device: str) -> Tensor:
    """Rows of a fourth of n to all of it, to the right."""
    return torch.arange(n, device=device) < torch.linspace(n // 4 + 1, n, rows, device=device).long()[:, None]


def a_token(step: Callable[[], Any], device: str) -> tuple[float, float]:
    """Milliseconds, the median of some rounds; and the seconds that the first token took."""
    begun = time.perf_counter()
    step()
    synchronized(device)
    first = time.perf_counter() - begun
    for _ in range(WARM):
        step()
    found = []
    for _ in range(ROUNDS):
        synchronized(device)
        begun = time.perf_counter()
        for _ in range(TOKENS):
            step()
        synchronized(device)
        found.append(1000 * (time.perf_counter() - begun) / TOKENS)
    return median(found), first


def length_of(options: Any) -> int:
    return max(n for _, n, _ in sizes(options)) + 2 * TOKENS * (ROUNDS + 2)


@torch.no_grad()
def eager(name: str, options: Any) -> Iterator[Row]:
    scale, length, kind = scale_of(options), length_of(options), decoded()[name]
    net = placed(lambda: kind.model.build(scale, length), options).eval()
    for rows, n, ragged in sizes(options):
        if ragged and not kind.ragged:
            continue
        mask = lengths(rows, n, options.device) if ragged else None
        step = kind.begin(net, ids(rows, n, options.device), mask)
        ms, _ = a_token(step, options.device)
        yield {"size": said(rows, n, ragged), "ms": ms, **launched(step, options.device)}
        del step


def said(rows: int, n: int, ragged: bool) -> str:
    return f"b={rows} after {n}{' ragged' if ragged else ''}"


@torch.no_grad()
def compiled(layers: str, mode: str | None, options: Any) -> Iterator[Row]:
    """A quarter as deep, behind the longer context: eager, then with `compile_step`."""
    scale = shallow(options)
    way: Row = {"backend": options.backend} if mode is None else {"mode": mode}
    net = placed(lambda: ours(layers, scale, length_of(options), pos="rotary"), options).eval()
    for rows, n, ragged in sizes(options):
        if n != max(n for _, n, _ in sizes(options)):
            continue
        mask, times = lengths(rows, n, options.device) if ragged else None, []
        for fast in (False, True):
            net.compiled_step = None
            if fast:
                torch._dynamo.reset()  # a graph of its own for each number of rows
                net.compile_step(**way)
            step = stepping(net, ids(rows, n, options.device), mask)
            step = marked(step) if mode and fast else step
            times.append(a_token(step, options.device))
        (usual, _), (ms, first) = times
        row = {"size": said(rows, n, ragged), "depth": scale.depth, "ms": ms, "eager_ms": usual, "first_s": first}
        yield row | launched(step, options.device)


def marked(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Each token begins a new run of CUDA graphs."""

    def run() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return step()

    return run


def shallow(options: Any) -> Scale:
    scale = scale_of(options)
    return scale._replace(depth=max(1, scale.depth // 4))


def cases(options: Any) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    """Eager first, then compiled, without CUDA graphs and with them."""
    for name in decoded():
        yield name, functools.partial(eager, name, options)
    modes = {"compile_step": None, **({"CUDA graphs": "reduce-overhead"} if options.device.startswith("cuda") else {})}
    for name in ("flash", "attn ff", "gau"):
        for way, mode in modes.items():
            yield f"{name}, {way}", functools.partial(compiled, name, mode, options)
