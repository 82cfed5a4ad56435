"""What the decoder of an `XTransformer` attends to, and what both sides hand on from layer to layer."""

from typing import Any, NamedTuple

import torch

from ..base.checks import as_mask
from ..base.shapes import Bool, Float, Int, Tensor

__all__ = ["Hiddens", "Source", "encoded"]


class Source(NamedTuple):
    """What the decoder attends to: the encoder's output (b, c, d), and which of its tokens are real."""

    context: Float[Tensor, "b c d"]
    mask: Bool[Tensor, "b c"] | None


class Hiddens(NamedTuple):
    """The streams of both sides, a list each: what the first layer gets, what each one leaves, what the stack gives."""

    encoder: list[Float[Tensor, "b c d"]]
    decoder: list[Float[Tensor, "b n d"]]


def encoded(
    encoder: Any,
    src: Int[Tensor, "b c"],
    mask: Tensor | None,
    attn_mask: Tensor | None,
    prepend_embeds: Float[Tensor, "b p d"] | None,
    *,
    src_prepend_mask: Tensor | None,
    src_condition: Float[Tensor, "b *c _"] | None,
    return_hiddens: bool = False,
) -> tuple[Source, list[Tensor]]:
    """What an encoder makes of a source, and its streams, none unless `return_hiddens`."""
    ahead: dict[str, Any] = {"prepend_embeds": prepend_embeds, "prepend_mask": src_prepend_mask}
    ahead |= {"condition": src_condition, "return_hiddens": return_hiddens}
    found = encoder(src, mask, attn_mask=attn_mask, **ahead)
    context, hiddens = found if return_hiddens else (found, [])
    if mask is None and src_prepend_mask is None:
        return Source(context, None), hiddens
    b, c = src.shape
    parts = [src.new_ones(b, c, dtype=torch.bool) if mask is None else as_mask(mask, (b, c))]
    if prepend_embeds is not None:
        p = prepend_embeds.shape[1]
        front = src_prepend_mask
        parts.insert(0, src.new_ones(b, p, dtype=torch.bool) if front is None else as_mask(front, (b, p)))
    return Source(context, torch.cat(parts, 1)), hiddens
