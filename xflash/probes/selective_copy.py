"""Selective copying: some tokens among blanks, to be given back in order."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..base.shapes import Int, Tensor
from ..flags.flag import flag
from .probe import UNASKED, Probe, distinct

__all__ = ["Copy"]

BLANK, ASK, FIRST = 0, 1, 2


@dataclass(frozen=True, kw_only=True, repr=False)
class Copy(Probe):
    """Selective copying (Mamba, https://arxiv.org/abs/2312.00752): `count` symbols at random places among blanks.

    The row ends in as many tokens that ask: for the first of the symbols, for the second, and so on. Where they stood
    differs from row to row, so that a fixed distance does not help.
    """

    name: ClassVar[str] = "copy"

    count: int = flag(4, "symbols to copy", at_least=1)
    symbols: int = flag(16, "different symbols", at_least=2)

    @property
    def num_tokens(self) -> int:
        return FIRST + self.symbols

    @property
    def answers(self) -> range:
        return range(FIRST, FIRST + self.symbols)

    def __post_init__(self) -> None:
        if self.seq_len < 2 * self.count:
            raise ValueError(
                f"count={self.count} symbols and where they are asked for are {2 * self.count} tokens, "
                f"but seq_len={self.seq_len}"
            )

    def rows_and_labels(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        front = self.seq_len - self.count
        places = distinct(rows, front, self.count, generator).sort(1).values
        copied = torch.randint(self.symbols, places.shape, generator=generator, device=generator.device) + FIRST
        ids = torch.full((rows, self.seq_len), BLANK, device=generator.device).scatter_(1, places, copied)
        labels = torch.full_like(ids, UNASKED)
        ids[:, front:], labels[:, front:] = ASK, copied
        return ids, labels

    def oracle(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        asks, symbols = ids == ASK, ids >= FIRST
        which, there = asks.cumsum(1) - 1, symbols.sum(1, keepdim=True)
        in_order = ids.gather(1, (~symbols).int().sort(dim=1, stable=True).indices)
        return in_order.gather(1, which.clamp(min=0)).masked_fill(~asks | (which >= there), UNASKED)
