"""`Relay`: what layers of one call leave for layers below them."""

from collections.abc import Hashable

from .shapes import Tensor

__all__ = ["Relay"]


class Relay:
    """The tensors that layers leave in one call, by what they are and the place of the layer; fresh each call.

    Nothing is written on a module: a layer that is computed again for its gradients finds what it found before
    (`copy`), and tied layers have as many places as they run.
    """

    def __init__(self, held: dict[tuple[str, Hashable], Tensor] | None = None):
        self.held = {} if held is None else held

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

    def copy(self) -> "Relay":
        """Another relay of the same tensors."""
        return Relay(dict(self.held))
