"""The losses of tokens whose logits are a product, a chunk of them at a time: one operator, and its gradients."""

from typing import Any

import torch
import torch.nn.functional as F

from ...base.operator import operator
from ...base.shapes import Float, Int, Tensor
from .operators import gradients_of

__all__ = ["chunked_losses", "chunked_losses_backward", "token_losses"]


def token_losses(
    logits: Float[Tensor, "t v"], targets: Int[Tensor, " t"], ignore_index: int, smoothing: float, z: float
) -> Float[Tensor, " t"]:
    """The cross-entropy of each target, in nats, 0 where it is `ignore_index`.

    smoothing: the share of the target that all v tokens have alike.  z: the weight of (log sum exp logits)^2.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    options: dict[str, Any] = {"ignore_index": ignore_index, "reduction": "none", "label_smoothing": smoothing}
    losses = F.cross_entropy(logits, targets, **options)
    if z:
        losses = losses + z * logits.logsumexp(-1).square().masked_fill(targets == ignore_index, 0)
    return losses


@operator("chunked_losses")
def chunked_losses(
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    chunk: int,
    ignore_index: int,
    smoothing: float,
    z: float,
) -> Tensor:
    """`token_losses` of the logits y weight^T + bias (t, v) of t tokens, `chunk` of them at a time."""
    return in_chunks(y, weight, bias, targets, chunk, ignore_index, smoothing, z)


def in_chunks(
    y: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int, *how: Any
) -> Float[Tensor, " t"]:
    """`chunked_losses` by PyTorch's own means."""
    pieces = zip(y.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([token_losses(F.linear(piece, weight, bias), wanted, *how) for piece, wanted in pieces])


@chunked_losses.register_fake
def _(y, weight, bias, targets, chunk, ignore_index, smoothing, z):
    return y.new_empty(targets.shape, dtype=torch.promote_types(y.dtype, torch.float32))


@operator("chunked_losses_backward")
def chunked_losses_backward(
    grad: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    chunk: int,
    ignore_index: int,
    smoothing: float,
    z: float,
    want_y: bool,
    want_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of y, weight and bias, the latter summed in float32 at least; empty where none is wanted."""
    exact = torch.promote_types(y.dtype, torch.float32)
    dy, *sums = room_for_gradients(y, weight, bias, exact, want_y, want_weight)
    dweight, dbias = (t.zero_() for t in sums)
    for start in range(0, y.shape[0], chunk):
        rows = slice(start, start + chunk)
        piece = y[rows]
        slope = slopes(F.linear(piece, weight, bias), targets[rows], grad[rows], ignore_index, smoothing, z)
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


def slopes(
    logits: Float[Tensor, "t v"],
    targets: Int[Tensor, " t"],
    grad: Float[Tensor, " t"],
    ignore_index: int,
    smoothing: float,
    z: float,
) -> Float[Tensor, "t v"]:
    """The gradient of the logits: softmax minus what is wished for, and the slope of the z-loss."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counts, slope = (targets != ignore_index)[:, None], logits.softmax(-1)
    if z:
        slope = slope * (1 + 2 * z * logits.logsumexp(-1, keepdim=True))
    if smoothing:
        slope = slope - smoothing / logits.shape[-1]
    wished = torch.full_like(slope[:, :1], smoothing - 1)
    slope.scatter_add_(1, targets[:, None].where(counts, 0), wished)
    return slope.mul_(counts * grad[:, None])


def room_for_gradients(
    y: Tensor, weight: Tensor, bias: Tensor | None, exact: torch.dtype | None, want_y: bool, want_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for gradients, those of weight and bias in `exact` (None: in their own dtype)."""
    dy = y.new_empty(y.shape if want_y else 0)
    dweight = weight.new_empty(weight.shape if want_weight else 0, dtype=exact or weight.dtype)
    dbias = y.new_empty(0, dtype=exact) if bias is None else bias.new_empty(bias.shape, dtype=exact or bias.dtype)
    return dy, dweight, dbias


@chunked_losses_backward.register_fake
def _(grad, y, weight, bias, targets, chunk, ignore_index, smoothing, z, want_y, want_weight):
    return room_for_gradients(y, weight, bias, None, want_y, want_weight)


def keep_for_backward(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *held, targets = inputs[:4]
    ctx.save_for_backward(*held, targets)
    ctx.how = inputs[4:]


def backward(ctx: Any, grad: Tensor) -> tuple:
    y, weight, bias, targets = ctx.saved_tensors
    left = (None,) * (1 + len(ctx.how))
    if torch.is_grad_enabled():

        def slow(y, weight, bias):
            return (in_chunks(y, weight, bias, targets, *ctx.how),)

        return *gradients_of(slow, (y, weight, bias), ctx.needs_input_grad[:3], (grad,)), *left
    wanted = ctx.needs_input_grad[:2]
    dy, dweight, dbias = chunked_losses_backward(grad, y, weight, bias, targets, *ctx.how, *wanted)
    dy, dweight = (found if is_wanted else None for found, is_wanted in zip((dy, dweight), wanted, strict=True))
    return dy, dweight, None if bias is None else dbias, *left


chunked_losses.register_autograd(backward, setup_context=keep_for_backward)
