"""`Compressor`: blocks of keys and values made shorter before they are kept (https://arxiv.org/abs/1911.05507)."""

from typing import Any, Literal

import torch
from einops import rearrange
from torch import nn

from ...base.shapes import Float, Tensor
from ...flags.flag import check_idle
from ..kernels.softmax import shared_attention, unit
from ..kernels.windows import Blocks, Older, Window
from .cosine import Cosine

__all__ = ["Compressor", "build_compressor", "reconstruction"]


class Compressor(nn.Module):
    """Every `factor` neighbouring tokens become one entry: their mean, their maximum, or a learned sum ('conv').

    `heads` counts those of keys and values together, each of which is compressed for itself; `blocks` is how many
    blocks a layer keeps.
    """

    def __init__(self, kind: Literal["conv", "mean", "max"], factor: int, blocks: int, heads: int, width: int):
        super().__init__()
        self.kind, self.factor, self.blocks = kind, factor, blocks
        self.conv: nn.Conv1d | None = None
        if kind == "conv":
            self.conv = nn.Conv1d(heads * width, heads * width, factor, stride=factor, groups=heads)

    def forward(
        self, k: Float[Tensor, "b g w c"], v: Float[Tensor, "b g w c"]
    ) -> tuple[Float[Tensor, "b g _ c"], Float[Tensor, "b g _ c"]]:
        """Keys and values of g blocks of w tokens, w a multiple of the factor."""
        if self.conv is not None:
            both = torch.cat((k, v), -1)
            short = self.conv(both.flatten(0, 1).mT).mT.unflatten(0, both.shape[:2])
            short_k, short_v = short.chunk(2, -1)
            return short_k, short_v
        grouped = [t.unflatten(2, (-1, self.factor)) for t in (k, v)]
        if self.kind == "mean":
            return grouped[0].mean(3), grouped[1].mean(3)
        return grouped[0].amax(3), grouped[1].amax(3)

    def older(self, folded: Blocks, state: Window | None) -> Older:
        """What is kept of blocks: those that fell out of the window already and those that will."""
        known = state is not None and state.older_k is not None and state.older_v is not None
        if known and folded.layout is None and isinstance(folded.full, int) and not folded.full:
            return Older(state.older_k, state.older_v, self.blocks)  # no block is closed, so nothing new is kept
        k, v = self(*folded.behind())
        if not known:
            heads = [t.new_zeros(t.shape[0], self.blocks, *t.shape[2:]) for t in (k, v)]
        else:
            heads = [state.older_k.to(k.dtype), state.older_v.to(v.dtype)]
        return Older(*(torch.cat((head, t), 1) for head, t in zip(heads, (k, v), strict=True)), self.blocks)


def build_compressor(kind: str, config: Any, kv_heads: int) -> Compressor | None:
    """What the flags ask for; ValueError where they contradict each other."""
    if config.compress is None:
        idle = ("compress_factor", "compress_blocks", "compress_loss")
        check_idle(config, idle, f"{kind}_compress is None", f"{kind}_")
        return None
    if config.compress_loss and config.compress != "conv":
        raise ValueError(
            f"{kind}_compress_loss=True, but {kind}_compress={config.compress!r} has no weights that could learn from "
            f"it; {kind}_compress='conv' has"
        )
    factor = config.compress_factor or 4
    if config.block_width % factor:
        raise ValueError(f"{kind}_compress_factor={factor} does not divide {kind}_block_width={config.block_width}")
    return Compressor(config.compress, factor, config.compress_blocks or 2, 2 * kv_heads, config.dim_head)


def reconstruction(
    compressor: Compressor,
    q: Float[Tensor, "b n _"],
    k: Float[Tensor, "b w c"],
    v: Float[Tensor, "b w c"],
    heads: int,
    scale: float,
    cosine: Cosine | None,
) -> Float[Tensor, "b n"]:
    """How far what queries read of a block's compressed entries is from what they read of the block, squared.

    The mean over channels, float32 at least, content only: no positions, no mask, no steps. Only the compressor learns
    from it.
    """
    q, k, v = q.detach(), k.detach(), v.detach()
    kv_heads = k.shape[2] * heads // q.shape[2]

    def seen(keys: Tensor, values: Tensor) -> Tensor:
        parts = ((q, heads), (keys, kv_heads), (values, kv_heads))
        rows, keys, values = (rearrange(t, "b n (h k) -> b h n k", h=h) for t, h in parts)
        if cosine is not None:
            rows, keys = (
                unit(t) * gain.detach().to(t.dtype) for t, gain in ((rows, cosine.q_gain), (keys, cosine.k_gain))
            )
        return shared_attention(rows, keys, values, scale=scale)

    short_k, short_v = (t[:, 0] for t in compressor(k[:, None], v[:, None]))
    gap = seen(short_k, short_v).to(torch.promote_types(q.dtype, torch.float32)) - seen(k, v)
    return gap.square().mean((1, 3))
