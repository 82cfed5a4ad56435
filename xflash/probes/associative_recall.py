"""Multi-query associative recall: pairs of a key and a value, then keys that ask for theirs."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..base.shapes import Int, Tensor
from ..flags.flag import flag
from .probe import UNASKED, Probe, distinct, what_followed

__all__ = ["Recall"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Recall(Probe):
    """Multi-query associative recall (MQAR of Zoology, https://arxiv.org/abs/2312.04927).

    A row begins with pairs of a key and a value; behind them, among noise, each key stands once more, and its value is
    asked there. Who only knows which values there were is right in one of `pairs`. Unlike Zoology's, noise has tokens
    of its own and keys are asked anywhere alike. With `causal=False` the pairs stand at the end, for models that look
    both ways.
    """

    name: ClassVar[str] = "recall"

    pairs: int = flag(4, "keys with their values", at_least=1)
    symbols: int = flag(16, "different keys, and as many values and kinds of noise", at_least=2)
    causal: bool = flag(True, "False: what is asked for stands behind where it is asked")

    @property
    def num_tokens(self) -> int:
        return 3 * self.symbols

    @property
    def answers(self) -> range:
        return range(self.symbols, 2 * self.symbols)

    def __post_init__(self) -> None:
        if self.pairs > self.symbols:
            raise ValueError(f"pairs={self.pairs} different keys need as many symbols, not symbols={self.symbols}")
        if self.seq_len < 3 * self.pairs:
            raise ValueError(
                f"pairs={self.pairs} and their keys once more are {3 * self.pairs} tokens, but seq_len={self.seq_len}"
            )

    def rows_and_labels(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shape, device, front = (rows, self.seq_len), generator.device, 2 * self.pairs
        keys, values = (distinct(rows, self.symbols, self.pairs, generator) for _ in range(2))
        values = values + self.symbols
        ids = torch.randint(2 * self.symbols, 3 * self.symbols, shape, generator=generator, device=device)
        ids[:, :front] = torch.stack((keys, values), -1).flatten(1)
        asked = front + distinct(rows, self.seq_len - front, self.pairs, generator)
        labels = torch.full_like(ids, UNASKED).scatter_(1, asked, values)
        ids.scatter_(1, asked, keys)
        return (ids, labels) if self.causal else (ids.roll(-front, 1), labels.roll(-front, 1))

    def oracle(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        paired = torch.zeros_like(ids, dtype=torch.bool)
        paired[:, :-1] = (ids[:, :-1] < self.symbols) & (ids[:, 1:] // self.symbols == 1)
        like = (ids[:, :, None] == ids[:, None]) & paired[:, None] & ~paired[:, :, None]
        return what_followed(ids, like.tril(-1) if self.causal else like)
