"""`Outward`: what becomes of what the heads have read: gated, and projected back to the stream."""

import torch
import torch.nn.functional as F
from torch import nn

from ...base.frozen import frozen
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ...flags.flag import check_idle, flag
from ..site import Site
from .block import Block

__all__ = ["OutFlags", "Outward"]

# A gate of a head that is open: sigmoid(10) is nearly 1.
OPEN = 10.0


@frozen
class OutFlags:
    """The flags of what becomes of what the heads have read."""

    out_bias: bool = flag(
        False,
        "what the heads give is projected with a bias, zero at first",
        paper="https://arxiv.org/abs/1810.04805",
        tried=(True,),
    )
    on_attn: bool = flag(
        False,
        "attention on attention: what is projected back is gated by another projection of it",
        paper="https://arxiv.org/abs/1908.06954",
        tried=(True,),
    )
    sublayer_dropout: float = flag(0.0, "dropout of the update", at_least=0, below=1, tried=(0.1,))
    gate_values: bool = flag(
        False,
        "sigmoid gate on the output, from the input",
        paper="https://www.nature.com/articles/s41586-021-03819-2",
        tried=(True,),
    )
    gate_values_headwise: bool = flag(
        False,
        "gate_values has one gate a head, not one a channel",
        paper="https://arxiv.org/abs/2505.06708",
        tried=({"gate_values_headwise": True, "gate_values": True},),
    )
    gate_value_heads: bool = flag(
        False,
        "sigmoid gate a head on its output, from the input, with a bias: open at first",
        paper="https://arxiv.org/abs/2306.12929",
        tried=(True,),
    )
    head_scale: bool = flag(
        False, "learned gain per head on its output", paper="https://arxiv.org/abs/2110.09456", tried=(True,)
    )


class Outward(Block):
    """Base of the blocks of heads; `heads` and `value_width`, a head's output, are known before it is built."""

    kind: str
    heads: int
    value_width: int

    def build_out(self, config: OutFlags, site: Site) -> None:
        """The projections back to the stream."""
        inner = self.heads * self.value_width
        self.to_out = site.linear_out(inner, bias=config.out_bias)
        if config.on_attn:
            self.to_out_gate = nn.Linear(inner, site.dim, bias=False)

    def build_gates(self, config: OutFlags, site: Site) -> None:
        """The gates in front of these; ValueError for flags of one that is not there."""
        if config.gate_values:
            gates = self.heads * (1 if config.gate_values_headwise else self.value_width)
            self.to_gate = nn.Linear(site.dim, gates, bias=False)
            nn.init.zeros_(self.to_gate.weight)
        else:
            check_idle(config, ("gate_values_headwise",), f"{self.kind}_gate_values is False", f"{self.kind}_")
        if config.gate_value_heads:
            self.to_head_gate = nn.Linear(site.dim, self.heads)
            nn.init.zeros_(self.to_head_gate.weight)
            nn.init.constant_(self.to_head_gate.bias, OPEN)
        if config.head_scale:
            self.head_gain = nn.Parameter(torch.ones(self.heads, 1, 1))

    def shows(self) -> tuple[str, ...]:
        return ("gates",) if self.config.gate_values or self.config.gate_value_heads else ()

    def gate(self, y: Float[Tensor, "b h n e"], x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n h _"]:
        """What multiplies the heads' outputs, by head and by channel or for all channels of a head."""
        config = self.config
        gates = self.to_head_gate(x).sigmoid()[..., None] if config.gate_value_heads else y.new_ones(())
        if not config.gate_values:
            return gates
        by_head = 1 if config.gate_values_headwise else self.value_width
        return gates * self.to_gate(x).sigmoid().unflatten(2, (-1, by_head))

    def joined(self, y: Float[Tensor, "b h n e"], x: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b n d"]:
        """The heads' outputs, gated by the input where the flags ask for it, projected back to the stream."""
        config = self.config
        if ctx.relay.asked and self.shows():
            ctx.relay.show(self, "gates", self.gate(y, x))
        if config.gate_value_heads:
            y = y * a_head(self.to_head_gate(x))
        if config.gate_values and config.gate_values_headwise:
            y = y * a_head(self.to_gate(x))
        y = y.transpose(1, 2).flatten(2)
        if config.gate_values and not config.gate_values_headwise:
            y = y * self.to_gate(x).sigmoid()
        y = self.to_out(y) * self.to_out_gate(y).sigmoid() if config.on_attn else self.to_out(y)
        return F.dropout(y, config.sublayer_dropout, self.training) if config.sublayer_dropout else y


def a_head(logits: Float[Tensor, "b n h"]) -> Float[Tensor, "b h n 1"]:
    """Gates as they stand beside what each head gives."""
    return logits.sigmoid().mT[..., None]
