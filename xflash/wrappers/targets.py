"""Which token each of a row is to predict, and which of them are no targets."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ..base.checks import as_mask
from ..base.looks import within
from ..base.shapes import Bool, Int, Tensor
from ..generation.prompts import lengths_to_mask, prefix_of, row_lengths, token_ids

__all__ = ["check_targets", "in_front", "labelled", "next_tokens", "unseen_targets", "which_are_real"]


def next_tokens(
    labels: Int[Tensor, "b n"],
    mask: Bool[Tensor, "b n"] | None = None,
    doc_ids: Int[Tensor, "b n"] | None = None,
    ignore_index: int = -100,
) -> Int[Tensor, "b n-1"]:
    """The target of every token but the last column: the label of the row's next real token.

    `ignore_index` where a token is masked, no real one follows, or the next one belongs to another document, which is a
    run of equal `doc_ids` among real tokens.
    """
    n = labels.shape[1]
    if mask is None:
        targets, ours = labels[:, 1:], None if doc_ids is None else doc_ids[:, 1:] == doc_ids[:, :-1]
    else:
        index = torch.where(mask, torch.arange(n, device=mask.device), n)
        following = index[:, 1:].flip(1).cummin(1).values.flip(1)
        targets = F.pad(labels, (0, 1), value=ignore_index).gather(1, following)
        ours = mask[:, :-1]
        if doc_ids is not None:
            ours = ours & (F.pad(doc_ids, (0, 1)).gather(1, following) == doc_ids[:, :-1])
    return targets if ours is None else targets.masked_fill(~ours, ignore_index)


def unseen_targets(
    targets: Int[Tensor, "b n"],
    mask: Bool[Tensor, "b n"] | None,
    beside: Mapping[str, Any],
    ignore_index: int = -100,
) -> Int[Tensor, "b n"]:
    """The next tokens of a call's n tokens, `ignore_index` for those that its prefix shows to every token of it.

    beside: what the model is given beside its tokens; a prefix counts real tokens, embeddings in front included.
    """
    b, n = targets.shape
    prefix = prefix_of(beside, b)
    if prefix is None:
        return targets
    if isinstance(prefix, torch.Tensor):
        prefix = prefix[:, None].to(targets.device)
    seen = torch.arange(1, n + 1, device=targets.device)[None] if mask is None else mask.cumsum(1)
    # What follows the last real token is not among those that the call is given.
    shown = (seen < seen[:, -1:]) & (seen + in_front(beside) < prefix)
    return targets.masked_fill(shown, ignore_index)


def in_front(beside: Mapping[str, Any]) -> Int[Tensor, "b 1"] | int:
    """How many real embeddings stand in front of the tokens of a call."""
    front, real = (beside.get(name) for name in ("prepend_embeds", "prepend_mask"))
    if not isinstance(front, torch.Tensor) or front.dim() != 3:
        return 0
    counts = isinstance(real, torch.Tensor) and real.shape == front.shape[:2]
    return real.long().sum(1, keepdim=True) if counts else front.shape[1]


def check_targets(targets: Int[Tensor, "*n"], ignore_index: int, v: int) -> Int[Tensor, "*n"]:
    """The targets; ValueError for one outside the vocabulary, looked at as `within` does."""
    wanted = targets != ignore_index
    sentence = "the target {wrong} is not in the vocabulary of {count} tokens (0 to {high})"
    return torch.where(wanted, within(targets.where(wanted, 0), 0, v - 1, sentence), targets)


def labelled(
    x: Any, labels: Any, doc_ids: Any
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"], Int[Tensor, "b n"] | None]:
    """The ids of a loss, the labels (x itself unless given) and the documents; TypeError or ValueError for others."""
    x = token_ids("x", x)
    if x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, but a loss needs (b, n) with at least n = 2 tokens")
    labels = x if labels is None else token_ids("labels", labels)
    doc_ids = None if doc_ids is None else token_ids("doc_ids", doc_ids)
    for name, ids in (("labels", labels), ("doc_ids", doc_ids)):
        if ids is not None and ids.shape != x.shape:
            raise ValueError(f"{name} has shape {tuple(ids.shape)}, but x has {tuple(x.shape)}")
    return x, labels, doc_ids


def which_are_real(x: Int[Tensor, "b n"], mask: Any, lens: Any) -> Bool[Tensor, "b n"] | None:
    """What a mask and lengths say together; None where neither is given."""
    if mask is not None:
        mask = as_mask(mask, (x.shape[0], x.shape[1]))
    if lens is None:
        return mask
    rows = lengths_to_mask(row_lengths("lens", lens, x), x.shape[1])
    return rows if mask is None else mask & rows
