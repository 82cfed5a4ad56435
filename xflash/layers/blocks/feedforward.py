"""The position-wise feed-forward block."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import nn

from ...base.registry import activations, blocks
from ...base.shapes import Float, Tensor, typed
from ...base.state import Ctx
from ...flags.flag import check_idle, flag
from ..norms import LayerNorm
from ..projection import whole
from .block import MOST, Block, Site

__all__ = ["FeedForward", "check_glu", "gated", "inner_width"]

Activation = Callable[[Tensor], Tensor]


@blocks.register("ff")
class FeedForward(Block):
    """Two linear maps with an activation between them, optionally gated (GLU variants, https://arxiv.org/abs/2002.05202)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        mult: float | None = flag(
            None, "inner width as a multiple of dim (None: 4, or as ff_dim says)", above=0, at_most=MOST, tried=(2.0,)
        )
        dim: int | None = flag(None, "inner width in channels (None: as ff_mult says)", at_least=1, tried=(25,))
        activation: str = flag(
            "gelu",
            "a registered activation: gelu, gelu_tanh, silu, relu, relu2, mish, ...",
            tried=("silu", "relu2", "solu"),
        )
        glu: bool = flag(
            False,
            "gate one half of the inner projection with the activation of the other",
            paper="https://arxiv.org/abs/2002.05202",
            tried=(True,),
        )
        glu_limit: float | None = flag(
            None, "what is gated stays within this, what its gate is made of at most at it (None: no limit)",
            above=0, paper="https://arxiv.org/abs/2508.10925", tried=({"glu_limit": 0.5, "glu": True},),
        )  # fmt: skip
        glu_offset: float = flag(
            0.0, "what is added to what is gated", paper="https://arxiv.org/abs/2508.10925",
            tried=({"glu_offset": 1.0, "glu": True},),
        )  # fmt: skip
        no_bias: bool = flag(False, "linear maps without biases", tried=(True,))
        post_act_ln: bool = flag(
            False,
            "a LayerNorm behind the activation (NormFormer)",
            paper="https://arxiv.org/abs/2110.09456",
            tried=(True,),
        )
        dropout: float = flag(0.0, "dropout behind the activation", at_least=0, below=1, tried=(0.1,))

    mixes_tokens = False
    # Tokens never meet here, so neither can be violated.
    honours = frozenset({"attn_mask", "doc_ids", "prefix"})

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site)
        check_glu("ff", config)
        self.inner = inner = inner_width(config, site)
        self.activation = activations[config.activation]
        self.to_inner = nn.Linear(site.dim, inner * (2 if config.glu else 1), bias=not config.no_bias)
        self.norm = LayerNorm.of(inner) if config.post_act_ln else None
        self.to_out = site.linear_out(inner, bias=not config.no_bias)

    @typed
    def forward(self, x: Float[Tensor, "b n d"], ctx: Ctx, state: Any = None) -> tuple[Float[Tensor, "b n d"], None]:
        y = self.to_inner(x)
        if self.config.glu or self.norm is not None:
            y = whole(y, self.inner * (2 if self.config.glu else 1), "ff")
        y = gated(y, self.activation, self.config) if self.config.glu else self.activation(y)
        if self.norm is not None:
            y = self.norm(y)
        if self.config.dropout:
            y = F.dropout(y, self.config.dropout, self.training)
        return self.to_out(y), None


def gated(y: Float[Tensor, "... e"], activation: Activation, config: Any) -> Float[Tensor, "... _"]:
    """The first half of the channels, gated by the activation of the second; within limits and moved, as flags say."""
    y, gate = y.chunk(2, -1)
    if (limit := config.glu_limit) is not None:
        y, gate = y.clamp(-limit, limit), gate.clamp(max=limit)
    return (y + config.glu_offset if config.glu_offset else y) * activation(gate)


def check_glu(kind: str, config: Any) -> None:
    """ValueError for flags of a gate that is not there."""
    if not config.glu:
        check_idle(config, ("glu_limit", "glu_offset"), f"{kind}_glu is False", f"{kind}_")


def inner_width(config: Any, site: Site, kind: str = "ff") -> int:
    """The channels between the two maps; ValueError when `dim` and `mult` say different numbers of them."""
    if config.mult is None:
        return 4 * site.dim if config.dim is None else config.dim
    width = site.channels(f"{kind}_mult", config.mult, instead=f"{kind}_dim")
    if config.dim not in (None, width):
        raise ValueError(
            f"{kind}_dim={config.dim} is set, but {kind}_mult={config.mult} with dim={site.dim} makes {width} "
            "channels; give one of them"
        )
    return width
