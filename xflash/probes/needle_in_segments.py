"""A needle across segments: what was stored in the first is asked for some segments later."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..base.shapes import Int, Tensor
from ..flags.flag import flag
from .probe import UNASKED, Probe

__all__ = ["Needle"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Needle(Probe):
    """A needle of a few symbols, stored in the first segment of noise and asked for some segments later.

    A sign to store is followed by the symbols; behind a sign that asks, they stand once more, and each is asked at the
    token before it. `gap=None` asks in the last segment, `gap=(1, 3)` one to three segments behind the first. Models
    that see a segment or two at a time need a state to answer.
    """

    name: ClassVar[str] = "needle"

    segment: int = flag(16, "tokens of a segment", at_least=3)
    gap: tuple[int, int] | None = flag(
        None, "fewest and most segments until it is asked for; None: as many as there are", at_least=1
    )
    length: int = flag(4, "symbols of the needle", at_least=1)
    symbols: int = flag(16, "different symbols of needles", at_least=2)
    noise: int = flag(14, "different tokens of noise", at_least=1)

    @property
    def num_tokens(self) -> int:
        return self.ask + 1

    @property
    def answers(self) -> range:
        return range(self.symbols)

    @property
    def store(self) -> int:
        """The sign that the needle stands behind."""
        return self.symbols + self.noise

    @property
    def ask(self) -> int:
        """The sign that asks for the needle."""
        return self.store + 1

    @property
    def gaps(self) -> tuple[int, int]:
        last = self.seq_len // self.segment - 1
        return self.gap or (last, last)

    def __post_init__(self) -> None:
        whole, left = divmod(self.seq_len, self.segment)
        if left or whole < 2:
            raise ValueError(f"seq_len={self.seq_len} must be two or more whole segments of segment={self.segment}")
        if self.length >= self.segment:
            raise ValueError(f"a needle of length={self.length} and its sign need a longer segment={self.segment}")
        low, high = self.gaps
        if not low <= high < whole:
            raise ValueError(
                f"gap={self.gap} must be the fewest and the most segments, and fewer than the {whole} of "
                f"seq_len={self.seq_len}"
            )

    def rows_and_labels(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        (low, high), last = self.gaps, self.segment - self.length

        def some(least: int, below: int, *shape: int) -> Tensor:
            return torch.randint(least, below, (rows, *shape), generator=generator, device=generator.device)

        # A gap that is known is not drawn.
        later = some(low, high + 1, 1) if self.gap else high
        ids = some(self.symbols, self.store, self.seq_len)
        needle = some(0, self.symbols, self.length)
        stored, asked = some(0, last, 1), some(0, last, 1) + later * self.segment
        behind = torch.arange(self.length, device=generator.device)
        for at, sign in ((stored, self.store), (asked, self.ask)):
            ids.scatter_(1, at, sign).scatter_(1, at + 1 + behind, needle)
        return ids, torch.full_like(ids, UNASKED).scatter_(1, asked + behind, needle)

    def oracle(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        stores, asks = ids == self.store, ids == self.ask
        stored, asked = (signs.int().argmax(1, keepdim=True) for signs in (stores, asks))
        which = torch.arange(ids.shape[1], device=ids.device) - asked
        known = stores.any(1, keepdim=True) & asks.any(1, keepdim=True) & (which >= 0) & (which < self.length)
        needle = ids.gather(1, (stored + 1 + which).clamp(0, ids.shape[1] - 1))
        return needle.masked_fill(~known, UNASKED)
