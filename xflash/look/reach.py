"""`receptive_field`: how much what a layer has of a token depends on the tokens around it, by gradient."""

from collections.abc import Container, Iterable
from typing import Any

import torch

from ..base.checks import check_count
from ..base.shapes import Float, Tensor
from ..base.state import StackState
from ..stack.face import AttentionLayers
from ..stack.noted import Noted
from ..stack.watched import watched_by
from .capture import capture
from .layers import stacks_of
from .picture import picture

__all__ = ["plot_receptive_field", "receptive_field"]


@torch.enable_grad()
def receptive_field(
    model: Any, *inputs: Any, at: int = -1, draws: int | None = 4, seed: int = 0, **named: Any
) -> dict[str, Float[Tensor, " n"]]:
    """How much the stream behind each layer, at token `at`, moves with what the stack is given at each token.

    For each layer and token the Frobenius norm of the matrix of derivatives (d, d), in the mean of squares over the
    rows of the batch: exactly zero where the layer cannot see. draws: random directions of which it is estimated
    (None: exact, as many passes backwards as the stream has channels). inputs, named: of a call of the model, as it is:
    `model.eval()` leaves dropout out. Of a model with several stacks each is asked about its own tokens, in its last
    call.
    """
    if draws is not None:
        check_count("draws", draws)
    found, stacks = {}, stacks_of(model)
    read = Leaves(stacks.values())
    with watched_by(read), capture(model, "hidden") as seen:
        model(*inputs, **named)
    for call in {call.stack: call for call in seen.calls}.values():
        x = read[stacks[call.stack]]
        at_token = check_at(at, x.shape[1])
        for label, hidden in call["hidden"].items():
            found[label] = field_of(hidden[:, at_token], x, draws, seed)
    return found


class Leaves(dict):
    """What each stack has read in its last call, cut off from what made it."""

    def __init__(self, stacks: Iterable[AttentionLayers]):
        super().__init__()
        self.stacks: Container[Any] = tuple(stacks)

    def asked_of(self, stack: AttentionLayers) -> tuple[str, ...]:
        return ()

    def given(self, stack: AttentionLayers, x: Tensor) -> Tensor:
        self[stack] = x.detach().requires_grad_()
        return self[stack]

    def take(self, stack: AttentionLayers, noted: Noted, state: StackState | None) -> None:
        """Nothing is asked for."""


def check_at(at: int, n: int) -> int:
    """The token, counted from the front; ValueError where there is none."""
    if not isinstance(at, int) or isinstance(at, bool) or not -n <= at < n:
        raise ValueError(f"at must be one of the {n} tokens that the stack is given, -{n} to {n - 1}, not {at!r}")
    return at % n


def field_of(y: Float[Tensor, "b d"], x: Float[Tensor, "b n d"], draws: int | None, seed: int) -> Float[Tensor, " n"]:
    """The norm of the derivatives of y with respect to each token."""
    if draws is None:
        directions = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
    else:
        directions = torch.randn(draws, y.shape[1], generator=torch.Generator().manual_seed(seed)).to(y)
    total = torch.zeros(x.shape[1], dtype=x.dtype, device=x.device)
    for direction in directions:
        # Rows do not depend on each other, so that one pass is of all of them.
        (grad,) = torch.autograd.grad((y @ direction).sum(), x, retain_graph=True)
        total += grad.square().sum(-1).mean(0)
    return (total if draws is None else total / draws).sqrt()


def plot_receptive_field(
    model: Any, *inputs: Any, at: int = -1, draws: int | None = 4, seed: int = 0, **named: Any
) -> Any:
    """A matplotlib figure of `receptive_field`: a line for each layer, by the distance, against the token itself.

    Each point is the mean over as many tokens as lie between it and twice as far: 1, 2 and 3, 4 to 7, and so on. What
    cannot be seen has no point. Where tokens ahead are seen, those back and ahead are taken together.
    """
    fields = receptive_field(model, *inputs, at=at, draws=draws, seed=seed, **named)
    figure = picture(6, 4)
    axes = figure.add_subplot()
    for label, field in fields.items():
        axes.plot(*zip(*by_octave(field.cpu(), at % len(field)), strict=True), "o-", ms=3, label=label)
    axes.set(yscale="log", xlabel="tokens away", ylabel="gradient, against the token's own")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(fontsize=7)
    return figure


def by_octave(field: Float[Tensor, " n"], at: int) -> list[tuple[float, float]]:
    """(distance, mean at that distance up to twice as far) for what is seen, as a share of the token's own."""
    far = (torch.arange(len(field)) - at).abs()
    found, start = [], 1
    while start <= int(far.max()):
        value = float(field[(far >= start) & (far < 2 * start)].mean() / field[at])
        found += [(start * 2**0.5, value)] if value > 0 else []
        start *= 2
    return found or [(1.0, float("nan"))]
