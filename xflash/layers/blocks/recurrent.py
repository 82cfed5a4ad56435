"""`recurrent`: the layer of the block-recurrent transformer (https://arxiv.org/abs/2203.07852)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ...base.registry import blocks
from ...base.shapes import Bool, Float, Int, Tensor, typed
from ...base.state import Ctx
from ..kernels.groups import join_groups, part_groups
from ..kernels.windows import Blocks, Window, valid
from ..norms import LayerNorm
from ..projection import key_and_value
from ..scores.read import SoftmaxRead
from ..site import Site
from .block_attention import BlockAttention
from .block_flags import RecurrentFlags
from .cosine import Cosine
from .recurrence import as_built, describe, of_documents, outline, recurrence

__all__ = ["Recurrent", "RecurrentState"]


class RecurrentState(NamedTuple):
    """The state vectors, float32 at least, how often each row has rewritten them, and the window.

    A row that never has starts from the learned vectors, whatever stands here.
    """

    vectors: Float[Tensor, "b s d"]
    writes: Int[Tensor, " b"]
    window: Window


class Gate(nn.Module):
    """How state vectors take an update in; h is what it is made of, the paper's eq. 1 to 9.

    fixed: S g + z (1 - g) with one learned g a channel. lstm: S f + z i. gru: S g + z (1 - g), g from h. z, f, i and g
    are linear in h; lstm and gru bound z by tanh.
    """

    def __init__(self, kind: Literal["fixed", "lstm", "gru"], width: int, dim: int):
        super().__init__()
        self.kind = kind
        outputs = {"fixed": 1, "gru": 2, "lstm": 3}[kind]
        self.to_update = nn.Linear(width, outputs * dim)
        nn.init.zeros_(self.to_update.bias)
        if kind == "fixed":
            self.decay = nn.Parameter(torch.empty(dim).normal_(std=0.1))

    def forward(self, states: Float[Tensor, "b s d"], h: Float[Tensor, "b s _"]) -> Float[Tensor, "b s d"]:
        z = self.to_update(h).to(states.dtype)
        if self.kind == "fixed":
            return torch.lerp(z, states, self.decay.sigmoid().to(states.dtype))
        if self.kind == "gru":
            z, keep = z.chunk(2, -1)
            return torch.lerp(z.tanh(), states, (keep + 1).sigmoid())
        z, take, keep = z.chunk(3, -1)
        return states * (keep + 1).sigmoid() + z.tanh() * (take - 1).sigmoid()


class Mixer(nn.Module):
    """A feed-forward layer on the state vectors: relu between two linear maps, four times as wide."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.to_inner = nn.Linear(width, 4 * dim)
        self.to_out = nn.Linear(4 * dim, dim)

    def forward(self, h: Float[Tensor, "b s _"]) -> Float[Tensor, "b s d"]:
        return self.to_out(self.to_inner(h).relu())


