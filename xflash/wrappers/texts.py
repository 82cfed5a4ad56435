"""A text that is read segment by segment: its tokens, what each is to predict, and which rows start anew where."""

from typing import Any, NamedTuple

import torch

from ..base.checks import as_binary, as_mask, given, is_integral
from ..base.looks import has_values
from ..base.shapes import Bool, Int, Tensor
from ..generation.prompts import token_ids
from .losses import Asked, asked
from .targets import next_tokens

__all__ = ["Text", "as_text"]


class Text(NamedTuple):
    """Tokens to read, the token each is to predict, which of them are real, which rows start anew at a segment, and how
    the loss is asked for, with what each target counts for.
    """

    inputs: Int[Tensor, "b n"]
    targets: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"] | None = None
    resets: tuple[Bool[Tensor, " b"] | None, ...] = ()
    ask: Asked = Asked()


def as_text(
    x: Any,
    segment_len: int,
    mask: Tensor | None = None,
    labels: Any = None,
    reset: Any = None,
    ignore_index: int = -100,
    pad_value: int = 0,
    loss: tuple[Any, Any, Any] = ("mean", None, False),
) -> Text:
    """What a call gave as a Text: x without its last column, towards x without its first; TypeError or ValueError.

    loss: what the call says of its reduction, weights and count.
    """
    ids = token_ids("x", x)
    if ids.dim() != 2 or ids.shape[1] < 2:
        raise ValueError(f"x has shape {tuple(ids.shape)}, but a loss needs (b, n) with at least n = 2 tokens")
    b, n = ids.shape
    labels = ids if labels is None else token_ids("labels", labels)
    if labels.shape != ids.shape:
        raise ValueError(f"labels has shape {tuple(labels.shape)}, but x has {tuple(ids.shape)}")
    inputs, ask = ids[:, :-1].masked_fill(ids[:, :-1] == ignore_index, pad_value), asked(*loss, ids)
    if mask is not None:
        mask = as_mask(mask, (b, n))
        inputs = inputs.masked_fill(~mask[:, :-1], 0)
    count = -(-(n - 1) // segment_len)
    starts = as_starts(reset, b, count)
    documents, resets = None, ()
    if starts is not None:
        segment = (torch.arange(n, device=ids.device) // segment_len).clamp(max=count - 1)
        documents = starts.long().cumsum(1)[:, segment]
        # One look at the data a call spares the net a reset that names no row, which is not free.
        wanted = starts.any(0).tolist() if has_values(starts) else [True] * count
        resets = tuple(column if any_row else None for column, any_row in zip(starts.unbind(1), wanted, strict=True))
    targets = next_tokens(labels, mask, documents, ignore_index)
    if ask.weights is not None:
        ask = ask._replace(weights=next_tokens(ask.weights, mask, documents, 0))
    return Text(inputs, targets, None if mask is None else mask[:, :-1], resets, ask)


def as_starts(reset: Any, b: int, count: int) -> Bool[Tensor, "b s"] | None:
    """`reset` as one column of booleans a segment; TypeError or ValueError for what is none."""
    if reset is None:
        return None
    if not is_integral(reset, booleans=True):
        raise TypeError(f"reset must be a boolean tensor, ({b},) or ({b}, {count}), not {given(reset)}")
    reset = as_binary("reset", reset)
    if tuple(reset.shape) == (b,):
        return torch.cat((reset[:, None], reset.new_zeros(b, count - 1)), 1)
    if tuple(reset.shape) != (b, count):
        raise ValueError(
            f"reset must be ({b},), or ({b}, {count}) with a column for each of the {count} segments, "
            f"not {tuple(reset.shape)}"
        )
    return reset
