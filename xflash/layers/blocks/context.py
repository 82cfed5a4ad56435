"""What blocks that attend to a context carry on: its keys and values, computed once."""

from typing import ClassVar, NamedTuple

import torch

from ...base.frozen import frozen
from ...base.shapes import Bool, Float, Tensor
from ...base.state import Ctx
from ...flags.flag import flag
from .block import Block

__all__ = ["Context", "ContextFlags", "TakesContext", "context_mask", "source"]


@frozen
class ContextFlags:
    """The flags of a context."""

    dim_context: int | None = flag(None, "width of the context (None: the stack's)", at_least=1, tried=(20,))
    tokens_dropout: float = flag(
        0.0,
        "share of the context's tokens that are not seen while training, one always is",
        at_least=0,
        below=1,
        paper="https://arxiv.org/abs/2202.07765",
        tried=(0.2,),
    )


class Context(NamedTuple):
    """Keys and values (b, h, c, width) of a context, which of its tokens are real, and whether the keys are turned."""

    k: Float[Tensor, "b h c k"]
    v: Float[Tensor, "b h c e"]
    mask: Bool[Tensor, "b c"] | None
    turned: bool = False

    # What a step of one token leaves where it is.
    in_place = ("k", "v")


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
        return Context(k, v, self.seen(ctx), turned)

    def seen(self, ctx: Ctx) -> Bool[Tensor, "b c"] | None:
        """Which tokens of the context are seen, the same in all layers that leave out as many; None for all."""
        p, mask = self.config.tokens_dropout, ctx.context_mask
        if p and self.training:
            return ctx.once(("tokens left", p), lambda: left(source(ctx), mask, p))
        # A copy: what the caller writes into the mask afterwards is not for the state.
        return mask if mask is None else ctx.once("mask that is kept", mask.clone)

    def toward(self, q: Float[Tensor, "b h n k"], held: Context, ctx: Ctx) -> Float[Tensor, "b h n k"]:
        """Queries turned as the keys are."""
        return ctx.relative.rotate(q, ctx, over_context=True) if held.turned and ctx.relative is not None else q


def source(ctx: Ctx) -> Float[Tensor, "b c _"]:
    """The context of this call; ValueError where the stack was given none."""
    if ctx.context is None:
        raise ValueError("this block attends to a context, but the call has none")
    return ctx.context


def left(context: Float[Tensor, "b c _"], mask: Bool[Tensor, "b c"] | None, p: float) -> Bool[Tensor, "b c"]:
    """A random share 1 - p of each row's real tokens, one at least; drawn from torch's generator."""
    chance = torch.rand(context.shape[:2], device=context.device)
    if mask is None:
        return chance.argsort(1).argsort(1) < max(1, round(context.shape[1] * (1 - p)))
    wanted = (mask.sum(1, keepdim=True) * (1 - p)).round().clamp(min=1)
    return mask & (chance.masked_fill(~mask, 2.0).argsort(1).argsort(1) < wanted)
