"""Training steps on a device, eager and compiled: the parts of `on_gpu.py` that time them.

Each model is measured in turn with a plain transformer of the same width and depth (`Plain`), which does nothing but
what PyTorch's fused attention and matrix products do: the ratio says what is paid beside them.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import median
from gpu_models import VOCABULARY, Plain, models, peers, scale_of
from torch import Tensor, nn

__all__ = ["cases", "compiled", "launched"]

Row = dict[str, Any]
Cases = Iterator[tuple[str, Callable[[], Iterator[Row]]]]


def is_gpu(device: str) -> bool:
    return device.startswith("cuda")


def synchronized(device: str) -> None:
    if is_gpu(device):
        torch.cuda.synchronize(device)


def placed(build: Callable[[], nn.Module], options: Any) -> nn.Module:
    """A module built on the device, in bfloat16 unless it is autocast."""
    torch.manual_seed(0)
    with torch.device(options.device):
        net = build()
    return net.to(options.device, torch.float32 if options.autocast else torch.bfloat16)


def ids(rows: int, n: int, device: str) -> Tensor:
    return torch.randint(VOCABULARY, (rows, n), generator=torch.Generator().manual_seed(0)).to(device)


def training(net: nn.Module, x: Tensor, beside: Row, options: Any, autocast: bool | None = None) -> Callable[[], None]:
    """Forward and backward."""
    beside = {name: t.to(x.device) for name, t in beside.items()}
    lowered = options.autocast if autocast is None else autocast
    net.train()

    def call() -> None:
        net.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16) if lowered else contextlib.nullcontext():
            y = net(x, **beside)
        logits = y[0] if isinstance(y, tuple) else y
        logits.float().square().mean().backward()

    return call


def duration(call: Callable[[], Any], device: str, times: int = 1) -> tuple[float, float]:
    """Milliseconds of a call on the device, and those the host was busy with it."""
    if is_gpu(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
    begun = time.perf_counter()
    for _ in range(times):
        call()
    host = 1000 * (time.perf_counter() - begun) / times
    if not is_gpu(device):
        return host, host
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / times, host


def in_turn(calls: dict[str, Callable[[], Any]], device: str, seconds: float) -> dict[str, tuple[float, float]]:
    """The medians of each call's times on device and host, over as many rounds as fit, two to nine."""
    first = {name: duration(call, device)[0] for name, call in calls.items()}
    rounds = min(9, max(2, int(1000 * seconds / sum(first.values()))))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(duration(call, device, 2 if first[name] < 100 else 1))
    return {name: (median([d for d, _ in times]), median([h for _, h in times])) for name, times in found.items()}


def launched(call: Callable[[], Any], device: str) -> Row:
    """Kernels of one call, what the device was busy with and how long, and CUDA graphs among it; nothing on a CPU."""
    if not is_gpu(device):
        return {}
    try:
        return traced(call, torch.profiler.ProfilerActivity.CUDA)
    except Exception as error:
        return {"untraced": f"{type(error).__name__}: {error}"[:200]}


def traced(call: Callable[[], Any], activity: Any) -> Row:
    """The same of a call that the profiler watches on one kind of device."""
    with torch.profiler.profile(activities=[activity]) as run:
        call()
        if activity == torch.profiler.ProfilerActivity.CUDA:
            torch.cuda.synchronize()
    spent: dict[str, list[float]] = {}
    graphs = 0
    for event in run.profiler.kineto_results.events():
        graphs += event.name() == "cudaGraphLaunch"
        if event.device_type().name == activity.name:
            spent.setdefault(event.name()[:90], []).append(event.duration_ns() / 1e6)
    longest = sorted(spent.items(), key=lambda item: -sum(item[1]))[:8]
    return {
        "launches": sum(map(len, spent.values())),
        "busy_ms": sum(map(sum, spent.values())),
        "graphs": graphs,
        "kernels": [[name, len(times), round(sum(times), 3)] for name, times in longest],
    }


def peak_of(call: Callable[[], Any], device: str) -> Row:
    """The memory a call takes beyond what is held already."""
    if not is_gpu(device):
        call()
        return {}
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    call()
    synchronized(device)
    return {"peak_gb": (torch.cuda.max_memory_allocated(device) - held) / 1e9}


