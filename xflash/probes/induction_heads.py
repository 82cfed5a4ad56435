"""Induction: what followed this symbol when it stood here before?"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..base.shapes import Int, Tensor
from ..flags.flag import flag
from .probe import UNASKED, Probe, distinct, what_followed

__all__ = ["Induction"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Induction(Probe):
    """Random symbols over and over: what induction heads continue (https://arxiv.org/abs/2209.11895).

    The symbols of a row all differ until they begin anew, after a number of tokens that differs from row to row. From
    the first repeated one on, the next is asked: what followed the same symbol before.
    """

    name: ClassVar[str] = "induction"

    period: tuple[int, int] = flag((8, 24), "fewest and most symbols until they begin anew", at_least=1)
    symbols: int = flag(32, "different symbols", at_least=2)

    @property
    def num_tokens(self) -> int:
        return self.symbols

    @property
    def answers(self) -> range:
        return range(self.symbols)

    def __post_init__(self) -> None:
        low, high = self.period
        if not low <= high <= min(self.symbols, self.seq_len - 1):
            raise ValueError(
                f"period={self.period} must be the fewest and the most, at most symbols={self.symbols} "
                f"and fewer than seq_len={self.seq_len}"
            )

    def rows_and_labels(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        low, high = self.period
        period = torch.randint(low, high + 1, (rows, 1), generator=generator, device=generator.device)
        once = distinct(rows, self.symbols, high, generator)
        where = torch.arange(self.seq_len + 1, device=generator.device)
        whole = once.gather(1, where % period)
        return whole[:, :-1], whole[:, 1:].masked_fill(where[:-1] < period, UNASKED)

    def oracle(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        return what_followed(ids, (ids[:, :, None] == ids[:, None]).tril(-1))
