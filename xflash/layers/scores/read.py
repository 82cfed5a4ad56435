"""`SoftmaxRead`: what queries read from keys and values, by the fused kernel where nothing needs the matrix."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import repeat
from torch import nn

from ...base.frozen import frozen
from ...base.registry import scores
from ...base.shapes import Bool, Float, Int, Tensor
from ...base.state import Ctx
from ...flags.aliases import names
from ...flags.flag import flag
from ..kernels.softmax import attend, attend_slow, lower
from .given import weight_fn
from .step import Read, ScoreStep

__all__ = ["ReadFlags", "SoftmaxRead", "in_front", "rows_of"]


@frozen
class ReadFlags:
    """The flags of every block that reads by softmax."""

    scores: str | tuple[str, ...] | None = flag(
        None,
        "registered steps on the scores, in their order: softclamp, ...",
        tried=(
            "softclamp topk learned_sink l2_distance zero_key",
            "topk talking_heads",
            "residual softclamp",
            "residual forget",
            "forget learned_sink rel_proj",
            "cope softclamp selective",
            "cope forget_by_query",
            "talking_heads",
        ),
    )
    weight_fn: str | Callable[[Tensor], Tensor] = flag(
        "softmax",
        "a registered function from scores to weights: softmax, sigmoid, hard, ..., or one's own",
        tried="all that are registered are",
    )


class SoftmaxRead(nn.Module):
    """scores -> steps -> mask -> weights -> dropout -> steps -> values.

    kind: the name of the block, with which the flags begin.  site: has the Configs of steps and weight functions in
    `parts`, defaults where it has none.  heads: of queries; of keys and values there may be fewer, query head h then
    reads head h // r.  flash: the fused kernel wherever no step and no weight function needs the matrix (None), never
    (False), or always, which is refused beside one that does.
    """

    def __init__(
        self,
        kind: str,
        config: Any,
        site: Any,
        heads: int,
        scale: float,
        *,
        dropout: float = 0.0,
        flash: bool | None = None,
    ):
        super().__init__()
        self.kind, self.scale, self.dropout = kind, scale, dropout
        chosen = {name: scores[name] for name in names(config.scores, f"{kind}_scores", scores)}
        site = replace(site, dim_head=config.dim_head)
        self.steps = nn.ModuleDict(
            {name: step(site.parts.get(name) or step.Config(), site, heads, kind) for name, step in chosen.items()}
        )
        self.weigh = weight_fn(config.weight_fn, site)
        matrix = [f"{kind}_scores={' '.join(chosen)!r}" for step in chosen.values() if step.takes_matrix()]
        matrix += [] if self.weigh.fused else [f"{kind}_weight_fn={config.weight_fn!r}"]
        if matrix and flash:
            raise ValueError(
                f"{kind}_flash=True asks for the fused kernel, which makes no scores for {matrix[0]}: leave one out"
            )
        self.fused = not matrix and flash is not False
        self.plain = not chosen and self.weigh.fused
        self.brings = tuple(name for step in chosen.values() for name in step.brings)
        self.extra = any(step.extra_key is not ScoreStep.extra_key for step in chosen.values())
        self.meets = any(step.meet is not ScoreStep.meet for step in chosen.values())
        self.adds = any(step.bias is not ScoreStep.bias for step in chosen.values())

    def check_scores(self, said: str, config: Any) -> None:
        """ValueError where the fused kernel is asked for, or weights that no softmax makes; `said`: what needs it."""
        if config.flash:
            raise ValueError(f"{said} needs the scores, which {self.kind}_flash=True never makes: leave one out")
        if not self.weigh.fused:
            other = f"{self.kind}_weight_fn={config.weight_fn!r}"
            raise ValueError(f"{said} is of a softmax, but the weights are of {other}")

    def ordered(self) -> list[ScoreStep]:
        """The steps in their order."""
        return cast("list[ScoreStep]", list(self.steps.values()))

    def bring(self, x: Float[Tensor, "b n d"], ctx: Ctx, last: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The named buffers of these tokens, of all steps."""
        found: dict[str, Tensor] = {}
        for step in self.ordered():
            found |= step.bring(x, ctx, last)
        return found

    def ask(self, x: Float[Tensor, "b n d"]) -> dict[str, Tensor]:
        """What these tokens ask as queries, of all steps."""
        found: dict[str, Tensor] = {}
        for step in self.ordered():
            found |= step.ask(x)
        return found

    def biased(self, bias: Float[Tensor, "_ h n m"] | None, read: Read) -> Float[Tensor, "_ h n m"] | None:
        """What is added to the scores of tokens, that of the steps included."""
        for step in self.ordered():
            more = step.bias(read)
            if more is not None:
                more = more.to(read.q.dtype)
                bias = more if bias is None else bias + more
        return bias

    def forward(
        self,
        q: Float[Tensor, "b h n k"],
        k: Float[Tensor, "b _ m k"],
        v: Float[Tensor, "b _ m e"],
        mask: Bool[Tensor, "_ _ _ m"] | None = None,
        bias: Float[Tensor, "_ _ n m"] | None = None,
        causal: bool = False,
        read: Read | None = None,
        maps: bool = False,
        told: Callable[[Tensor], None] | None = None,
    ) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n m"] | None]:
        """What the queries read, each of at least one key, and the weights where `maps` asks for them.

        causal: whether it is *also* plainly causal.  read: what the steps may know, needed where there are any.
        told: is given the scores that the weights are made of, -inf where a key is not seen.
        """
        q, k = self.met(q, k)
        whole = maps or told is not None
        by_kernel = self.fused and not whole
        if by_kernel and self.extra:
            k, v, mask, bias, causal = self.beside(k, v, mask, bias, causal, read)
        r = q.shape[1] // k.shape[1]
        shared = r > 1 and q.shape[2] == 1 and not causal and (by_kernel or (self.plain and not whole))
        if shared:
            q = share(q, k.shape[1])
            mask, bias = (None if t is None else share(t, k.shape[1]) for t in (mask, bias))
        elif r > 1:
            k, v = (repeat(t, "b h m k -> b (h r) m k", r=r) for t in (k, v))
        dropout = self.dropout if self.training else 0.0
        if by_kernel:
            y, weights = attend(q, k, v, mask, bias, causal, self.scale, dropout), None
        else:
            plain = () if told is None else (None, partial(telling, told, self.weigh))
            between: tuple = plain if self.plain else self.between(read, bias, told)
            y, weights = attend_slow(q, k, v, mask, bias, causal, self.scale, dropout, *between)
        return y.flatten(1, 2).unsqueeze(2) if shared else y, weights

    def alone(
        self,
        q: Float[Tensor, "b h n k"],
        k: Float[Tensor, "b _ m k"],
        v: Float[Tensor, "b _ m e"],
        ctx: Ctx | None = None,
        mask: Bool[Tensor, "_ _ _ m"] | None = None,
        g: int = 1,
    ) -> Float[Tensor, "b h n e"]:
        """What is read of keys that are no tokens, so that the steps know of no places; g of the batch are one row."""
        read = None if self.plain else Read(q, k, ctx, rows=rows_of(q, g))
        bias = None if read is None else self.biased(None, read)
        return self(q, k, v, mask, bias, read=read)[0]

    def met(self, q: Float[Tensor, "b h n k"], k: Float[Tensor, "b _ m k"]) -> tuple[Tensor, Tensor]:
        """Queries and keys as they are multiplied with each other."""
        if self.meets:
            for step in self.ordered():
                q, k = step.meet(q, k)
        return q, k

    def extra_scores(self, read: Any) -> Float[Tensor, "_ h _ t"]:
        """The scores of keys that stand beside all others, of all steps."""
        found = [t for step in self.ordered() if (t := step.extra_key(read)) is not None]
        return torch.cat(found, -1) if len(found) > 1 else found[0]

    def beside(
        self, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, causal: bool, read: Any
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor, bool]:
        """Keys and values of zero in front of the others for the fused kernel, and a bias that gives them scores."""
        extra = self.extra_scores(read).to(read.q.dtype)
        t, n, m = extra.shape[-1], read.q.shape[2], k.shape[2]
        mask = in_front(t, mask, causal, n, k)
        bias = extra.new_zeros(1, 1, 1, m) if bias is None else bias
        rows = torch.broadcast_shapes(extra.shape[:-1], bias.shape[:-1])
        bias = torch.cat((extra.expand(*rows, t), bias.expand(*rows, m)), -1)
        k, v = (F.pad(kept, (0, 0, t, 0)) for kept in (k, v))
        return k, v, mask, bias, False

    def between(
        self, read: Any, bias: Tensor | None, told: Callable[[Tensor], None] | None = None
    ) -> tuple[Callable, Callable, Callable]:
        """What happens between scores and values, in three parts."""
        read.bias = bias
        steps = self.ordered()

        def before(s: Tensor, mask: Tensor | None) -> Tensor:
            read.mask = mask
            for step in steps:
                s = step.before(s, read)
            for step in steps:
                step.settled(s, read)
            return s

        def weigh(s: Tensor) -> Tensor:
            t = 0
            if self.extra:
                extra = self.extra_scores(read).to(s.dtype)
                t = extra.shape[-1]
                s = torch.cat((extra.expand(*s.shape[:-1], t), s), -1)
            fn: Callable = self.weigh
            for step in reversed(steps):
                fn = partial(step.around, weigh=fn)
            weights = telling(told, fn, s)[..., t:]
            # Steps behind may mix heads, of which some may see what others don't.
            return weights if read.blind is None else weights.masked_fill(read.blind, 0)

        def behind(weights: Tensor) -> Tensor:
            for step in steps:
                weights = step.behind(weights, read)
            return weights

        return before, weigh, behind