class Floors:
    """The plain transformer of each length, built once."""

    def __init__(self, options: Any):
        self.options, self.nets = options, {}

    def call(self, rows: int, n: int, depth: int | None = None) -> Callable[[], None]:
        key = n, depth
        if key not in self.nets:
            self.nets = {key: placed(lambda: Plain(scale_of(self.options), n, depth), self.options)}
        return training(self.nets[key], ids(rows, n, self.options.device), {}, self.options)


def in_bits(net: nn.Module, x: Tensor, beside: Row, options: Any, peer: bool) -> tuple[Callable[[], None], str]:
    """A step that has run once, in the bits asked for; a peer that cannot train in them is autocast."""
    call = training(net, x, beside, options)
    try:
        call()
    except RuntimeError as error:
        if not peer or isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        call = training(net.float(), x, beside, options, autocast=True)
        call()
        return call, "autocast"
    return call, "autocast" if options.autocast else "bf16"


def timed(name: str, rows: int, n: int, floors: Floors, options: Any) -> Iterator[Row]:
    model = models()[name]
    net = placed(lambda: model.build(scale_of(options), n), options)
    x, device = ids(rows, n, options.device), options.device
    call, bits = in_bits(net, x, model.beside(rows, n), options, name in peers())
    net.zero_grad()  # gradients are among what a step takes
    row: Row = {"bits": bits, **peak_of(call, device)}
    floor = floors.call(rows, n)
    times = in_turn({"floor": floor, "net": call}, device, options.each)
    row |= {"ms": times["net"][0], "host_ms": times["net"][1], "floor_ms": times["floor"][0]}
    row |= {"ratio": times["net"][0] / times["floor"][0], "parameters": sum(p.numel() for p in net.parameters())}
    yield row | (launched(call, device) if n == scale_of(options).sizes[0][1] else {})


def floor_itself(rows: int, n: int, floors: Floors, options: Any) -> Iterator[Row]:
    call = floors.call(rows, n)
    call()
    row = peak_of(call, options.device)
    ms, host = in_turn({"": call}, options.device, options.each)[""]
    yield row | {"ms": ms, "host_ms": host, "ratio": 1.0} | launched(call, options.device)


def cases(options: Any) -> Cases:
    """Every model at every size, the shorter first."""
    floors = Floors(options)
    for rows, n in scale_of(options).sizes:
        yield f"{rows}x{n} floor", functools.partial(floor_itself, rows, n, floors, options)
        for name in models():
            yield f"{rows}x{n} {name}", functools.partial(timed, name, rows, n, floors, options)


def twice(name: str, floors: Floors, options: Any) -> Iterator[Row]:
    """Eager and compiled, a quarter as deep."""
    scale, (rows, n) = scale_of(options), scale_of(options).sizes[0]
    scale = scale._replace(depth=max(1, scale.depth // 4))
    model = models()[name]
    net = placed(lambda: model.build(scale, n), options)
    x = ids(rows, n, options.device)
    eager = training(net, x, model.beside(rows, n), options)
    fast = training(torch.compile(net, backend=options.backend), x, model.beside(rows, n), options)
    eager()
    begun = time.perf_counter()
    fast()
    synchronized(options.device)
    row = {"compile_s": time.perf_counter() - begun, "depth": scale.depth}
    peak = {"eager_gb": peak_of(eager, options.device).get("peak_gb"), **peak_of(fast, options.device)}
    floor = floors.call(rows, n, scale.depth)
    floor()
    times = in_turn({"floor": floor, "eager": eager, "net": fast}, options.device, options.each)
    row |= peak | {"ms": times["net"][0], "eager_ms": times["eager"][0], "host_ms": times["net"][1]}
    yield row | {"ratio": times["net"][0] / times["floor"][0]} | launched(fast, options.device)


def compiled(options: Any) -> Cases:
    """Training steps under torch.compile."""
    floors = Floors(options)
    for name in ("attn ff, rotary", "flash", "gau", "attn(window=512) ff", "attn ff, alibi", "flash*3 attn ff"):
        yield name, functools.partial(twice, name, floors, options)
