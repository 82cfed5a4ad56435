"""`Passes`: the stack of a model gone through several times, each pass on from what the one before made."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ..base.checks import integer, shown
from ..base.frozen import frozen
from ..base.shapes import Float, Tensor
from ..flags.flag import check_idle, flag
from ..layers.reaching import reaching

__all__ = ["Passes", "passes", "passes_before"]


class Passes(nn.Module):
    """Each pass on from the last one.

    Recycled (https://www.nature.com/articles/s41586-021-03819-2): a map of the last output, cut from its graph, is
    added to the embeddings. Looped (https://arxiv.org/abs/2510.25741): the last output is what is read next.
    """

    @frozen
    class Config:
        recycling: bool = flag(
            False, "the stack runs several times, the embeddings and a map of its last output being what it reads",
            paper="https://www.nature.com/articles/s41586-021-03819-2",
            tried=({"recycling": True, "train_max_recycle_steps": 3},),
        )  # fmt: skip
        train_max_recycle_steps: int = flag(
            4, "how often at most while training, drawn for each call, and always otherwise", at_least=1,
            tried="beside recycling itself",
        )  # fmt: skip
        looped: bool = flag(
            False, "the stack runs several times, each time on its last output",
            paper="https://arxiv.org/abs/2510.25741", tried=({"looped": True, "max_looped_steps": 2},),
        )  # fmt: skip
        max_looped_steps: int = flag(4, "how often", at_least=1, tried="beside looped itself")

    def __init__(self, config: Config, dim: int):
        super().__init__()
        self.looped = config.looped
        self.most = config.max_looped_steps if self.looped else config.train_max_recycle_steps
        self.project = None if self.looped else nn.Linear(dim, dim, bias=False)

    @property
    def kind(self) -> str:
        """The flag that asked for it."""
        return "looped" if self.looped else "recycling"

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.most}"

    def count(self, recycle_steps: int | None, looped_steps: int | None) -> int:
        """How many passes a call has; ValueError for what says it of a model that has none."""
        name, given = ("looped_steps", looped_steps) if self.looped else ("recycle_steps", recycle_steps)
        other = recycle_steps if self.looped else looped_steps
        if other is not None:
            unasked = "recycle_steps" if self.looped else "looped_steps"
            raise ValueError(f"{unasked}={shown(other)} is given, but the model was built with {self.kind}=True")
        if given is not None:
            return integer(name, given, 1)
        if self.looped or not self.training:
            return self.most
        if torch.compiler.is_compiling():
            raise ValueError(
                "recycling=True draws how many passes a call has in training, which a compiled one cannot: give "
                "recycle_steps"
            )
        return int(torch.randint(1, self.most + 1, ()))

    def forward(self, x: Float[Tensor, "b n d"], run: Callable[[Tensor], Tensor], count: int) -> Float[Tensor, "b n d"]:
        """What the last of `count` passes reads, when those before it were `run`."""
        if self.project is None:
            for _ in range(count - 1):
                x = run(x)
            return x
        read = x
        for _ in range(count - 1):
            with torch.no_grad():
                made = run(read)
            read = x + self.project(made)
        return reaching(read, self.project.parameters())


def passes(config: Passes.Config, dim: int) -> Passes | None:
    """The passes that a model's flags ask for; ValueError where they contradict each other."""
    if config.recycling and config.looped:
        raise ValueError("recycling=True and looped=True exclude each other: a pass reads one or the other")
    if not config.recycling:
        check_idle(config, ("train_max_recycle_steps",), "recycling is False")
    if not config.looped:
        check_idle(config, ("max_looped_steps",), "looped is False")
    return Passes(config, dim) if config.recycling or config.looped else None


def passes_before(
    passes: Passes | None, recycle_steps: int | None, looped_steps: int | None
) -> Callable[..., Tensor] | None:
    """The passes of a call before its last one; ValueError for a model that has none, but is told how many."""
    if passes is not None:
        return partial(passes, count=passes.count(recycle_steps, looped_steps))
    for built, name, steps in (("recycling", "recycle_steps", recycle_steps), ("looped", "looped_steps", looped_steps)):
        if steps is not None:
            raise ValueError(f"{name}={shown(steps)} is given, but the model was built without {built}=True")
    return None
