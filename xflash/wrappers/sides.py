"""Checks of the two sides of an `XTransformer`, and of what its calls are given for them."""

from typing import Any

import torch

from ..base.checks import given
from ..base.shapes import Tensor
from ..stack.face import AttentionLayers
from ..stack.inputs.context import unplaced
from .options import check_needs_nothing
from .transformer import TransformerWrapper

__all__ = ["check_plain", "check_rows", "check_sides", "check_tied", "starts"]


def check_plain(prefix: str, side: TransformerWrapper) -> None:
    """ValueError for a side with one output a row, with ids that no call has a place for, or with a memory."""
    if side.pooled is not None:
        flag = f"{prefix}{side.pooled.kind}=True"
        if prefix == "enc_":
            raise ValueError(f"{flag} makes one embedding of the source, but the decoder attends to each of its tokens")
        raise ValueError(f"{flag} pools the decoder's outputs: it would predict no next token")
    if side.embedding.embed_num_tokens:
        raise ValueError(f"{prefix}embed_num_tokens is set, but a source and a target are token ids only")
    if side.max_mem_len is not None:
        raise ValueError(f"{prefix}max_mem_len={side.max_mem_len} is set, but nothing comes before a target")


def check_sides(encoder: AttentionLayers, decoder: AttentionLayers, dim: int) -> None:
    """ValueError where the encoder attends to a context, or the decoder to none or to one of another width.

    Neither side may need what no call hands on.
    """
    for side in (encoder, decoder):
        check_needs_nothing(side, "an encoder and a decoder are given conditions only", but="condition")
    if any(block.takes_context for block in encoder.blocks()):
        raise ValueError(f"the encoder's layout {encoder.layout!r} attends to a context, but the encoder has none")
    widths = {block.context_width() for block in decoder.blocks() if block.takes_context}
    if not widths:
        raise ValueError(f"the decoder's layout {decoder.layout!r} does not attend to the encoder")
    if widths != {dim}:
        raise ValueError(f"the decoder attends to a context of width {widths.pop()}, but the encoder's has dim={dim}")
    if idle := unplaced(decoder):
        raise ValueError(
            f"the decoder's pos={idle!r} has nothing to turn in the layout {decoder.layout!r}: the encoder's "
            "tokens have no places among the decoder's"
        )


def check_tied(encoder: TransformerWrapper, decoder: TransformerWrapper) -> None:
    """ValueError where one token embedding cannot serve both sides."""
    if decoder.arguments.get("token_emb") is not None:
        raise ValueError("tie_token_emb=True gives the decoder the encoder's embedding: give enc_token_emb")
    for name, one, other in (
        ("num_tokens", encoder.num_tokens, decoder.num_tokens),
        ("emb_dim", encoder.embedding.width, decoder.embedding.width),
        ("l2norm_embed", *(getattr(side.embedding.token_emb, "l2norm", False) for side in (encoder, decoder))),
    ):
        if one != other:
            raise ValueError(f"tie_token_emb=True needs enc_{name} ({one}) to be dec_{name} ({other})")


def check_rows(context: Tensor, rows: int, name: str) -> None:
    """ValueError unless there is one target row for each row of the source."""
    if context.shape[0] != rows:
        raise ValueError(f"src has {context.shape[0]} rows, but {name} has {rows}: give one for each")


def starts(tgt_start: Any) -> int:
    """How many starts there are; TypeError for what holds none."""
    if isinstance(tgt_start, (list, tuple)):
        return len(tgt_start)
    if not isinstance(tgt_start, torch.Tensor):
        raise TypeError(f"tgt_start must be a tensor of token ids, or a list of them, not {given(tgt_start)}")
    return tgt_start.shape[:-1].numel()
