"""What queries read of a window block by block, the steps on their scores included."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ...base.shapes import Bool, Float, Tensor
from ..kernels.bands import Band, Front, attend_band
from .read import SoftmaxRead
from .step import Read

__all__ = ["read_band"]


def read_band(
    reader: SoftmaxRead,
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b g m k"],
    v: Float[Tensor, "b g m e"],
    band: Band,
    masks: list[Bool[Tensor, "_ 1 _ _"]],
    biases: Sequence[Float[Tensor, "1 h _ _"]] | None,
    memory: tuple[Float[Tensor, "b g t k"], Float[Tensor, "b g t e"]] | None,
    read: Read | None,
) -> Float[Tensor, "b h n e"] | None:
    """What the queries read; None where a step gives each of them other scores beside those of the keys.

    masks, biases: of the pieces of the band.  memory: keys and values that every query sees.
    """
    extra = reader.extra_scores(read).to(q.dtype) if reader.extra else None
    if extra is not None and (extra.shape[0] > 1 or extra.shape[2] > 1):
        return None
    mem_k, mem_v = (t.new_zeros(*t.shape[:2], 0, t.shape[3]) for t in (k, v)) if memory is None else memory
    t = mem_k.shape[2]
    if reader.meets:
        q, k = reader.met(q, torch.cat((mem_k, k), 2))
        mem_k, k = k.split((t, k.shape[2] - t), 2)
    front = Front(mem_k, mem_v) if t else None
    if extra is not None:
        # Keys and values of zero.
        mem_k, mem_v = (F.pad(kept, (0, 0, 0, extra.shape[3])) for kept in (mem_k, mem_v))
        front = Front(mem_k, mem_v, F.pad(extra, (t, 0)))
    dropout = reader.dropout if reader.training else 0.0
    return attend_band(q, k, v, band, masks, biases, front, reader.scale, dropout)
