"""Masked models: tokens that are hidden in a text."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ...stack.stacks import Encoder
from ...wrappers.masked_lm import MaskedLMWrapper
from ...wrappers.transformer import TransformerWrapper
from .rows import Rows
from .task import split_flags

__all__ = ["Masked"]


class Masked(Rows):
    """An `Encoder` tells the 15 % of each row's tokens that are hidden, the same ones from every variant."""

    def build(self, flags: Mapping[str, Any]) -> nn.Module:
        outer, inner = split_flags(flags, TransformerWrapper, ("num_tokens", "max_seq_len", "attn_layers"))
        sizes = {"num_tokens": self.num_tokens + 1, "max_seq_len": self.settings.seq_len}
        net = TransformerWrapper(**sizes, attn_layers=Encoder(**inner), **outer)
        return MaskedLMWrapper(net, mask_token_id=self.num_tokens)

    def named(self, score: str) -> str:
        return "bits a hidden byte" if self.is_text else "loss a hidden token"

    def batch(self, generator: torch.Generator) -> tuple[Any, ...]:
        return *super().batch(generator), int(torch.randint(2**31, (), generator=generator))

    def held(self, look: bool) -> Iterator[tuple[Any, ...]]:
        for seed, batch in enumerate(super().held(look)):
            yield *batch, seed

    def beside(self, batch: tuple[Any, ...]) -> dict[str, Any]:
        ids, seed = batch
        # On meta nothing is drawn.
        return {} if ids.is_meta else {"generator": torch.Generator(ids.device).manual_seed(seed)}
