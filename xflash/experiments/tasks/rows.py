"""Rows of token ids, cut out of one long text."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ...base.shapes import Tensor
from ..settings import Settings
from .task import Task, device_of, digest, moved, weighted

__all__ = ["Rows"]


class Rows(Task):
    """Windows of a text: drawn anywhere in its first nine tenths, side by side in the last.

    A row is `seq_len` tokens and `further` ones. `data` is bytes as ids, or ids; scores of bytes are bits a byte.
    """

    further = 0
    unused: Mapping[str, str] = {"patch_size": "a text has no patches"}

    def __init__(self, settings: Settings, name: str, parts: tuple[Tensor, Tensor], num_tokens: int | None = None):
        super().__init__(settings, name)
        self.parts, self.is_text = parts, num_tokens is None
        self.num_tokens = 256 if num_tokens is None else num_tokens
        self.score_name = self.named("bits a byte" if self.is_text else "loss")
        self.row = settings.seq_len + self.further
        for part, which in zip(parts, ("its first nine tenths", "its held-out tenth"), strict=True):
            if len(part) < self.row:
                raise ValueError(
                    f"{name} is too short: {which} has {len(part):,} tokens, and a row of seq_len={settings.seq_len} "
                    f"needs {self.row:,}; give a longer text or a smaller seq_len"
                )

    def named(self, score: str) -> str:
        """What the score is called."""
        return score

    def describe(self) -> dict[str, Any]:
        return {"task": type(self).__name__, "tokens": self.num_tokens, "parts": [digest(part) for part in self.parts]}

    def batch(self, generator: torch.Generator) -> tuple[Any, ...]:
        starts = torch.randint(len(self.parts[0]) - self.row + 1, (self.settings.batch, 1), generator=generator)
        return (self.parts[0][starts + torch.arange(self.row)].long(),)

    def held(self, look: bool) -> Iterator[tuple[Any, ...]]:
        """Batches of windows side by side; for a look an eighth of them."""
        ids, n = self.parts[1], self.settings.seq_len
        count = min(max(1, self.settings.held_out // n), (len(ids) - self.further) // n)
        count = max(1, count // 8) if look else count
        for at in range(0, count, self.settings.batch):
            starts = torch.arange(at, min(at + self.settings.batch, count))[:, None] * n
            yield (ids[starts + torch.arange(self.row)].long(),)

    def score(self, model: nn.Module, look: bool) -> float:
        device, scale = device_of(model), math.log(2) if self.is_text else 1.0
        asked = {"reduction": "sum", "return_count": True}
        batches = (moved(batch, device) for batch in self.held(look))
        sums = (model(*self.given(batch), **self.beside(batch), **asked) for batch in batches)
        return weighted(sums) / scale

    def loss(self, model: nn.Module, batch: tuple[Any, ...]) -> Tensor:
        return model(*self.given(batch), **self.beside(batch))

    def given(self, batch: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """What the trained module takes of a batch."""
        return batch[:1]

    def beside(self, batch: tuple[Any, ...]) -> dict[str, Any]:
        """What it takes by name."""
        return {}
