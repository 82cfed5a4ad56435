"""Language models: the next token of a text."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ...stack.stacks import Decoder
from ...wrappers.autoregressive import AutoregressiveWrapper
from ...wrappers.transformer import TransformerWrapper
from .rows import Rows
from .task import split_flags

__all__ = ["Language"]


class Language(Rows):
    """A `Decoder` tells each next token."""

    further = 1

    def build(self, flags: Mapping[str, Any]) -> nn.Module:
        outer, inner = split_flags(flags, TransformerWrapper, ("num_tokens", "max_seq_len", "attn_layers"))
        sizes = {"num_tokens": self.num_tokens, "max_seq_len": self.settings.seq_len}
        return AutoregressiveWrapper(TransformerWrapper(**sizes, attn_layers=Decoder(**inner), **outer))

    def net(self, model: Any) -> nn.Module:
        return model.net
