"""Names for pluggable parts, and the nearest match when a name is misspelt."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

__all__ = ["Registry", "activations", "blocks", "nearest", "norms", "positions", "residuals"]

T = TypeVar("T")


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known word closest to `word`, or the empty string."""
    match = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""


class Registry(Mapping[str, Any]):
    """A mapping from a name to a class (or function) that classes enter by decoration."""

    def __init__(self, kind: str):
        self.kind = kind
        self._parts: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator; raises ValueError when the name is no identifier or belongs to another class."""
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"a {self.kind} needs a name that is an identifier, not {name!r}")

        def enter(part: T) -> T:
            present = self._parts.get(name)
            # A notebook cell that is run again defines the same class anew: that replaces, it does not clash.
            if present is not None and getattr(present, "__qualname__", "") != getattr(part, "__qualname__", ""):
                raise ValueError(f"the {self.kind} {name!r} is already registered, by {present.__qualname__}")
            self._parts[name] = part
            return part

        return enter

    def __getitem__(self, name: str) -> Any:
        try:
            return self._parts[name]
        except KeyError:
            known = ", ".join(map(repr, self._parts))
            raise ValueError(f"unknown {self.kind} {name!r}{nearest(name, self._parts)} (known: {known})") from None

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


blocks = Registry("block")
norms = Registry("norm")
positions = Registry("position")
residuals = Registry("residual")
activations = Registry("activation")
