"""What one call of PyTorch's costs a GPU: kernels, bytes, FLOPs, and the seconds these take at the least.

A kernel reads its inputs once and writes its results once; broadcast axes count at the size they really have, gathers
at what they gather. There is no credit for what may still lie in the L2 cache, so small intermediates are a little too
dear. What a function launches beside its kernel (a copy before it adds in place, a fill) is in LAUNCHES.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["H200", "Kernel", "Machine", "kernel_of", "numbers", "real_bytes", "seconds_of"]


class Machine(NamedTuple):
    """Rates a second (bytes, FLOPs), and what a call costs the host.

    Known of the H200 are its bandwidth and the peaks that the rates of products come from. ASSUMED are the rates of the
    attention kernels (what PyTorch's and Triton's are said to reach on Hopper), the least time of a kernel, and what an
    eager call takes the host.
    """

    name: str
    bandwidth: float
    half: float
    single: float
    double: float
    # Of attention, forward and backward: PyTorch's FlashAttention; its kernel that takes masks; FlexAttention.
    flash: tuple[float, float]
    efficient: tuple[float, float]
    flex: tuple[float, float]
    # Of products in a kernel written in Triton.
    triton: float
    least: float
    host: float

    def rate(self, dtype: torch.dtype) -> float:
        """Of products; those of float32 do not use TF32 unless they are told to."""
        return {torch.float32: self.single, torch.float64: self.double}.get(dtype, self.half)


H200 = Machine(
    name="H200", bandwidth=4.8e12, half=7.9e14, single=5.0e13, double=5.5e13, flash=(4.0e14, 3.2e14),
    efficient=(2.0e14, 1.5e14), flex=(3.5e14, 2.5e14), triton=4.5e14, least=2e-6, host=6e-6,
)  # fmt: skip


class Kernel(NamedTuple):
    """One call: what it launches, moves, multiplies, the seconds of that, and which of them bounds it."""

    name: str
    launches: int
    bytes: float
    flops: float
    seconds: float
    bound: str
    place: str = ""


# What costs the device nothing: memory that is only reserved, other names for the same memory.
FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted", "_unsafe_view",
    "lift_fresh", "_reshape_alias", "set_", "resize_", "record_stream", "_assert_async", "is_same_size", "sym_size",
    "_assert_scalar",
}  # fmt: skip
# Kernels that a function launches, and passes over its result that come on top of reading and writing once.
LAUNCHES = {
    "masked_fill": (2, 2), "constant_pad_nd": (2, 0), "scatter": (2, 2), "slice_backward": (2, 1), "cumsum": (2, 0),
    "select_backward": (2, 1), "index_put": (2, 2), "native_layer_norm_backward": (3, 0), "sort": (4, 2),
    "_fused_rms_norm_backward": (2, 0), "topk": (3, 2), "embedding_dense_backward": (4, 0), "index_add": (2, 2),
    "index_copy": (2, 2), "slice_scatter": (2, 1), "select_scatter": (2, 1), "scatter_add": (2, 2), "cummax": (2, 0),
}  # fmt: skip
GATHERS = {"gather", "index", "index_select", "embedding", "take_along_dim"}
SCATTERS = {"scatter", "index_put", "index_copy", "scatter_add", "index_add"}
# What writes without reading what was there.
WRITES = {
    "fill", "zero", "zeros", "ones", "full", "arange", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones",
    "new_full", "rand", "rand_like", "randn", "randn_like", "randint", "normal", "uniform", "exponential", "bernoulli",
    "scalar_tensor", "copy", "linspace", "eye",
}  # fmt: skip


def real_bytes(t: Tensor) -> int:
    """The memory that a tensor stands for; broadcast axes are there once."""
    count = t.element_size()
    for length, stride in zip(t.shape, t.stride(), strict=True):
        count *= length if stride or not length else 1
    return count


def numbers(t: Tensor) -> int:
    return t.numel() * t.element_size()


def seconds_of(machine: Machine, launches: int, moved: float, flops: float, rate: float) -> tuple[float, str]:
    """How long kernels take at the least, and why."""
    times = {"least": machine.least * launches, "memory": moved / machine.bandwidth, "math": flops / rate}
    bound = max(times, key=lambda name: times[name])
    return times[bound], bound


def products(name: str, args: tuple[Any, ...], out: Tensor | None) -> float:
    """FLOPs of matrix products and convolutions; those of everything else are nothing beside its bytes."""
    if name in ("mm", "bmm"):
        return 2.0 * args[0].numel() * args[1].shape[-1]
    if name in ("addmm", "_addmm_activation", "baddbmm", "addbmm"):
        return 2.0 * args[1].numel() * args[2].shape[-1]
    if name == "convolution" and out is not None:
        return 2.0 * out.numel() * args[1][0].numel()
    if name == "convolution_backward":
        return 4.0 * args[0].numel() * args[2][0].numel()
    return 0.0


def moved_by(name: str, in_place: bool, given: list[Tensor], outs: list[Tensor]) -> float:
    """Bytes that the kernel itself reads and writes."""
    written = sum(map(numbers, outs))
    if name in GATHERS:
        return 2 * written + sum(real_bytes(t) for t in given if not t.is_floating_point())
    if name in WRITES:
        return written + (sum(map(real_bytes, given[1:])) if name == "copy" else 0)
    if name in SCATTERS and in_place:
        return 2 * sum(map(real_bytes, given[1:]))
    return sum(map(real_bytes, given)) + written


def kernel_of(
    machine: Machine, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor], outs: list[Tensor]
) -> Kernel:
    """What a call of an ATen function costs (`add_` where it is in place); given: the tensors that it is to read."""
    in_place = name.endswith("_") and not name.endswith("__")
    base = name.rstrip("_") if in_place else name
    launches, passes = (1, 0) if in_place else LAUNCHES.get(base, (1, 0))
    moved, written = moved_by(base, in_place, given, outs), sum(map(numbers, outs))
    if base in ("baddbmm", "addbmm"):
        if kwargs.get("beta", 1) == 0:
            # What is there is not read.
            moved -= real_bytes(given[0])
        elif not in_place and not same_memory(given[0], outs[0]):
            # What is added to is copied to the result first.
            launches, passes = 2, 2
    moved += passes * written
    flops = products(base, args, outs[0] if outs else None)
    rate = machine.rate(outs[0].dtype) if outs else machine.single
    return Kernel(base, launches, moved, flops, *seconds_of(machine, launches, moved, flops, rate))


def same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata and a.storage_offset() == b.storage_offset()
