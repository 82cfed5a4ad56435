"""What a language model is trained towards: the targets of a row of tokens, and the loss on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch.utils.checkpoint import checkpoint

from ..base.looks import transformed, within
from ..base.shapes import Bool, Float, Int, Tensor
from ..flags.flag import flag
from ..generation.prompts import prefix_of
from ..generation.sampling import wide
from ..layers.kernels.operators import as_autocast, gradients_of, operators_work

__all__ = [
    "Chunks",
    "Labels",
    "check_targets",
    "loss_in_chunks",
    "next_token_loss",
    "next_tokens",
    "summed_loss",
    "unseen_targets",
]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What stands for no label, and for no token."""

    ignore_index: int = flag(
        -100,
        "the label that is no target; where x holds it, the model reads pad_value",
        tried=({"ignore_index": 0, "pad_value": 1},),
    )
    pad_value: int = flag(
        0, "what generated rows hold behind their end token", at_least=0, tried="beside another ignore_index"
    )


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """How much of a loss is computed at once."""

    loss_chunk: int | None = flag(
        None, "tokens whose logits there are at a time, made again for their gradients (None: all, kept)", at_least=1,
        paper="https://arxiv.org/abs/2411.09009", tried=(5,),
    )  # fmt: skip


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


def next_token_loss(
    logits: Float[Tensor, "b n v"], targets: Int[Tensor, "b n"], ignore_index: int = -100
) -> Float[Tensor, ""]:
    """The mean cross-entropy, in nats, over targets that are not `ignore_index`; 0 when there are none."""
    total = F.cross_entropy(
        rearrange(wide(logits), "b n v -> (b n) v"), targets.flatten(), ignore_index=ignore_index, reduction="sum"
    )
    return total / (targets != ignore_index).sum().clamp(min=1)


def loss_in_chunks(
    net: Any, y: Float[Tensor, "b n d"], targets: Int[Tensor, "b n"], chunk: int, ignore_index: int = -100
) -> Float[Tensor, ""]:
    """`next_token_loss(net.logits(y), targets)` with the logits of `chunk` tokens at a time, made again for gradients.

    There is never a tensor (b, n, v); the head is read once more than without. Of a head that is a plain product
    (`net.head_as_product`, as TransformerWrapper has it) this is one node for torch.compile, whatever the length; where
    it is differentiated twice, all logits are kept. ValueError for a target that is not in the vocabulary.
    """
    flat = targets.flatten()
    product = net.head_as_product(y) if hasattr(net, "head_as_product") and operators_work() else None
    if product is not None:
        flat = check_targets(flat, ignore_index, product[1].shape[0])
        features, weight, bias = cast(Any, as_autocast(*product))
        total = summed_loss(rearrange(features, "b n d -> (b n) d"), weight, bias, flat, chunk, ignore_index)
    else:
        pieces = zip(rearrange(y, "b n d -> (b n) d").split(chunk), flat.split(chunk), strict=True)
        # A head has no dropout: there is no chance to be kept.
        again = partial(checkpoint, loss_of_piece, use_reentrant=False, preserve_rng_state=False)
        # Transforms have no rules for checkpoints either: there all logits are kept.
        loss = loss_of_piece if transformed() else again
        total = sum(loss(net, *piece, ignore_index) for piece in pieces)
    return total / (targets != ignore_index).sum().clamp(min=1)


def loss_of_piece(
    net: Any, piece: Float[Tensor, "n d"], wanted: Int[Tensor, " n"], ignore_index: int
) -> Float[Tensor, ""]:
    """The summed loss of some tokens, from logits of their own."""
    logits = net.logits(piece[None])[0]
    wanted = check_targets(wanted, ignore_index, logits.shape[-1])
    return F.cross_entropy(wide(logits), wanted, ignore_index=ignore_index, reduction="sum")


@torch.library.custom_op("xflash::summed_loss", mutates_args=())
def summed_loss(
    y: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int, ignore_index: int
) -> Tensor:
    """The summed cross-entropy of the logits y weight^T + bias (t, v) of t tokens, `chunk` of them at a time."""
    return summed(y, weight, bias, targets, chunk, ignore_index)


