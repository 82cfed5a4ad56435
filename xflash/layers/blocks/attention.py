"""`attn`: softmax attention among the tokens of the stack, with the variations people mix in."""

from collections.abc import Sequence

import torch
from torch import nn

from ...base.frozen import frozen
from ...base.registry import blocks
from ...base.shapes import Float, Tensor, typed
from ...base.state import Ctx
from ...flags.flag import flag
from ..positions.slots import Slots
from ..projection import linear_in, split_off_values
from ..scores.banded import read_band
from ..scores.step import Read
from ..site import Site
from .bands import band_of, pieces_of
from .bounded import read_bounded
from .key_values import KV, added, append, begin, fits, last, over_all_tokens, place, reserve, shorten
from .latents import Latents
from .masks import visible

__all__ = ["Attention"]


@blocks.register("attn")
class Attention(Latents):
    """Multi-head softmax attention over the tokens of the stack (https://arxiv.org/abs/1706.03762).

    With a window the state is bounded too; its sinks are those of https://arxiv.org/abs/2309.17453.
    """

    kind = "attn"
    views = 3
    honours = frozenset({"attn_mask", "doc_ids", "prefix"})
    keeps_tokens = True
    moves = True
    has_matrix = True
    positions = frozenset({"rotary", "rotary2d", "rel_pos", "alibi", "dynamic", "polar"})
    offers = frozenset({"buffers", "causal", "chance", "relay", "tokens"})

    @frozen
    class Config(Latents.Config):
        window: int | None = flag(
            None,
            "tokens a query sees, itself included (both ways when bidirectional)",
            at_least=1,
            paper="https://arxiv.org/abs/2004.05150",
            tried=(5,),
        )
        sinks: int = flag(
            0,
            "first tokens of a row, memory tokens counted, that stay visible beyond the window",
            at_least=0,
            paper="https://arxiv.org/abs/2309.17453",
            tried=({"sinks": 2, "window": 3},),
        )
        value_residual_learned: bool = flag(
            True,
            "tokens say how much of the first layer's values they take, not half",
            paper="https://arxiv.org/abs/2410.17897",
            tried=({"value_residual_learned": False, "value_residual": True},),
        )

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site)
        self.check_latents(config)
        self.has_latents = config.dim_latent_q is not None or config.dim_latent_kv is not None
        self.build_latents(config, site) if self.has_latents else self.build_fused(config, site)
        if not config.value_residual_learned and not config.value_residual:
            raise ValueError("attn_value_residual_learned=False is set, but attn_value_residual is False")
        if config.value_residual and config.value_residual_learned and not site.is_first(self.kind):
            self.to_mix = nn.Linear(site.dim, self.kv_heads)
        if config.sinks and config.window is None:
            raise ValueError(f"attn_sinks={config.sinks} is set, but attn_window is None: every token stays visible")
        # Steps may add to what they have brought, which is then made anew.
        self.steady = not self.reader.brings

    def build_fused(self, config: Config, site: Site) -> None:
        """By key/value head: its queries, its key, its value."""
        fused = (self.heads + self.kv_heads) * config.dim_head + self.kv_heads * self.value_width
        self.query_key_value = linear_in(site.dim, fused, config.qkv_bias)

    def bias_heads(self) -> int:
        return self.heads

    @typed
    def forward(
        self, x: Float[Tensor, "b n *v d"], ctx: Ctx, state: KV | None = None
    ) -> tuple[Float[Tensor, "b n d"], KV | None]:
        """x may hold a tensor each for queries, keys and values (b, n, 3, d)."""
        q, k, v = self.of_latents(x, ctx) if self.has_latents else self.of_tokens(x, ctx)
        x = x if x.dim() == 3 else x[:, :, 0]
        reader = self.reader
        fresh = self.bring(x, ctx, state) if reader.brings else ()
        if self.keeps_read:
            fresh = (ctx.relay.take("read", "here")[:, None],)
        (k, v, *brought), state = self.remember(k, v, ctx, state, *fresh)
        slots = place(state, ctx, k.shape[2])
        absorbed = self.has_latents and self.absorbs(x.shape[1], ctx)
        if absorbed:
            q, k, v = self.absorbed(q, k)
        elif self.config.dim_latent_kv is not None:
            k, v = self.made_again(k, ctx, state)
        read = None if reader.plain else Read(q, k, ctx, slots.at, slots.keys)
        if read is not None:
            read.buffers, read.fresh = (dict(zip(reader.brings, held, strict=False)) for held in (brought, fresh))
            read.asked = reader.ask(x)
        y = self.look(q, k, v, ctx, slots, read)
        if ctx.maps is not None:
            over_all_tokens(ctx.maps, state, ctx)
        y = self.joined(self.from_latents(y) if absorbed else y, x, ctx)
        if state is not None and read is not None and read.added:
            state = added(state, reader.brings, read.added, k.shape[2])
        return y, state if state is None else self.bounded(state, ctx, x.shape[1])

    def of_tokens(
        self, x: Float[Tensor, "b n *v d"], ctx: Ctx
    ) -> tuple[Float[Tensor, "b h n k"], Float[Tensor, "b _ n k"], Float[Tensor, "b _ n e"]]:
        """Queries and keys, turned, and values."""
        r = self.heads // self.kv_heads
        if x.dim() == 3:
            qk, v = self.split(self.query_key_value(x), r)
        else:
            (qk, v), x = self.of_views(x, r), x[:, :, 0]
        if v.shape[1] != self.kv_heads:
            self.check_shard(v.shape[1], ctx)
        v = self.valued(v, x, ctx)
        qk = self.normed(qk, "q", "k")
        q, k = qk.split((r, 1), 2) if ctx.relative is None else ctx.relative.rotate_both(qk, r, ctx)
        return q.flatten(1, 2), k.flatten(1, 2), v

    def seen_window(self) -> tuple[int | None, int]:
        return self.config.window, self.config.sinks

    def refuses_gap(self) -> str:
        step = next((name for name, step in self.reader.steps.items() if step.adds_between), None)
        if step is None or self.config.window is not None:
            return ""
        return f"{self.kind}_scores has {step!r}, which adds up what stands between key and query"

    def rooted(self) -> str:
        if self.config.value_residual:
            return f"{self.kind}_value_residual=True mixes values with those of the layer's own call"
        if self.reader.brings:
            return f"{self.kind}_scores={' '.join(self.config.scores)!r} keeps more than keys and values"
        if self.config.dim_latent_kv is not None:
            return f"{self.kind}_dim_latent_kv={self.config.dim_latent_kv} keeps latents in place of keys and values"
        return ""

    def remade(self, state: KV, x: Float[Tensor, "b n d"], ctx: Ctx) -> KV:
        _, k, v = self.of_latents(x, ctx) if self.has_latents else self.of_tokens(x, ctx)
        return state.holding((k, v, *state.brought))

    def split(self, t: Float[Tensor, "b n _"], r: int) -> tuple[Float[Tensor, "b g _ n k"], Float[Tensor, "b g n e"]]:
        """What was projected by key/value head: its queries and its key, and its value."""
        return split_off_values(t, r + 1, self.config.dim_head, self.value_width)

    def of_views(
        self, x: Float[Tensor, "b n v d"], r: int
    ) -> tuple[Float[Tensor, "b g _ n k"], Float[Tensor, "b g n e"]]:
        """The same, queries, keys and values each of a tensor of its own."""
        (q, _), (k, _), (_, v) = (self.split(self.query_key_value(view), r) for view in x.unbind(2))
        return torch.cat((q[:, :, :r], k[:, :, r:]), 2), v

    def bring(self, x: Tensor, ctx: Ctx, state: KV | None) -> tuple[Tensor, ...]:
        """The buffers of these tokens that the steps on the scores ask for."""
        names = self.reader.brings
        before = None if state is None else dict(zip(names, last(state, ctx), strict=True))
        found = self.reader.bring(x, ctx, before)
        return tuple(found[name] for name in names)

    def remember(
        self, k: Tensor, v: Tensor, ctx: Ctx, state: KV | None, *brought: Tensor
    ) -> tuple[Sequence[Tensor], KV | None]:
        """What is kept of all tokens there are, the new ones' written behind the old, and the state that holds it."""
        if not ctx.keep_state:
            return (k, v, *brought), None
        if state is None:
            return (k, v, *brought), begin(k, v, ctx, *brought)
        return append(state, k, v, ctx, *brought)

    def look(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Ctx, slots: Slots, read: Read | None
    ) -> Float[Tensor, "b h n e"]:
        """What the queries read from the tokens they may see."""
        if (y := self.in_blocks(q, k, v, ctx, slots, read)) is not None:
            return self.gained(y)
        view = seen = (self.config.window, self.config.sinks)
        if self.config.window is not None and self.sees_the_last(ctx, slots):
            # A view of what the token sees, rather than a mask over all there is.
            first = max(k.shape[2] - self.config.window, 0)
            k, v, seen = k[:, :, first:], v[:, :, first:], (None, 0)
            read = None if read is None else read.since(first)
        m = k.shape[2]
        sight = visible(ctx, slots, m, self.site.causal, *seen)
        bias = None if ctx.relative is None else ctx.relative.bias(self.heads, slots, m, ctx, q.dtype, view)
        return self.read(q, k, v, sight, bias=bias, read=read, ctx=ctx)

    def in_blocks(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Ctx, slots: Slots, read: Read | None
    ) -> Float[Tensor, "b h n e"] | None:
        """What the queries read, of keys that they see alone; None where they are few, or a matrix is needed."""
        if q.shape[2] == 1:
            return None
        if self.config.window is None:
            return read_bounded(self, q, k, v, ctx, slots)
        if (band := band_of(self, ctx, slots, q.shape[2], k.shape[2])) is None:
            return None
        masks, biases = pieces_of(band, ctx, self.heads, q)
        memory = self.memory(k) if self.config.num_mem_kv else None
        return read_band(self.reader, q, k, v, band, masks, biases, memory, read)

    def sees_the_last(self, ctx: Ctx, slots: Slots) -> bool:
        """Whether this is a call of one token that sees the window's tokens, which are the last, and no others."""
        if self.config.sinks or slots.keys is not None or torch.compiler.is_compiling() or not self.site.causal:
            return False
        if ctx.maps is not None:
            return False
        return slots.at.shape[1] == 1 and ctx.uniform and ctx.attn_mask is ctx.doc_ids is ctx.prefix is None

    def bounded(self, state: KV, ctx: Ctx, n: int) -> KV:
        """The state behind a call of n tokens, however many they were; single ones wait for `reserve`."""
        if n == 1 or torch.compiler.is_compiling() or not self.holds_unseen(state, ctx.past + n):
            return state
        return shorten(state, self.config.window, self.config.sinks, ctx.past + n, ctx.ends(n))

    def holds_unseen(self, state: KV, used: int) -> bool:
        """Whether most of what is held no query will see again."""
        window = self.config.window
        return window is not None and used - state.spared >= 2 * window + self.config.sinks

    def reserve(self, state: KV | None, used: int, need: int, copy: bool, length: Tensor | None) -> KV | None:
        if state is None:
            return None
        if not fits(state, need) and self.holds_unseen(state, used):
            # Rather than growing, it is given up.
            state = shorten(state, self.config.window, self.config.sinks, used, length)
        return reserve(state, used, need, copy, length)

    def shorten(self, state: KV | None, tokens: int, front: int, bound: int, length: Tensor | None) -> KV | None:
        if state is None:
            return None
        # Memory tokens are ordinary tokens to a window.
        return shorten(state, tokens, front if self.config.window is None else self.config.sinks, bound, length)
