"""Tokens and numbers that a model reads and makes, one after the other."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ..base.checks import given
from ..base.shapes import Bool, Float, Int, Tensor
from ..generation.decoding import Recomputed
from ..generation.prompts import read_prompts, token_ids

__all__ = ["Outputs", "Read", "read_numbers"]


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

    def append(self, ids: Int[Tensor, " b"], numbers: Float[Tensor, " b"]) -> "Read":
        """One more token a row."""
        mask = None if self.mask is None else F.pad(self.mask, (0, 1), value=True)
        return Read(torch.cat((self.ids, ids[:, None]), 1), torch.cat((self.numbers, numbers[:, None]), 1), mask)


class Outputs:
    """The logits and numbers after the last token that was read: of a state, or of all tokens anew."""

    def __init__(self, net: Any, kwargs: Mapping[str, Any], window: int | None, cached: bool):
        self.net, self.kwargs, self.window, self.cached = net, kwargs, window, cached
        self.state: Any = None

    def __call__(self, read: Read) -> tuple[Float[Tensor, "b v"], Float[Tensor, " b"]]:
        if not self.cached:
            whole = Recomputed(read.ids, read.mask, self.window, self.kwargs)
            new = read.part(None if self.window is None else -self.window)
            out = self.net(*new, **{**self.kwargs, **whole.prefix(new.ids.shape[1])})
        elif self.state is None:
            out, self.state = self.net.step(read.ids, None, read.mask, x_num=read.numbers, **self.kwargs)
        else:
            new = read.part(-1)
            out, self.state = self.net.step(new.ids, self.state, x_num=new.numbers)
        return out.logits[:, -1], out.numbers[:, -1]


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
