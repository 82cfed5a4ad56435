"""What a model of tokens is trained towards: the losses of its targets, and how they are put together."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..base.checks import check_switch, given, shown
from ..base.frozen import frozen
from ..base.looks import transformed, within
from ..base.registry import nearest
from ..base.shapes import Bool, Float, Int, Tensor
from ..flags.flag import flag
from ..generation.sampling import wide
from ..layers.kernels.chunked_losses import chunked_losses, token_losses
from ..layers.kernels.operators import as_autocast, operators_work
from .targets import check_targets

__all__ = [
    "REDUCTIONS",
    "Asked",
    "Chunks",
    "Criterion",
    "Labels",
    "Terms",
    "adds_own",
    "answer",
    "asked",
    "next_token_loss",
    "reduced",
    "with_own",
]

# How the losses of single targets become what a call gives.
REDUCTIONS = ("mean", "sum", "none")


@frozen
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


@frozen
class Chunks:
    """How much of a loss is computed at once."""

    loss_chunk: int | None = flag(
        None, "tokens whose logits there are at a time, made again for their gradients (None: all, kept)", at_least=1,
        paper="https://arxiv.org/abs/2411.09009", tried=(5,),
    )  # fmt: skip


@frozen
class Terms:
    """What a target's loss is beside its cross-entropy."""

    label_smoothing: float = flag(
        0.0, "share of each target that all tokens of the vocabulary have alike", at_least=0, below=1,
        paper="https://arxiv.org/abs/1512.00567", tried=(0.1,),
    )  # fmt: skip
    z_loss: float = flag(
        0.0, "weight of the square of the logits' log-sum-exp, which keeps it small", at_least=0,
        paper="https://arxiv.org/abs/2204.02311", tried=(0.01,),
    )  # fmt: skip


