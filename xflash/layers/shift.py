"""Token shift: part of the channels of each token come from its neighbours (https://github.com/BlinkDL/RWKV-LM)."""

from typing import Literal

import torch

from ..base.frozen import frozen
from ..base.shapes import Float, Tensor
from ..base.state import Ctx, document_positions
from ..flags.flag import flag
from .part import Part
from .site import Site

__all__ = ["ShiftStyle", "TokenShift"]

ShiftStyle = Literal["second_half", "first_half"]


class TokenShift(Part):
    """Delays chunks of the channels by 0, 1 .. `amount` tokens, zeros before the start.

    second_half (x-transformers): chunk i of amount + 1 comes from i tokens before; in a bidirectional stack there are
    2 * amount + 1 chunks, from `amount` tokens after to `amount` before; channels left over stay.
    first_half (FLASH-pytorch): the first half of the channels comes from the token before, whatever the direction.
    """

    calls = ("x", "ctx", "last")

    @frozen
    class Config:
        amount: int = flag(1, "tokens by which channels are delayed", at_least=1, tried="the stack says it")
        style: ShiftStyle = flag("second_half", "which channels are delayed", tried="the stack says it")

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site)
        amount, style, causal, dim = config.amount, config.style, site.causal, site.dim
        chunks = (amount + 1 if causal else 2 * amount + 1) if style == "second_half" else 2
        if style == "first_half" and amount != 1:
            raise ValueError(f"shift_tokens={amount} with shift_style='first_half': it delays by exactly 1 token")
        if dim < chunks:
            raise ValueError(f"shift_tokens={amount} cuts the channels into {chunks} chunks, but dim is {dim}")
        self.amount, self.style, self.causal = amount, style, causal
        width = dim // chunks
        if style == "first_half":
            self.moves = [(0, (dim + 1) // 2, 1)]
        else:
            first = 0 if causal else -amount
            self.moves = [(i * width, (i + 1) * width, first + i) for i in range(chunks) if first + i]

    def forward(
        self, x: Float[Tensor, "b n *v d"], ctx: Ctx, last: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x with its chunks delayed, and the last `amount` tokens (b, amount, *v, d) for the next call."""
        n, s = x.shape[1], self.amount
        real = ctx.real(n)
        if real is not None:
            x = x.masked_fill(~over(real, x), 0)
        head = x.new_zeros(x.shape[0], s, *x.shape[2:]) if last is None else last.to(x.dtype)
        around = torch.cat((head, x), 1)
        if not self.causal:
            around = torch.cat((around, x.new_zeros(x.shape[0], s, *x.shape[2:])), 1)
        parts, done = [], 0
        for start, end, delay in self.moves:
            moved = around[:, s - delay : s - delay + n, ..., start:end]
            if ctx.doc_ids is not None:
                moved = moved.masked_fill(~over(self.same_document(ctx.doc_ids, delay), moved), 0)
            parts += [x[..., done:start], moved]
            done = end
        shifted = torch.cat([p for p in (*parts, x[..., done:]) if p.shape[-1]], -1)
        return shifted, self.tail(around, n, ctx) if ctx.keep_state else None

    def tail(self, around: Float[Tensor, "b _ *v d"], n: int, ctx: Ctx) -> Float[Tensor, "b s *v d"]:
        """The last `amount` tokens each row has seen; for a row without new ones, those it had."""
        if ctx.new is None:
            return around[:, n : n + self.amount]
        index = ctx.new[:, None] + torch.arange(self.amount, device=around.device)
        return around.gather(1, over(index, around).expand(-1, -1, *around.shape[2:]))

    def same_document(self, doc_ids: Tensor, delay: int) -> Tensor:
        """Whether the token `delay` before (after, when negative) belongs to the same document."""
        if delay > 0:
            return document_positions(doc_ids) >= delay
        return document_positions(doc_ids.flip(1)).flip(1) >= -delay


def over(t: Tensor, x: Tensor) -> Tensor:
    """What there is for each token, (b, n), with the axes that x has behind them."""
    return t.view(*t.shape, *[1] * (x.dim() - 2))
