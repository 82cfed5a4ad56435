"""What blocks that attend to a context carry on: its keys and values, computed once."""

from typing import ClassVar, NamedTuple

from ...base.shapes import Bool, Float, Tensor
from ...base.state import Ctx
from .block import Block

__all__ = ["Context", "TakesContext", "context_mask", "source"]


class Context(NamedTuple):
    """Keys and values (b, h, c, width) of a context, which of its tokens are real, and whether the keys are turned."""

    k: Float[Tensor, "b h c k"]
    v: Float[Tensor, "b h c e"]
    mask: Bool[Tensor, "b c"] | None
    turned: bool = False


def context_mask(held: Context) -> Bool[Tensor, "b 1 1 c"] | None:
    """The mask of a context as it broadcasts to scores (b, h, n, c)."""
    return None if held.mask is None else held.mask[:, None, None]


class TakesContext(Block):
    """What blocks that attend to a context share: they keep it, and turn keys and queries only if it has places."""

    # A mask of tokens among each other, and their prefix, say nothing about a context.
    honours = frozenset({"attn_mask", "prefix"})
    positions = frozenset({"rotary"})
    takes_context = True
    mixes_tokens = False
    has_matrix = True
    kind: ClassVar[str]
    # How the names of the parameters begin that read the context, in the first call only.
    reading: ClassVar[tuple[str, ...]]

    def context_width(self) -> int:
        return self.config.dim_context or self.site.dim

    def check_context(self, context: Tensor, batch: int, otherwise: str = "") -> None:
        super().check_context(context, batch, f"; {self.kind}_dim_context sets another width")

    def kept_on_reset(self, state: Context | None) -> Context | None:
        return state

    def optional(self, state: Context | None) -> tuple[str, ...]:
        return () if state is None else self.reading

    def held(self, k: Tensor, v: Tensor, ctx: Ctx) -> Context:
        """Keys and values of the context of this call, the keys turned where `context_pos` says where they stand."""
        turned = ctx.relative is not None and ctx.context_pos is not None
        if turned:
            k = ctx.relative.rotate(k, ctx, inverse=True, where=ctx.context_pos, over_context=True)
        mask = ctx.context_mask
        # A copy: what the caller writes into the mask afterwards is not for the state.
        mask = mask if mask is None else ctx.once("mask that is kept", mask.clone)
        return Context(k, v, mask, turned)

    def toward(self, q: Float[Tensor, "b h n k"], held: Context, ctx: Ctx) -> Float[Tensor, "b h n k"]:
        """Queries turned as the keys are."""
        return ctx.relative.rotate(q, ctx, over_context=True) if held.turned and ctx.relative is not None else q


def source(ctx: Ctx) -> Float[Tensor, "b c _"]:
    """The context of this call; ValueError where the stack was given none."""
    if ctx.context is None:
        raise ValueError("this block attends to a context, but the call has none")
    return ctx.context
