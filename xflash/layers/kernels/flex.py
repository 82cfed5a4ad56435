"""Softmax attention to the keys between two bounds of each query by PyTorch's FlexAttention, which compiles a kernel.

On a GPU only: it has no gradients on a CPU (torch 2.13). Blocks of keys that nobody sees are skipped, and a bias by
distance is read from a vector, so that there is no matrix of queries and keys; nor does the host wait for the bounds.
"""

import functools
import os
from typing import Any

import torch

from ...base.looks import transformed
from ...base.shapes import Float, Int, Tensor
from .bounded import bounds_of
from .tiles import Between

__all__ = ["attend_flex", "can_flex", "flex_mask"]

# Queries, and keys, that are read or skipped together.
BLOCK = 128
WIDTHS = (16, 32, 64, 128, 256)
# XFLASH_FLEX=0 leaves it out; read when it is imported.
WANTED = os.environ.get("XFLASH_FLEX", "1").lower() not in ("0", "false", "")
# Before 2.7 block masks of one's own know no lengths.
KNOWN = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7)


def can_flex(q: Float[Tensor, "b h n k"], v: Float[Tensor, "b g m e"], dropout: float) -> bool:
    """Whether FlexAttention can read this, and is wanted; not inside of another graph, where it was never tried."""
    if not (WANTED and KNOWN and q.is_cuda) or dropout or transformed() or torch.compiler.is_compiling():
        return False
    return q.element_size() < 8 and q.shape[3] in WIDTHS and v.shape[3] in WIDTHS


@functools.cache
def fused() -> Any:
    """FlexAttention as a kernel; imported when it is first needed."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def flex_mask(between: Between, m: int) -> Any:
    """The blocks of m keys that each block of queries sees, and the keys in them; made once for all layers."""
    from torch.nn.attention.flex_attention import BlockMask

    since, until = bounds_of(between)
    first, last = (edges(t, reduce) for t, reduce in ((since, torch.amin), (until - 1, torch.amax)))
    count = last - first + 1
    blocks = -(-m // BLOCK)
    index = (first[..., None] + torch.arange(blocks, device=since.device)).clamp(max=blocks - 1)

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        row = b if len(since) > 1 else 0
        return (j >= since[row, i]) & (j < until[row, i])

    return BlockMask.from_kv_blocks(
        count[:, None].int(),
        index[:, None].int().contiguous(),
        BLOCK_SIZE=BLOCK,
        mask_mod=seen,
        seq_lengths=(since.shape[1], m),
    )


def edges(t: Int[Tensor, "_ n"], reduce: Any) -> Int[Tensor, "_ j"]:
    """The least or the greatest block that each block of queries sees, of bounds as keys."""
    extra = -t.shape[1] % BLOCK
    t = torch.cat((t, t[:, -1:].expand(-1, extra)), 1)
    return reduce(t.unflatten(1, (-1, BLOCK)), -1) // BLOCK


def attend_flex(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b g m k"],
    v: Float[Tensor, "b g m e"],
    mask: Any,
    vector: Float[Tensor, "h l"] | None = None,
    scale: float = 1.0,
    read: Any = None,
) -> Float[Tensor, "b h n e"]:
    """`attend_bounded` of the mask that `flex_mask` made of the bounds; read: another `flex_attention`."""
    held: Any = vector
    # As a tensor: a number would be another kernel for each length.
    nearest = torch.full((), q.shape[2] - 1, device=q.device)

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + held[h, j - i + nearest]

    read = read or fused()
    shared = q.shape[1] != k.shape[1]
    return read(q, k, v, score_mod=None if vector is None else score, block_mask=mask, scale=scale, enable_gqa=shared)
