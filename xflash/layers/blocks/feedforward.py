"""The position-wise feed-forward block."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...base.checks import shown
from ...base.frozen import frozen
from ...base.registry import blocks
from ...base.shapes import Float, Tensor, typed
from ...base.state import Ctx
from ...flags.flag import check_idle, flag
from ..activations import Activation, activation_of, softclamped
from ..norms import LayerNorm
from ..projection import whole
from ..site import MOST, Site
from .block import Block

__all__ = ["FeedForward", "activated", "check_glu", "inner_width"]

# What an activation multiplies its input by, of those whose input can be clamped softly beside it.
FACTORS = {"gelu": torch.special.ndtr, "silu": torch.sigmoid}


@blocks.register("ff")
class FeedForward(Block):
    """Two linear maps with an activation between them, optionally gated (GLU variants, https://arxiv.org/abs/2002.05202)."""

    steady = True

    @frozen
    class Config:
        mult: float | None = flag(
            None, "inner width as a multiple of dim (None: 4, or as ff_dim says)", above=0, at_most=MOST, tried=(2.0,)
        )
        dim: int | None = flag(None, "inner width in channels (None: as ff_mult says)", at_least=1, tried=(25,))
        activation: str | Callable = flag(
            "gelu",
            "a registered activation: gelu, gelu_tanh, silu, relu, relu2, mish, ..., or a function of one's own",
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
        glu_softclamp: bool = flag(
            False,
            "what is gated is softly clamped, and the x of its gate's x sigmoid(x) or x Phi(x) (SiTU-GLU)",
            paper="https://arxiv.org/abs/2607.24653",
            tried=(
                {"glu_softclamp": True, "glu": True, "glu_gate_softclamp_value": 0.7, "glu_up_softclamp_value": 0.5},
            ),
        )
        glu_gate_softclamp_value: float = flag(
            4.0, "what that x stays within", above=0, tried="glu_softclamp has it beside it"
        )
        glu_up_softclamp_value: float = flag(
            25.0, "what is gated stays within this", above=0, tried="glu_softclamp has it beside it"
        )
        softclamp_value: float | None = flag(
            None, "what the activation is given stays within this, softly (None: no limit)", above=0, tried=(0.5,)
        )
        no_bias: bool = flag(False, "linear maps without biases", tried=(True,))
        post_act_ln: bool = flag(
            False,
            "a LayerNorm behind the activation (NormFormer)",
            paper="https://arxiv.org/abs/2110.09456",
            tried=(True,),
        )
        dropout: float = flag(0.0, "dropout behind the activation", at_least=0, below=1, tried=(0.1,))
        sublayer_dropout: float = flag(0.0, "dropout of the update", at_least=0, below=1, tried=(0.1,))

    mixes_tokens = False
    # Tokens never meet here, so neither can be violated.
    honours = frozenset({"attn_mask", "doc_ids", "prefix"})

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site)
        check_glu("ff", config)
        self.inner = inner = inner_width(config, site)
        self.activation = activation_of(config.activation, "ff_activation")
        self.to_inner = nn.Linear(site.dim, inner * (2 if config.glu else 1), bias=not config.no_bias)
        self.norm = LayerNorm.of(inner) if config.post_act_ln else None
        self.to_out = site.linear_out(inner, bias=not config.no_bias)

    @typed
    def forward(self, x: Float[Tensor, "b n d"], ctx: Ctx, state: Any = None) -> tuple[Float[Tensor, "b n d"], None]:
        y = self.to_inner(x)
        if self.config.glu or self.norm is not None:
            y = whole(y, self.inner * (2 if self.config.glu else 1), "ff")
        y = activated(y, self.activation, self.config)
        if self.norm is not None:
            y = self.norm(y)
        if self.config.dropout:
            y = F.dropout(y, self.config.dropout, self.training)
        y = self.to_out(y)
        if self.config.sublayer_dropout:
            y = F.dropout(y, self.config.sublayer_dropout, self.training)
        return y, None


def activated(y: Float[Tensor, "... e"], activation: Activation, config: Any) -> Float[Tensor, "... _"]:
    """What stands between the two maps, gated or not."""
    if config.glu:
        return gated(y, activation, config)
    return activation(y if config.softclamp_value is None else softclamped(y, config.softclamp_value))


def gated(y: Float[Tensor, "... e"], activation: Activation, config: Any) -> Float[Tensor, "... _"]:
    """The first half of the channels, gated by the activation of the second; within limits and moved, as flags say."""
    y, gate = y.chunk(2, -1)
    if (limit := config.glu_limit) is not None:
        y, gate = y.clamp(-limit, limit), gate.clamp(max=limit)
    if config.glu_softclamp:
        y = softclamped(y, config.glu_up_softclamp_value)
        gate = softclamped(gate, config.glu_gate_softclamp_value) * FACTORS[config.activation](gate)
    else:
        gate = activation(gate)
    return (y + config.glu_offset if config.glu_offset else y) * gate


def check_glu(kind: str, config: Any) -> None:
    """ValueError for flags of a gate that is not there, or that exclude each other."""
    if not config.glu:
        check_idle(config, ("glu_limit", "glu_offset", "glu_softclamp"), f"{kind}_glu is False", f"{kind}_")
    elif config.softclamp_value is not None:
        raise ValueError(
            f"{kind}_softclamp_value={config.softclamp_value} is set, but {kind}_glu is True: what is gated, and its "
            f"gate, {kind}_glu_softclamp clamps"
        )
    if not config.glu_softclamp:
        values = ("glu_gate_softclamp_value", "glu_up_softclamp_value")
        check_idle(config, values, f"{kind}_glu_softclamp is False", f"{kind}_")
    elif config.activation not in FACTORS:
        raise ValueError(
            f"{kind}_glu_softclamp=True clamps the x of x sigmoid(x) or x Phi(x): {kind}_activation must be 'silu' or "
            f"'gelu', not {shown(config.activation)}"
        )


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