@blocks.register("recurrent")
class Recurrent(BlockAttention):
    """Attention in blocks beside a set of state vectors that every block reads and that each full block rewrites.

    A token's block and the one before (`block_attn`), and the state vectors as the blocks before left them, are read
    side by side and joined by one map. A full block updates the vectors: they attend to each other and to the block's
    keys and values and pass through a gate. An open block never does, so that every cut gives the same. The paper's W
    is our w, its S our s.
    """

    kind = "recurrent"
    publishes = True
    offers = frozenset()
    # What `renew` uses.
    renewing: ClassVar[tuple[str, ...]] = (
        "state_norm",
        "names",
        "state_to_q",
        "state_key_value",
        "state_cosines.among",
        "state_cosines.write",
        "state_reads.among",
        "state_reads.write",
        "mixer",
        "gate",
    )

    Config = RecurrentFlags

    def __init__(self, config: RecurrentFlags, site: Site):
        super().__init__(config, site, reads=int(config.reads and config.read_layer is None))
        self.built = describe(self.kind, config, site)
        dim, width, inner = site.dim, config.dim_head, self.heads * config.dim_head
        self.reads_own = config.reads and config.read_layer is None
        if self.reads_own:
            self.to_state_q = nn.Linear(dim, inner, bias=False)
        self.state_norm = LayerNorm.of(dim)
        # The vectors' names: without them all vectors would be updated alike. N(0, 1), for they stand behind a norm.
        self.names = nn.Parameter(torch.randn(config.num_state_vectors, dim))
        self.start = nn.Parameter(0.1 * torch.randn(config.num_state_vectors, dim))
        self.state_to_q = nn.Linear(dim, 2 * inner, bias=False)
        self.state_key_value = nn.Linear(dim, 2 * self.kv_heads * width, bias=False)
        roles = ("read", "among", "write")[not self.reads_own :]
        self.state_reads = nn.ModuleDict({role: self.softmax_read(config, self.scale) for role in roles})
        self.state_cosines = nn.ModuleDict()
        if config.cosine:
            self.state_cosines = nn.ModuleDict({role: Cosine(width, f"{self.kind}_cosine") for role in roles})
        self.mixer = Mixer(2 * inner, dim) if config.update == "single" else None
        self.gate = Gate(config.gate, dim if config.update == "single" else 2 * inner, dim)
        if config.update == "dual":
            self.mixer_norm, self.mixer = LayerNorm.of(dim), Mixer(dim, dim)
            self.mixer_gate = Gate(config.gate, dim, dim)
        # A subclass that is registered under another name has none.
        self.outline = outline(self) if type(self) is blocks[self.kind] else None

    def optional(self, state: Any) -> tuple[str, ...]:
        # What the last full block of a text writes is read by nobody.
        return (*super().optional(state), "start", *self.renewing)

    def blank(self, batch: int, like: Tensor) -> RecurrentState:
        vectors = like.new_zeros(batch, *self.start.shape, dtype=torch.promote_types(like.dtype, torch.float32))
        writes = torch.zeros(batch, dtype=torch.long, device=like.device)
        return RecurrentState(vectors, writes, super().blank(batch, like))

    def reserve(
        self, state: RecurrentState | None, used: int, need: int, copy: bool, length: Tensor | None
    ) -> RecurrentState | None:
        if state is None:
            return None
        return state._replace(window=super().reserve(state.window, used, need, copy, length))

    @typed
    def forward(
        self, x: Float[Tensor, "b n d"], ctx: Ctx, state: RecurrentState | None = None
    ) -> tuple[Float[Tensor, "b n d"], RecurrentState | None]:
        window = None if state is None else state.window
        folded = self.fold(x, ctx, window)
        y, window = self.local(x, folded, ctx, window)
        before, after = self.vectors(folded, state, x, ctx.keep_state)
        own = []
        if self.reads_own:
            own = [self.read_states(self.projected("to_state_q", x, self.heads), before, folded, ctx)]
        y = self.to_out(torch.cat((y, *own, *self.read_others(x, ctx)), -1))
        if window is None:
            return y, None
        writes = torch.zeros(x.shape[0], dtype=torch.long, device=x.device) if state is None else state.writes
        return y, RecurrentState(after, writes + folded.full, window)

    def vectors(
        self, folded: Blocks, state: RecurrentState | None, x: Tensor, keep: bool
    ) -> tuple[Float[Tensor, "b _ s d"], Float[Tensor, "b s d"]]:
        """The state vectors that each block of the call reads, and those behind all full ones.

        Of packed documents what they begin with, and what is behind each block that another follows.
        """
        after = self.known(state, x)
        if folded.documents is not None:
            return of_documents(self, after, folded, folded.documents), after
        full, g = folded.full, folded.k.shape[1]
        # What the last block leaves behind is for the state only.
        updates = g if keep else g - 1
        if torch.compiler.is_compiling() and updates and as_built(self):
            does = torch.arange(g, device=x.device) < cast(Tensor, full)[:, None]
            every = recurrence(self, after, *self.written(folded), does.long(), updates)
            return F.pad(every, (0, 0, 0, 0, 0, -1)), every[:, -1].clone()
        before = [after]
        if not isinstance(full, torch.Tensor):
            updates = min(full, updates)
        k, v, seen = self.written(folded) if updates else (folded.k, folded.v, None)
        for i in range(updates):
            # Behind a row's first block all is there, and needs no mask.
            masked = seen is not None and (isinstance(folded.closed, torch.Tensor) or not folded.closed + i)
            renewed = self.renew(after, k[:, i], v[:, i], seen[:, i, None, None] if masked else None)
            after = (
                torch.where((full > i)[:, None, None], renewed, after) if isinstance(full, torch.Tensor) else renewed
            )
            before.append(after)
        before = [*before, *[after] * (g - len(before))][:g]
        return before[0][:, None] if g == 1 else torch.stack(before, 1), after

    def auxiliary(self, state: Any) -> Float[Tensor, " b"] | None:
        return super().auxiliary(None if state is None else state.window)

    def known(self, state: RecurrentState | None, x: Tensor) -> Float[Tensor, "b s d"]:
        """The state vectors that each row has come to."""
        start = self.start.to(torch.promote_types(x.dtype, torch.float32)).expand(x.shape[0], -1, -1)
        # A copy: a state must not hold the parameter itself.
        return start.clone() if state is None else torch.where((state.writes > 0)[:, None, None], state.vectors, start)

    def publishes_every(self) -> int:
        return self.config.block_width

    def published(self, state: RecurrentState | None, x: Tensor) -> Float[Tensor, "b s d"]:
        return self.named(self.known(state, x))

    @classmethod
    def arrange(cls, place: int, layers: Sequence[tuple[str, Any]], heads: int) -> list[tuple[str, Any]]:
        """The column with the layer that reads the states in this one's stead told to; ValueError if it cannot."""
        layers, where = list(super().arrange(place, layers, heads)), layers[place][1].read_layer
        if where is None:
            return layers
        if where > len(layers):
            raise ValueError(f"recurrent_read_layer={where}, but the stack has {len(layers)} layers")
        name, config = layers[where - 1]
        if not issubclass(blocks[name], BlockAttention):
            raise ValueError(
                f"recurrent_read_layer={where} is a layer of {name!r}, which cannot read state vectors; name one of "
                "block_attn or recurrent, or put state_read in front of it"
            )
        number = 1 + sum(issubclass(blocks[n], cls) for n, _ in layers[:place])
        layers[where - 1] = name, replace(config, read_from=(*config.read_from, number))
        return layers

    def renew(
        self,
        states: Float[Tensor, "b s d"],
        k: Float[Tensor, "b m c"],
        v: Float[Tensor, "b m c"],
        seen: Bool[Tensor, "_ 1 1 m"] | None,
    ) -> Float[Tensor, "b s d"]:
        """The state vectors behind a block, from those before it and the keys and values it writes (seen None: all)."""
        named = self.named(states)
        q_among, q_write = self.projected("state_to_q", named, 2 * self.heads).chunk(2, -1)
        among = self.look("among", q_among, *self.state_keys(named))
        h = torch.cat((among, self.look("write", q_write, k.to(named.dtype), v.to(named.dtype), seen)), -1)
        if self.config.update == "single" and self.mixer is not None:
            return self.gate(states, self.mixer(h).tanh())
        states = self.gate(states, h)
        if self.config.update == "dual" and self.mixer is not None:
            states = self.mixer_gate(states, self.mixer(self.mixer_norm(states.to(self.names.dtype)).to(h.dtype)))
        return states

    def written(self, folded: Blocks) -> tuple[Tensor, Tensor, Bool[Tensor, "_ g m"] | None]:
        """Keys and values that each block writes, and which of them there are (None: all)."""
        if self.config.write_from == "block":
            return folded.k, folded.v, None
        k, v = (torch.cat(pair, 2) for pair in ((folded.before_k, folded.k), (folded.before_v, folded.v)))
        # A row's first block has none before it.
        return k, v, valid(folded.number(), self.config.block_width, 0, 0)

    def named(self, states: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        """The normed state vectors with their names, in the dtype of the maps."""
        return self.state_norm(states.to(self.names.dtype)) + self.names

    def state_keys(self, named: Float[Tensor, "b s d"]) -> tuple[Float[Tensor, "b s _"], Float[Tensor, "b s _"]]:
        """The keys and values that state vectors have for each other and for tokens."""
        return key_and_value(self.projected("state_key_value", named, 2 * self.kv_heads), self.kv_heads)

    def look(
        self, role: str, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None, **about: Any
    ) -> Float[Tensor, "b r _"]:
        """What is read without positions, heads joined."""
        q, k, v = (
            rearrange(t, "b n (h k) -> b h n k", h=h)
            for t, h in ((q, self.heads), (k, self.kv_heads), (v, self.kv_heads))
        )
        if role in self.state_cosines:
            q, k = self.state_cosines[role](q, k)
        reader = cast(SoftmaxRead, self.state_reads[role])
        return rearrange(reader.alone(q, k, v, mask=seen, **about), "b h n k -> b n (h k)")

    def read_states(
        self, q: Float[Tensor, "b n _"], before: Float[Tensor, "b _ s d"], folded: Blocks, ctx: Ctx
    ) -> Float[Tensor, "b n _"]:
        """What the tokens read from the state vectors their block began with."""
        k, v = self.state_keys(self.named(join_groups(before)))
        if folded.layout is None:
            return self.look("read", q, k, v, ctx=ctx)
        shape = folded.k.shape[:2]
        if folded.documents is not None:
            parts = (folded.documents.spread(part_groups(t, *before.shape[:2])) for t in (k, v))
            k, v = map(join_groups, parts)
        y = self.look("read", join_groups(folded.layout.put(q)), k, v, ctx=ctx, g=shape[1])
        return folded.layout.take(part_groups(y, *shape))
