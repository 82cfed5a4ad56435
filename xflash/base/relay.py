"""`Relay`: what layers of one call leave for layers below them."""

from collections.abc import Hashable, Sequence
from typing import Any

from .shapes import Tensor

__all__ = ["Relay"]


class Relay:
    """The tensors that layers leave in one call, by what they are and the place of the layer (losses by a number).

    Nothing is written on a module: a layer that is computed again for its gradients finds what it found before
    (`copy`), and tied layers have as many places as they run. weighing: whether layers that have a loss of their own
    are to leave what it is made of (`lose`). asked: what blocks are to show of themselves, by name; (): nothing.
    """

    def __init__(
        self,
        held: dict[tuple[str, Hashable], Tensor] | None = None,
        weighing: bool = False,
        asked: Sequence[str] = (),
        shown: list[tuple[Any, str, Any]] | None = None,
    ):
        self.held = {} if held is None else held
        self.weighing = weighing
        self.asked = asked
        self.shown = shown

    def leave(self, kind: str, place: Hashable, t: Tensor) -> None:
        """Keeps `t` for the layers below."""
        self.held[kind, place] = t

    def find(self, kind: str, place: Hashable) -> Tensor | None:
        """What the layer at `place` left; None where it left nothing of that kind."""
        return self.held.get((kind, place))

    def take(self, kind: str, place: Hashable) -> Tensor:
        """What the layer at `place` left; ValueError where it left nothing of that kind."""
        found = self.find(kind, place)
        if found is None:
            raise ValueError(f"no layer has left {kind!r} at {place!r} in this call")
        return found

    def lose(self, sums: Tensor) -> None:
        """Keeps what a layer's own loss is made of, sums over the call's tokens, for whoever asked for it."""
        self.held["loss", len(self.held)] = sums

    def lost(self) -> list[Tensor]:
        """What layers have lost, from the top of the column to its end."""
        return [t for (kind, _), t in self.held.items() if kind == "loss"]

    def show(self, block: Any, kind: str, t: Any) -> None:
        """Gives `t` to whoever asked for it: a tensor (b, n, ...), n the tokens of the call, or an `AttentionMap`."""
        if kind in self.asked and self.shown is not None:
            self.shown.append((block, kind, t))

    def copy(self) -> "Relay":
        """Another relay of the same tensors."""
        return Relay(dict(self.held), self.weighing, self.asked, self.shown)