class Criterion(NamedTuple):
    """How the loss of a target is computed: the fields of the Configs above, as a trainer has them."""

    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    loss_chunk: int | None = None

    @classmethod
    def of(cls, trainer: Any) -> "Criterion":
        """That of a trainer, whose attributes they are."""
        return cls(*(getattr(trainer, name, cls._field_defaults[name]) for name in cls._fields))

    @property
    def how(self) -> tuple[int, float, float]:
        """What `token_losses` takes beside logits and targets."""
        return self.ignore_index, self.label_smoothing, self.z_loss

    def shown(self) -> str:
        """What is not at its default, as text behind a trainer's own."""
        names = [name for name in self._fields[1:] if getattr(self, name) != self._field_defaults[name]]
        return "".join(f", {name}={getattr(self, name)}" for name in names)

    def of_logits(self, logits: Float[Tensor, "b n v"], targets: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """The loss of each target, in nats, 0 for what is none; ValueError for one that is not in the vocabulary."""
        logits = rearrange(wide(logits), "b n v -> (b n) v")
        targets = check_targets(targets, self.ignore_index, logits.shape[-1])
        losses = token_losses(logits, targets.flatten(), *self.how)
        return losses.view(targets.shape)

    def of_embeddings(self, net: Any, y: Float[Tensor, "b n d"], targets: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """`of_logits(net.logits(y), targets)` with the logits of `loss_chunk` tokens at a time, made again for
        gradients.

        There is never a tensor (b, n, v); the head is read once more than without. Of a head that is a plain product
        (`net.head_as_product`, as TransformerWrapper has it) this is one node for torch.compile, whatever the length;
        where it is differentiated twice, all logits are kept.
        """
        flat, chunk = targets.flatten(), cast(int, self.loss_chunk)
        product = net.head_as_product(y) if hasattr(net, "head_as_product") and operators_work() else None
        if product is not None:
            flat = check_targets(flat, self.ignore_index, product[1].shape[0])
            features, weight, bias = cast(Any, as_autocast(*product))
            losses = chunked_losses(rearrange(features, "b n d -> (b n) d"), weight, bias, flat, chunk, *self.how)
        else:
            pieces = zip(rearrange(y, "b n d -> (b n) d").split(chunk), flat.split(chunk), strict=True)
            losses = torch.cat([self.again()(net, *piece) for piece in pieces])
        return losses.view(targets.shape)

    def again(self) -> Callable[..., Tensor]:
        """`of_piece`, computed again for its gradients."""
        # Transforms have no rules for checkpoints: there all logits are kept.
        if transformed():
            return self.of_piece
        # A head has no dropout: there is no chance to be kept.
        return partial(checkpoint, self.of_piece, use_reentrant=False, preserve_rng_state=False)

    def of_piece(self, net: Any, piece: Float[Tensor, "n d"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The losses of some tokens, from logits of their own."""
        return self.of_logits(net.logits(piece[None]), targets[None])[0]


class Asked(NamedTuple):
    """How a call wants its losses put together, and what each token counts for as a target (None: for one)."""

    reduction: str = "mean"
    weights: Float[Tensor, "b n"] | None = None
    count: bool = False


def asked(reduction: Any, weights: Any, return_count: Any, x: Tensor) -> Asked:
    """What a call says of its loss; TypeError or ValueError for what cannot be meant."""
    if not isinstance(reduction, str):
        raise TypeError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, not {shown(reduction)}")
    if reduction not in REDUCTIONS:
        known = ", ".join(map(repr, REDUCTIONS))
        raise ValueError(f"reduction={shown(reduction)} is not known{nearest(reduction, REDUCTIONS)} (known: {known})")
    check_switch("return_count", return_count)
    if weights is None:
        return Asked(reduction, None, return_count)
    if not isinstance(weights, torch.Tensor) or not weights.is_floating_point():
        raise TypeError(f"loss_weights must be a floating-point tensor {tuple(x.shape)}, not {given(weights)}")
    if weights.shape != x.shape:
        raise ValueError(f"loss_weights has shape {tuple(weights.shape)}, but x has {tuple(x.shape)}")
    weights = weights.detach()
    if reduction == "mean":
        sentence = "{name} must be at least 0 where the loss is a mean, not {wrong}: give reduction='sum'"
        weights = within(weights, 0, 2**63 - 1, sentence, "loss_weights")
    return Asked(reduction, weights, return_count)


def reduced(
    losses: Float[Tensor, "b n"],
    targets: Bool[Tensor, "b n"],
    ask: Asked = Asked(),  # noqa: B008
    weights: Float[Tensor, "b n"] | None = None,
    count: Tensor | None = None,
) -> list[Tensor]:
    """The loss that was asked for, and behind it what the mean divides by where that was asked for too.

    targets: which tokens are such.  weights: what each counts for.  count: what to divide by (None: the number of
    targets, or the sum of their weights).
    """
    counts = targets if weights is None else weights.to(losses.dtype).masked_fill(~targets, 0)
    if weights is not None:
        losses = losses * counts
    count = counts.sum() if count is None else count
    loss = losses if ask.reduction == "none" else losses.sum()
    if ask.reduction == "mean":
        # Without any target the loss is 0.
        loss = loss / (count + (count == 0))
    return [loss, count] if ask.count else [loss]


def adds_own(trainer: nn.Module, net: Any) -> bool:
    """Whether layers of the net have a loss of their own (moe_balance_loss), which a trainer adds while it trains."""
    return trainer.training and getattr(net, "has_auxiliary_loss", False)


def with_own(
    losses: Float[Tensor, "b n"], targets: Bool[Tensor, "b n"], own: Float[Tensor, ""] | None
) -> Float[Tensor, "b n"]:
    """Each target's loss with what layers lose of their own, so that their mean is the sum of the two losses."""
    return losses if own is None else losses + own.to(losses.dtype) * targets


def answer(found: list[Tensor], further: list[Any]) -> Any:
    """What a call gives: a loss alone, or a tuple of it and what else was asked for."""
    return tuple(found + further) if len(found) + len(further) > 1 else found[0]


def next_token_loss(
    logits: Float[Tensor, "b n v"], targets: Int[Tensor, "b n"], ignore_index: int = -100
) -> Float[Tensor, ""]:
    """The mean cross-entropy, in nats, over targets that are not `ignore_index`; 0 when there are none."""
    return reduced(Criterion(ignore_index).of_logits(logits, targets), targets != ignore_index)[0]
