"""Whether kernels in Triton are asked for, and can do what is to be done; nothing here imports triton."""

import functools
import importlib
import importlib.util
import os
from types import ModuleType

import torch

from ...base.shapes import Tensor

__all__ = ["triton_asked", "triton_groups_for"]

# Tokens of a group and channels below which tensor cores would multiply mostly zeros; tokens beyond which a matrix a
# group is too large to be kept beside what the operators keep.
LEAST, LONGEST = 16, 1024


@functools.cache
def triton_asked() -> bool:
    """Whether the environment variable XFLASH_TRITON asks for kernels in Triton; read when it is first needed."""
    return os.environ.get("XFLASH_TRITON", "0").lower() not in ("0", "false", "")


@functools.cache
def triton_there() -> bool:
    return importlib.util.find_spec("triton") is not None


def triton_groups_for(hidden: Tensor, gamma: Tensor, w: int) -> ModuleType | None:
    """The module that does what the operators of `fused_groups` do; None where they do it by PyTorch's own means.

    That is so unless XFLASH_TRITON=1, and then too for what isn't half precision on an NVIDIA GPU from Ampere on, for
    nothing, and for groups outside 16 .. 1,024 tokens. ImportError: it is asked for on a GPU, and triton is missing.
    """
    if not triton_asked() or hidden.device.type != "cuda" or torch.version.hip:
        return None
    if not triton_there():
        raise ImportError("XFLASH_TRITON=1 asks for kernels in Triton: pip install triton, or leave it unset")
    if not fits(hidden, gamma, w) or torch.cuda.get_device_capability(hidden.device) < (8, 0):
        return None
    return importlib.import_module(".triton_groups", __package__)


def fits(hidden: Tensor, gamma: Tensor, w: int) -> bool:
    """Whether the kernels take such numbers and sizes."""
    k = gamma.shape[1]
    smallest = min(w, k, (hidden.shape[2] - k) // 2)
    return hidden.numel() > 0 and hidden.dtype in (torch.float16, torch.bfloat16) and smallest >= LEAST and w <= LONGEST