def telling(told: Callable[[Tensor], None] | None, weigh: Callable[[Tensor], Tensor], s: Tensor) -> Tensor:
    """The weights of scores, which somebody may want to be told."""
    if told is not None:
        told(s)
    return weigh(s)


def rows_of(q: Float[Tensor, "b h n k"], g: int) -> Int[Tensor, " b"] | None:
    """Which row each of the batch is part of, g of them to a row."""
    return None if g == 1 else torch.arange(q.shape[0], device=q.device) // g


def share(t: Float[Tensor, "_ h 1 _"], kv_heads: int) -> Float[Tensor, "_ _ r _"]:
    """What belongs to one query a head as r queries a key/value head, whose keys then need not be repeated."""
    return t if t.shape[1] == 1 else t.reshape(t.shape[0], kv_heads, t.shape[1] // kv_heads, t.shape[3])


def in_front(
    t: int, mask: Bool[Tensor, "_ _ _ m"] | None, causal: bool, n: int, k: Float[Tensor, "b _ m _"]
) -> Bool[Tensor, "_ _ _ _"] | None:
    """What n queries may see where t keys that all see stand in front of those of `k`; causality is part of it."""
    if causal:
        below = lower(n, k.shape[2], k.device)[None, None]
        mask = below if mask is None else mask & below
    return None if mask is None else F.pad(mask, (t, 0), value=True)
