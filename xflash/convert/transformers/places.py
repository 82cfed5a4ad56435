"""Where a weight of another library lies in one of ours, which may hold several: as views, so it goes both ways."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import einx
import torch
from torch import nn

from ...base.shapes import Float, Tensor

__all__ = ["Place", "view_of"]


class View(NamedTuple):
    """Some rows of a weight, and how their rows are split in it: the first `split` axes are one axis elsewhere."""

    of: Tensor
    split: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.of.shape[: self.split].numel(), *self.of.shape[self.split :])

    def write(self, rows: Tensor) -> None:
        if self.split == 3:
            g, r, _ = self.of.shape[:3]
            rows = einx.id("(g r k) ... -> g r k ...", rows, g=g, r=r)
        self.of.copy_(rows)

    def read(self) -> Tensor:
        return einx.id("g r k ... -> (g r k) ...", self.of) if self.split == 3 else self.of


def view_of(word: str, t: Float[Tensor, "o ..."], block: Any) -> View:
    """The rows of `t` that are queries, keys or values of all heads (each key/value head has its own together), ..."""
    if word in ("q", "k", "v"):
        r = block.heads // block.kv_heads
        first, last = {"q": (0, r), "k": (r, r + 1), "v": (r + 1, r + 2)}[word]
        return View(t.unflatten(0, (block.kv_heads, r + 2, -1))[:, first:last], 3)
    if word in ("key", "value"):
        first = ("key", "value").index(word)
        return View(t.unflatten(0, (block.kv_heads, 2, -1))[:, first : first + 1], 3)
    up, gate = t.chunk(2)
    return View({"up": up, "gate": gate}[word])


class Place(NamedTuple):
    """Which weight of ours, and what of it in which order.

    words: 'T' for a matrix that is transposed there; '1' for a vector that is a row there; 'E' where that is said of
    each expert; '2' where the rows of two halves take turns there; then what lies behind each other there, such as
    'q k v'; nothing for all of it.
    expert: which one's, of a weight that has them all.
    """

    name: str
    words: tuple[str, ...] = ()
    expert: int | None = None

    def views(self, model: nn.Module) -> list[View]:
        """The views that are written, in the order in which their rows lie behind each other there."""
        module, _, weight = self.name.rpartition(".")
        owner = model.get_submodule(module)
        t = getattr(owner, weight).data
        t = t if self.expert is None else t[self.expert]
        t = t.transpose(0, 1) if "E" in self.words else t
        block = owner if hasattr(owner, "kv_heads") else model.get_submodule(module.rpartition(".")[0])
        parts = [word for word in self.words if word not in ("T", "E", "1", "2")]
        return [view_of(word, t, block) for word in parts] or [View(t)]

    def shape(self, model: nn.Module) -> tuple[int, ...]:
        """The shape that the weight has there."""
        views = self.views(model)
        rows = sum(view.shape[0] for view in views)
        return tuple(self.turned(torch.empty(rows, *views[0].shape[1:], device="meta")).shape)

    def count(self, model: nn.Module) -> int:
        """How many numbers the weight has."""
        return sum(view.of.numel() for view in self.views(model))

    def turned(self, t: Tensor, back: bool = False) -> Tensor:
        """A weight with its rows first as it lies there, or back."""
        for word in self.words[::-1] if back else self.words:
            if word == "E":
                t = t.transpose(0, 1)
            elif word == "T":
                t = t.transpose(-1, -2)
            elif word == "2":
                half = t.shape[0] // 2
                t = t.unflatten(0, (half, 2) if back else (2, half)).transpose(0, 1).flatten(0, 1)
            elif word == "1":
                t = t[0] if back else t[None]
        return t

    def write(self, model: nn.Module, weight: Tensor) -> None:
        """Puts a weight as it lies there into the model."""
        views = self.views(model)
        pieces = self.turned(weight, back=True).split([view.shape[0] for view in views])
        for view, piece in zip(views, pieces, strict=True):
            view.write(piece)

    def read(self, model: nn.Module) -> Tensor:
        """The weight as it lies there, as a copy."""
        rows: Sequence[Tensor] = [view.read() for view in self.views(model)]
        return self.turned(torch.cat(tuple(rows))).clone(memory_format=torch.contiguous_format)
