"""`state_read`: tokens of any layer attend to the state vectors of a recurrent one."""

from collections.abc import Mapping
from typing import Any, ClassVar

from einops import rearrange
from torch import nn

from ...base.frozen import frozen
from ...base.registry import blocks
from ...base.shapes import Float, Tensor, typed
from ...base.state import Ctx
from ...flags.flag import flag
from ..projection import whole
from ..scores.read import ReadFlags, SoftmaxRead
from ..site import Site
from .cosine import Cosine
from .reading import Reading

__all__ = ["StateRead", "StateReader"]


class StateReader(nn.Module):
    """What tokens read from named state vectors, without positions; heads joined, not yet projected.

    cosine: the flag that asks for cosine attention, None where none does.
    """

    def __init__(self, reader: SoftmaxRead, dim: int, heads: int, kv_heads: int, width: int, cosine: str | None):
        super().__init__()
        self.reader = reader
        self.heads, self.kv_heads, self.width = heads, kv_heads, width
        self.to_q = nn.Linear(dim, heads * width, bias=False)
        self.key_value = nn.Linear(dim, 2 * kv_heads * width, bias=False)
        self.cosine = Cosine(width, cosine) if cosine else None

    def forward(self, x: Float[Tensor, "b n d"], states: Float[Tensor, "b s d"], ctx: Ctx) -> Float[Tensor, "b n _"]:
        q = whole(self.to_q(x), self.heads * self.width, "state_read")
        both = whole(self.key_value(states), 2 * self.kv_heads * self.width, "state_read")
        q = rearrange(q, "b n (h k) -> b h n k", h=self.heads)
        k, v = rearrange(both, "b s (h two k) -> two b h s k", two=2, h=self.kv_heads).unbind(0)
        if self.cosine is not None:
            q, k = self.cosine(q, k)
        return rearrange(self.reader.alone(q, k, v, ctx), "b h n k -> b n (h k)")


@blocks.register("state_read")
class StateRead(Reading):
    """Feedback: tokens attend to the state vectors of a recurrent layer anywhere in the column.

    https://arxiv.org/abs/2203.07852. They read what the full blocks before their own have left, so that the stack runs
    block after block instead of layer after layer.
    """

    steady = True
    kind = "state_read"
    honours = frozenset({"doc_ids"})
    causal_only = True
    example: ClassVar[Mapping[str, Any]] = {"layers": "state_read recurrent"}

    @frozen
    class Config(ReadFlags):
        source: int = flag(
            1,
            "which recurrent layer of the column is read, counted from 1",
            at_least=1,
            tried="layouts have one recurrent layer for them to read",
        )
        dim_head: int = flag(64, "width of a head", at_least=1, tried=(6,))
        heads: int | None = flag(None, "query heads (None: the stack's)", at_least=1, tried=(3,))
        cosine: bool = flag(
            True,
            "cosine attention with learned gains per channel",
            paper="https://arxiv.org/abs/2010.04245",
            tried=(False,),
        )
        cosine_scale: float = flag(10.0, "what cosine multiplies the cosines by", above=0, tried=(4.0,))

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site)
        heads, width = config.heads or site.heads, config.dim_head
        scale = config.cosine_scale if config.cosine else width**-0.5
        cosine = f"{self.kind}_cosine" if config.cosine else None
        reader = SoftmaxRead(self.kind, config, site, heads, scale)
        self.reader = StateReader(reader, site.dim, heads, heads, width, cosine)
        self.to_out = site.linear_out(heads * width)

    def reads_states(self) -> tuple[int, ...]:
        return (self.config.source,)

    @typed
    def forward(self, x: Float[Tensor, "b n d"], ctx: Ctx, state: Any = None) -> tuple[Float[Tensor, "b n d"], None]:
        return self.to_out(self.reader(x, ctx.states[self.config.source].to(x.dtype), ctx)), None
