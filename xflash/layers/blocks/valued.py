"""`Valued`: how wide values are, how they are normed, and how they go on from the first layer to the others."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...base.frozen import frozen
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ...flags.flag import check_idle, flag
from .block import Block

__all__ = ["ValueFlags", "Valued"]


@frozen
class ValueFlags:
    """The flags of values."""

    value_dim_head: int | None = flag(
        None, "width of a head's values and output (None: dim_head)", at_least=1, tried=(7,)
    )
    value_rmsnorm: bool = flag(
        False,
        "values of mean square one times learned gains, each head's its own",
        tried=({"value_rmsnorm": True, "value_rmsnorm_eps": 1e-3},),
    )
    value_rmsnorm_eps: float = flag(
        1e-6, "added to the mean square before the root", above=0, tried="value_rmsnorm has it beside it"
    )
    value_residual: bool = flag(
        False,
        "values are mixed with those of the column's first layer of this kind",
        paper="https://arxiv.org/abs/2410.17897",
        tried=(True,),
    )


def shape_of(config: Any, heads: int) -> dict[str, Any]:
    """What says how values are shaped, and whether they are mixed; heads: the stack's."""
    heads = config.heads or heads
    return {
        "value_residual": config.value_residual,
        "dim_head": config.dim_head,
        "value_dim_head": config.value_dim_head or config.dim_head,
        "heads": heads,
        "kv_heads": config.kv_heads or heads,
    }


class Valued(Block):
    """Base of the blocks whose heads have values; `kv_heads` and `value_width` are known before it is built."""

    kind: str
    kv_heads: int
    value_width: int
    to_mix: nn.Module | None

    def build_values(self, config: ValueFlags) -> None:
        """The gains of values; ValueError for flags of a norm that is not there."""
        # How much of the first layer's values is mixed in, where that is learned.
        self.to_mix = None
        if config.value_rmsnorm:
            self.v_gain = nn.Parameter(torch.ones(self.kv_heads, 1, self.value_width))
        else:
            check_idle(config, ("value_rmsnorm_eps",), f"{self.kind}_value_rmsnorm is False", f"{self.kind}_")

    @classmethod
    def arrange(cls, place: int, layers: Sequence[tuple[str, Any]], heads: int) -> Sequence[tuple[str, Any]]:
        """The column as it is; ValueError where layers mix values of unlike shapes, or parts cannot meet."""
        name, config = layers[place]
        alike = [c for n, c in layers if n == name]
        if config.value_residual or alike[0].value_residual:
            mixed = f"{name}_value_residual=True mixes values with those of the first {name!r} layer"
            # A kind that stands once may only have taken the flag over.
            if max(Counter(n for n, c in layers if getattr(c, "value_residual", False)).values()) < 2:
                raise ValueError(f"{mixed}, but the stack has only one")
            here, there = shape_of(alike[0], heads), shape_of(config, heads)
            for field in here:
                if here[field] != there[field]:
                    raise ValueError(f"{mixed}, which has {field}={here[field]} where another has {there[field]}")
        return super().arrange(place, layers, heads)

    def valued(self, v: Float[Tensor, "b h m e"], x: Float[Tensor, "b n _"], ctx: Ctx) -> Float[Tensor, "b h m e"]:
        """Values as they are kept: mixed with those of the first layer, and normed, where the flags ask for it."""
        if self.config.value_residual:
            v = self.with_first(v, x, ctx)
        if not self.config.value_rmsnorm:
            return v
        return F.rms_norm(v, v.shape[-1:], None, self.config.value_rmsnorm_eps) * self.v_gain.to(v.dtype)

    def with_first(self, v: Float[Tensor, "b h m e"], x: Float[Tensor, "b n _"], ctx: Ctx) -> Float[Tensor, "b h m e"]:
        """Values mixed with those of the column's first layer of this kind (https://arxiv.org/abs/2410.17897)."""
        first = ctx.relay.find("values", self.kind)
        if first is None:
            ctx.relay.leave("values", self.kind, v)
            return v
        mix = self.to_mix(x).sigmoid().mT[..., None].to(v.dtype) if self.to_mix is not None else 0.5
        return torch.lerp(first, v, mix)
