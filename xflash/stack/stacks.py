"""The stacks by name: what an `AttentionLayers` is asked for once and for all."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from ..layers.positions.position import Position
from .face import AttentionLayers
from .side_inputs import check_prefix

__all__ = ["CrossAttender", "Decoder", "Encoder", "PrefixDecoder"]


class Encoder(AttentionLayers):
    """A bidirectional stack: every token sees every other."""

    fixed: ClassVar[Mapping[str, bool]] = {"causal": False}


class Decoder(AttentionLayers):
    """A causal stack: no token sees a later one, and `step` decodes."""

    fixed: ClassVar[Mapping[str, bool]] = {"causal": True}


class PrefixDecoder(AttentionLayers):
    """A causal stack in which the first `prefix_attn_len` tokens of a call also see each other (1910.10683)."""

    fixed: ClassVar[Mapping[str, bool]] = {"causal": True}
    takes_prefix = True

    def __init__(self, **flags: Any):
        super().__init__(**flags)
        check_prefix(self.blocks(), cast("list[Position]", list(self.positions.values())))


class CrossAttender(AttentionLayers):
    """A stack that attends to a context only, its tokens never to each other: `layers='cross_attn ff'` unless given."""

    fixed: ClassVar[Mapping[str, bool]] = {"causal": False, "only_cross": True}
