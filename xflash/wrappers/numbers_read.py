"""Tokens and numbers that a model reads and makes, one after the other."""

from typing import Any, NamedTuple

import torch

from ..base.checks import given
from ..base.shapes import Bool, Float, Int, Tensor
from ..generation.prompts import read_prompts, token_ids

__all__ = ["Numbered", "Read", "read_numbers"]


class Read(NamedTuple):
    """Tokens, their numbers, and which are real (None: all)."""

    ids: Int[Tensor, "b n"]
    numbers: Float[Tensor, "b n"]
    mask: Bool[Tensor, "b n"] | None

    def part(self, start: int | None = None, end: int | None = None) -> "Read":
        """The tokens in some columns alone."""
        columns = slice(start, end)
        mask = None if self.mask is None else self.mask[:, columns]
        return Read(self.ids[:, columns], self.numbers[:, columns], mask)


class Numbered:
    """An xVal model as one of tokens alone, which keeps the numbers (b, n) that were read and made."""

    def __init__(self, net: Any, numbers: Float[Tensor, "b n"]):
        self.net, self.numbers = net, numbers

    def __call__(self, x: Int[Tensor, "b n"], mask: Tensor | None = None, **beside: Any) -> Float[Tensor, "b n v"]:
        """The logits of the last tokens so far, read anew."""
        return self.noted(self.net(x, self.numbers[:, -x.shape[1] :], mask, **beside))

    def step(
        self, x: Int[Tensor, "b n"], state: Any = None, mask: Tensor | None = None, **beside: Any
    ) -> tuple[Float[Tensor, "b n v"], Any]:
        """The logits of the last tokens so far, behind a state."""
        out, state = self.net.step(x, state, mask, x_num=self.numbers[:, -x.shape[1] :], **beside)
        return self.noted(out), state

    def noted(self, out: Any) -> Float[Tensor, "b n v"]:
        """The logits of what was made; its last number is that of the token to come."""
        self.numbers = torch.cat((self.numbers, out.numbers[:, -1:]), 1)
        return out.logits


def read_numbers(tokens: Any, numbers: Any, lens: Any, mask: Any) -> tuple[Read, tuple[int, ...]]:
    """Prompts that all end in the last column, and the shape of their batch; TypeError or ValueError for others."""
    ids = token_ids("start_tokens", tokens)
    if ids.dim() not in (1, 2):
        raise ValueError(f"start_tokens must be (tokens,) or (batch, tokens), not {tuple(ids.shape)}")
    wanted = f"a floating-point tensor {tuple(ids.shape)}, a number for each of start_tokens"
    if not isinstance(numbers, torch.Tensor) or not numbers.is_floating_point():
        raise TypeError(f"start_numbers must be {wanted}, not {given(numbers)}")
    if numbers.shape != ids.shape:
        raise ValueError(f"start_numbers must be {wanted}, not {tuple(numbers.shape)}")
    place = torch.arange(ids.shape[-1], device=ids.device).expand(ids.shape)
    aligned = read_prompts(place, lens, mask)
    ids, numbers = (t.reshape(-1, t.shape[-1]).gather(1, aligned.ids) for t in (ids, numbers))
    if aligned.mask is not None:
        ids = ids.masked_fill(~aligned.mask, 0)
    return Read(ids, numbers, aligned.mask), aligned.lead