def summed(
    y: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int, ignore_index: int
) -> Float[Tensor, ""]:
    """`summed_loss` by PyTorch's own means."""
    total = y.new_zeros((), dtype=torch.promote_types(y.dtype, torch.float32))
    for piece, wanted in zip(y.split(chunk), targets.split(chunk), strict=True):
        logits = wide(F.linear(piece, weight, bias))
        total += F.cross_entropy(logits, wanted, ignore_index=ignore_index, reduction="sum")
    return total


@summed_loss.register_fake
def _(y, weight, bias, targets, chunk, ignore_index):
    return y.new_empty((), dtype=torch.promote_types(y.dtype, torch.float32))


@torch.library.custom_op("xflash::summed_loss_backward", mutates_args=())
def summed_loss_backward(
    grad: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    chunk: int,
    ignore_index: int,
    want_y: bool,
    want_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of y, weight and bias, the latter summed in float32 at least; empty where none is wanted."""
    exact = torch.promote_types(y.dtype, torch.float32)
    dy, *sums = room_for_gradients(y, weight, bias, exact, want_y, want_weight)
    dweight, dbias = (t.zero_() for t in sums)
    for start in range(0, y.shape[0], chunk):
        rows = slice(start, start + chunk)
        piece, wanted = y[rows], targets[rows]
        counts = (wanted != ignore_index)[:, None]
        # Softmax minus one at the target.
        slope = wide(F.linear(piece, weight, bias)).softmax(-1)
        slope.scatter_add_(1, wanted[:, None].where(counts, 0), -torch.ones_like(slope[:, :1]))
        slope = slope.mul_(counts * grad)
        if bias is not None:
            dbias += slope.sum(0)
        slope = slope.to(y.dtype)
        if want_y:
            torch.mm(slope, weight, out=dy[rows])
        if want_weight and exact == y.dtype:
            dweight.addmm_(slope.T, piece)
        elif want_weight:
            dweight += slope.T @ piece
    return dy, dweight.to(weight.dtype), dbias if bias is None else dbias.to(bias.dtype)


def room_for_gradients(
    y: Tensor, weight: Tensor, bias: Tensor | None, exact: torch.dtype | None, want_y: bool, want_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for gradients, those of weight and bias in `exact` (None: in their own dtype)."""
    dy = y.new_empty(y.shape if want_y else 0)
    dweight = weight.new_empty(weight.shape if want_weight else 0, dtype=exact or weight.dtype)
    dbias = y.new_empty(0, dtype=exact) if bias is None else bias.new_empty(bias.shape, dtype=exact or bias.dtype)
    return dy, dweight, dbias


@summed_loss_backward.register_fake
def _(grad, y, weight, bias, targets, chunk, ignore_index, want_y, want_weight):
    return room_for_gradients(y, weight, bias, None, want_y, want_weight)


def keep_for_backward(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *held, ctx.chunk, ctx.ignore_index = inputs
    ctx.save_for_backward(*held)


def backward(ctx: Any, grad: Tensor) -> tuple:
    y, weight, bias, targets = ctx.saved_tensors
    if torch.is_grad_enabled():

        def slow(y, weight, bias):
            return (summed(y, weight, bias, targets, ctx.chunk, ctx.ignore_index),)

        return *gradients_of(slow, (y, weight, bias), ctx.needs_input_grad[:3], (grad,)), None, None, None
    wanted = ctx.needs_input_grad[:2]
    dy, dweight, dbias = summed_loss_backward(grad, y, weight, bias, targets, ctx.chunk, ctx.ignore_index, *wanted)
    dy, dweight = (found if is_wanted else None for found, is_wanted in zip((dy, dweight), wanted, strict=True))
    return dy, dweight, None if bias is None else dbias, None, None, None


summed_loss.register_autograd(backward, setup_context=keep_for_backward)


def check_targets(targets: Int[Tensor, "*n"], ignore_index: int, v: int) -> Int[Tensor, "*n"]:
    """The targets; ValueError for one outside the vocabulary, looked at as `within` does."""
    wanted = targets != ignore_index
    sentence = "the target {wrong} is not in the vocabulary of {count} tokens (0 to {high})"
    return torch.where(wanted, within(targets.where(wanted, 0), 0, v - 1, sentence), targets)
