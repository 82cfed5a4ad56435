"""State tracking: what all tokens so far have made of a state, asked at each of them."""

import functools
import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..base.shapes import Int, Tensor
from ..flags.flag import flag
from .probe import Probe

__all__ = ["Parity", "Permutations"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Permutations(Probe):
    """The word problem of the permutations of a few items ("The Illusion of State", https://arxiv.org/abs/2404.08819).

    Each token is a permutation, and at each the product so far is asked: where the items lie after this move. Of five
    items (120 permutations) the problem is complete for NC1, beyond what transformers and linear recurrences of fixed
    depth compute for all lengths; of two, it is parity.
    """

    name: ClassVar[str] = "permutations"

    seq_len: int = flag(32, "tokens of a row", at_least=2)
    items: int = flag(3, "items that are permuted", at_least=2, at_most=5)

    @property
    def num_tokens(self) -> int:
        return len(products(self.items))

    @property
    def answers(self) -> range:
        return range(self.num_tokens)

    def rows_and_labels(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Where the items lie is drawn; which moves lead there follows from it."""
        table = products(self.items).to(generator.device)
        inverse = (table == 0).int().argmax(0)
        shape = (rows, self.seq_len)
        labels = torch.randint(self.num_tokens, shape, generator=generator, device=generator.device)
        before = torch.nn.functional.pad(labels[:, :-1], (1, 0))
        return table[labels, inverse[before]], labels

    def oracle(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        table, states = products(self.items).to(ids.device), [torch.zeros_like(ids[:, 0])]
        for token in ids.unbind(1):
            states.append(table[token, states[-1]])
        return torch.stack(states[1:], 1)


@dataclass(frozen=True, kw_only=True, repr=False)
class Parity(Probe):
    """Whether the ones so far are odd, asked at every bit: the least state there is to track."""

    name: ClassVar[str] = "parity"

    seq_len: int = flag(32, "tokens of a row", at_least=2)

    @property
    def num_tokens(self) -> int:
        return 2

    @property
    def answers(self) -> range:
        return range(2)

    def rows_and_labels(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(2, (rows, self.seq_len), generator=generator, device=generator.device)
        return labels ^ torch.nn.functional.pad(labels[:, :-1], (1, 0)), labels

    def oracle(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        return ids.cumsum(1) % 2


@functools.cache
def products(items: int) -> Int[Tensor, "p p"]:
    """The number of the permutation that is a after b, for each two, in the order of itertools; 0 changes nothing."""
    every = list(itertools.permutations(range(items)))
    number = {permutation: i for i, permutation in enumerate(every)}
    return torch.tensor([[number[tuple(a[i] for i in b)] for b in every] for a in every])
