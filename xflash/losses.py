"""What a language model is trained towards: the targets of a row of tokens, and the loss on them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch.utils.checkpoint import checkpoint

from .sampling import wide
from .shapes import Bool, Float, Int, Tensor

__all__ = ["check_targets", "loss_in_chunks", "next_token_loss", "next_tokens"]


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


def next_token_loss(
    logits: Float[Tensor, "b n v"], targets: Int[Tensor, "b n"], ignore_index: int = -100
) -> Float[Tensor, ""]:
    """The mean cross-entropy, in nats, over targets that are not `ignore_index`; 0 when there are none."""
    total = F.cross_entropy(
        rearrange(wide(logits), "b n v -> (b n) v"), targets.flatten(), ignore_index=ignore_index, reduction="sum"
    )
    return total / (targets != ignore_index).sum().clamp(min=1)


def loss_in_chunks(
    head: Callable[[Float[Tensor, "b n d"]], Float[Tensor, "b n v"]],
    y: Float[Tensor, "b n d"],
    targets: Int[Tensor, "b n"],
    chunk: int,
    ignore_index: int = -100,
) -> Float[Tensor, ""]:
    """`next_token_loss(head(y), targets)` with the logits of `chunk` tokens at a time, made again for their gradients.

    There is never a tensor (b, n, v); the head is read once more than without. ValueError for a target that is not in
    the vocabulary.
    """

    def lost(piece: Tensor, wanted: Tensor) -> Tensor:
        logits = head(piece[None])[0]
        check_targets(wanted, ignore_index, logits.shape[-1])
        return F.cross_entropy(wide(logits), wanted, ignore_index=ignore_index, reduction="sum")

    pieces = zip(rearrange(y, "b n d -> (b n) d").split(chunk), targets.flatten().split(chunk), strict=True)
    # A head has no dropout: there is no chance to be kept.
    total = sum(checkpoint(lost, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces)
    return total / (targets != ignore_index).sum().clamp(min=1)


def check_targets(targets: Int[Tensor, "b n"], ignore_index: int, v: int) -> None:
    """ValueError for a target outside the vocabulary; looked at in eager mode on the CPU only."""
    if torch.compiler.is_compiling() or targets.device.type != "cpu":
        return
    wrong = targets[(targets != ignore_index) & ((targets < 0) | (targets >= v))]
    if len(wrong):
        raise ValueError(f"the target {int(wrong[0])} is not in the vocabulary of {v} tokens (0 to {v - 1})")
