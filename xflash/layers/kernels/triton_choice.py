"""Whether kernels in Triton are asked for, and can do what is to be done; nothing here imports triton."""

import functools
import importlib
import importlib.util
import os
from types import ModuleType

import torch

from ...base.shapes import Tensor

__all__ = ["triton_asked", "triton_groups_for"]

# GPUs that the kernels are compiled for in tests: Ampere and Hopper as they stand in data centres. Others may have less
# shared memory than a program takes.
CAPABILITIES = frozenset({(8, 0), (9, 0)})
# What sizes are multiples of, so that rows can be read in one: of the tiles of tensor cores too.
MULTIPLE = 16
# Tokens of a group from which on its matrix of weights is too large to be written down beside what the operators keep.
LONGEST = 1024


def triton_asked() -> bool:
    """Whether the environment variable XFLASH_TRITON asks for kernels in Triton; what is compiled keeps the answer."""
    return os.environ.get("XFLASH_TRITON", "0").lower() not in ("0", "false", "")


@functools.cache
def triton_there() -> bool:
    return importlib.util.find_spec("triton") is not None


def triton_groups_for(hidden: Tensor, gamma: Tensor, w: int) -> ModuleType | None:
    """The module that does what the operators of `fused_groups` do; None where they do it by PyTorch's own means.

    That is so unless XFLASH_TRITON=1, and then too for what is not half precision on an NVIDIA GPU of compute
    capability 8.0 or 9.0, for no tokens at all, and for sizes that the kernels are not made for: groups and channels of
    queries and of values in multiples of 16, groups of 1,024 at most. ImportError: asked for where triton is missing.
    """
    if not triton_asked() or hidden.device.type != "cuda" or torch.version.hip:
        return None
    if not triton_there():
        raise ImportError("XFLASH_TRITON=1 asks for kernels in Triton: pip install triton, or leave it unset")
    if not fits(hidden, gamma, w) or torch.cuda.get_device_capability(hidden.device) not in CAPABILITIES:
        return None
    return importlib.import_module(".triton_groups", __package__)


def fits(hidden: Tensor, gamma: Tensor, w: int) -> bool:
    """Whether the kernels take such numbers and sizes."""
    (b, n, c), k = hidden.shape, gamma.shape[1]
    aligned = all(size % MULTIPLE == 0 for size in (w, k, (c - k) // 2))
    return b * n > 0 and hidden.dtype in (torch.float16, torch.bfloat16) and aligned and w <= LONGEST
