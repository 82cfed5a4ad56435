"""When `attn` reads its window block by block, and what the blocks see."""

from typing import Any

import torch

from ...base.looks import is_exporting
from ...base.shapes import Bool, Float, Int, Tensor
from ...base.state import Ctx
from ..kernels.bands import Band, band_biases, band_masks, pays
from ..positions.slots import Slots

__all__ = ["band_of", "pieces_of"]


def band_of(block: Any, ctx: Ctx, slots: Slots, n: int, m: int) -> Band | None:
    """What a block of attention sees of a call of n tokens and m slots; None where one matrix is to be read.

    That is where the queries are few, where somebody asks for the matrix or says what is in it, and where rows begin
    behind unlike numbers of tokens. An exported graph is one for all lengths.
    """
    config = block.config
    if config.window is None or n == 1 or not slots.alike or is_exporting():
        return None
    if not ctx.attn_mask is ctx.prefix is ctx.maps is None or not block.reader.fused or block.reader.adds:
        return None
    if ctx.relay.weighing and block.weighs():
        return None
    if config.sinks and (ctx.doc_ids is not None or (ctx.relative is not None and ctx.relative.biases)):
        # Sinks of each document, and far ones that have a bias too.
        return None
    band = Band(config.window, block.site.causal, n, m, config.sinks)
    return band if pays(band) else None


def pieces_of(
    band: Band, ctx: Ctx, heads: int, q: Float[Tensor, "b h n k"]
) -> tuple[list[Bool[Tensor, "_ 1 _ _"]], list[Float[Tensor, "1 h _ _"]] | None]:
    """Masks and biases of the pieces of a band, made once a call."""
    seen = band.window, band.causal, band.sinks
    masks = ctx.once(("band", *seen), lambda: band_masks(band, labels(band, ctx), q.device))
    relative: Any = ctx.relative
    if relative is None or not relative.biases:
        return masks, None

    def make() -> list[Float[Tensor, "1 h _ _"]]:
        return band_biases(band, lambda gap: relative.by_distance(gap, heads, q.dtype), q.device)

    return masks, ctx.once(("band bias", relative.biased_by, heads, q.dtype, *seen), make)


def labels(band: Band, ctx: Ctx) -> Int[Tensor, "b n"] | None:
    """What keeps tokens apart: their documents, and, seen both ways, whether they are real; None where nothing does.

    Tokens that are not see each other then, lest one see nothing.
    """
    real = None if band.causal else ctx.real(band.n)
    if real is None or ctx.doc_ids is None:
        return ctx.doc_ids if real is None else real.long()
    return torch.where(real, ctx.doc_ids, -1)
