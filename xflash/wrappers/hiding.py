"""Which tokens of a row are hidden, and which of them are told first."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..base.checks import describe, shown
from ..base.looks import transformed
from ..base.registry import nearest
from ..base.shapes import Bool, Float, Int, Tensor

__all__ = ["SCHEDULES", "SLACK", "SLOPES", "Choice", "check_schedule", "random_subset", "reveal", "uniform"]

# The share of tokens that is hidden at time 0 (all of them) to 1 (none); cosine: https://arxiv.org/abs/2202.04200.
SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda t: 1 - t,
    "cosine": lambda t: torch.cos(t * math.pi / 2),
}

# How fast that share falls, which is how often it is drawn too seldom.
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": torch.ones_like,
    "cosine": lambda t: torch.sin(t * math.pi / 2) * (math.pi / 2),
}

# 0.15 of 20 tokens are 3, although in floats it is a little more.
SLACK = 1e-4


class Choice(NamedTuple):
    """The tokens that a net is to tell, those that it could have been, and the time of a schedule (ones without)."""

    chosen: Bool[Tensor, "b n"]
    allowed: Bool[Tensor, "b n"]
    time: Float[Tensor, " b"]

    def weights(self, schedule: str) -> Float[Tensor, "b 1"]:
        """What each chosen token counts for where the sum of their losses is to be a bound of the row's likelihood.

        With one of n tokens hidden, two, ... equally often, the mean over the hidden ones times n is one
        (https://arxiv.org/abs/2110.02037), which is that of https://arxiv.org/abs/2406.07524 for a count of tokens.
        """
        share = self.allowed.sum(1) / self.chosen.sum(1).clamp(min=1)
        return (share * SLOPES[schedule](self.time))[:, None]


def random_subset(
    allowed: Bool[Tensor, "b n"], count: Int[Tensor, " b"], generator: torch.Generator | None = None
) -> Bool[Tensor, "b n"]:
    """`count` of the allowed places of each row, each choice of them equally likely; all where there are fewer."""
    draws = uniform(allowed, generator).masked_fill(~allowed, 2.0)
    return allowed & (draws.argsort(1).argsort(1) < count[:, None])


def uniform(like: Tensor, generator: torch.Generator | None) -> Float[Tensor, "..."]:
    """Numbers from 0 to 1 in the shape of `like`."""
    # In place: torch.rand with a generator cannot be traced when a size is not known.
    room = torch.empty(like.shape, device=like.device)
    if transformed():
        # Where vmap is at work a row's own place.
        room = torch.empty_like(like, dtype=room.dtype, memory_format=torch.contiguous_format)
    return room.uniform_(generator=generator)


def reveal(sure: Float[Tensor, "b n"], hidden: Bool[Tensor, "b n"], left: Int[Tensor, " b"]) -> Bool[Tensor, "b n"]:
    """The hidden places that stay hidden: the `left` of each row that are least sure, and never all of them."""
    left = torch.minimum(left, hidden.sum(1) - 1)
    return hidden & (sure.masked_fill(~hidden, math.inf).argsort(1).argsort(1) < left[:, None])


def check_schedule(name: str, schedule: Any) -> str:
    """The name of a schedule; TypeError or ValueError for anything else."""
    known = ", ".join(map(repr, SCHEDULES))
    if not isinstance(schedule, str):
        raise TypeError(f"{name} must be the name of a schedule ({known}), not {describe(schedule)}")
    if schedule not in SCHEDULES:
        raise ValueError(f"{name}={shown(schedule)} is no schedule{nearest(schedule, SCHEDULES)} (known: {known})")
    return schedule
