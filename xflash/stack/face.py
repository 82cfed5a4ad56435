"""`AttentionLayers`: keyword flags become a column of branches; `Encoder` and `Decoder` fix its direction."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from torch import nn

from ..base.checks import as_rows
from ..base.pieces import Piecewise
from ..base.shapes import Bool, Float, Int, Tensor, typed
from ..base.state import StackState
from ..flags.aliases import ALIASES
from ..flags.flag import Flag
from ..layers.blocks.block import Block
from ..layers.branch import Branch
from ..layers.embeddings import MemoryTokens
from ..layers.reaching import reaching
from ..saving.classes import is_ours
from ..saving.configurable import Configurable
from .block_by_block import BlockByBlock
from .column import Column
from .config import check_condition, check_widths, known_flags
from .door import check_stream, pack, plan_rows, unpack
from .dtypes import explained
from .noted import Noted, check_noted, loss_flags, noting
from .parts import make_branch, make_last, publishing, sites_of
from .places import apart, check_uses, make_position
from .resolve import resolve
from .side_inputs import Door, asked_by, checked, given_here, heeded_by, packed
from .signature import TakesFlags
from .stepping import check_state, check_steppable, opened, reset, shorten, weighed
from .watched import asked_of, noted_for, watching

__all__ = ["AttentionLayers"]


class AttentionLayers(TakesFlags, Piecewise, Configurable):
    """A stack of blocks composed from keyword flags; `flag_table()` lists them all with their values.

    Called with x (b, n, d) and a mask (b, n) (True = real token) it gives (b, n, d), zeros where the mask is False;
    a masked token does not exist: tokens behind a hole move up. `step` carries a state on instead.
    """

    called: ClassVar[str] = "a stack such as Encoder(...) or Decoder(...)"
    gives = "embeddings of embeddings"

    fixed: ClassVar[Mapping[str, bool]] = {}
    takes_prefix: ClassVar[bool] = False

    def __init__(self, **flags: Any):
        super().__init__()
        for name, value in self.fixed.items():
            said = flags.setdefault(name, value)
            if isinstance(said, bool) and said != value:
                raise ValueError(f"{name}={said} contradicts {type(self).__name__}; use AttentionLayers({name}=...)")
        plan = resolve(flags)
        if is_ours(type(self).__init__.__module__):  # A subclass with one of its own is built from what that is given.
            self.arguments = {k: v for k, v in plan.flat.items() if k not in self.fixed}
        self.rows, self.said = plan.rows, plan.said
        self.maker = self.signature()
        self.layout = plan.text
        self.dim, self.causal = plan.config.dim, plan.config.causal
        site, *sites = sites_of(plan)
        self.branches = nn.ModuleList(make_branch(plan, own) for own in sites)
        check_widths(self.blocks())
        self.order = list(plan.order)
        held = [cast(Branch, branch).block for branch in self.branches]
        self.piece_width = publishing(held, self.order, self.layout)
        self.way = Column if self.piece_width is None else BlockByBlock
        self.final_norm = make_last(plan, site)
        self.pos, self.apart = plan.pos, apart(self.blocks())
        self.positions = nn.ModuleDict({name: make_position(self, name, *of) for name, of in plan.positions.items()})
        check_uses(self)
        self.heeded, self.dim_condition = heeded_by(self), plan.config.dim_condition or self.dim
        self.asked = asked_by(self)
        check_condition(plan.config, self.heeded)
        self.memory_tokens: MemoryTokens | None = None
        if plan.config.num_memory_tokens:
            self.memory_tokens = MemoryTokens(plan.config.num_memory_tokens, self.dim)

    @classmethod
    def takes(cls) -> list[str]:
        return [*known_flags(), *ALIASES]

    @property
    def column(self) -> Column:
        """What is behind the door, put together of what the stack has now."""
        return self.way(self)

    def blocks(self) -> list[Block]:
        """The distinct blocks of the column, top to bottom, those in parallel each."""
        return [block for branch in self.branches for block, _ in cast(Branch, branch).block.members()]

    @property
    def has_auxiliary_loss(self) -> bool:
        """Whether layers have a loss of their own that training adds to the model's (moe_balance_loss, attn_z_loss)."""
        return any(block.weighs() for block in self.blocks())

    @property
    def auxiliary_flags(self) -> str:
        """The flags that give layers such a loss, as a sentence names them."""
        return " and ".join(loss_flags(self.blocks()))

    def flag_rows(self) -> list[tuple[str, Any, Flag]]:
        return [*self.rows, *self.said]

    def extra_repr(self) -> str:
        return f"dim={self.dim}, layout={self.layout!r}, causal={self.causal}"

    def signature(self) -> str:
        """The flags that are not at their default: a state can be continued by the stack that made it only."""
        flags = ", ".join(f"{name}={value!r}" for name, value, spec in self.rows if value != spec.default)
        return f"{type(self).__name__}({flags})"

    @property
    def has_relative_positions(self) -> bool:
        return bool(self.positions)

    def set_memory_tokens(self, number: int) -> None:
        """Gives the stack memory tokens after it was built, as wrappers do; ValueError if it has another number."""
        if self.memory_tokens is not None:
            if len(self.memory_tokens) != number:
                raise ValueError(f"num_memory_tokens={number}, but the stack has {len(self.memory_tokens)} already")
            return
        self.memory_tokens = MemoryTokens(number, self.dim)
        self.arguments = {k: number if k == "num_memory_tokens" else v for k, v in self.arguments.items()}
        self.rows = [(n, number if n == "num_memory_tokens" else v, spec) for n, v, spec in self.rows]
        self.maker = self.signature()

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Tensor | None = None,
        *,
        attn_mask: Tensor | None = None,
        doc_ids: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        context_pos: Int[Tensor, "... c"] | None = None,
        prefix_attn_len: int | Tensor | None = None,
        condition: Float[Tensor, "b *n _"] | None = None,
        grid: Int[Tensor, "_ n 2"] | None = None,
        return_hiddens: bool = False,
        return_auxiliary_loss: bool = False,
        **beside: Any,
    ) -> Any:
        """The whole stack on whole sequences.

        mask: (b, n), True = real token.  attn_mask: (n, n) or (1 | b, 1 | h, n, n), True = may attend.
        doc_ids: (b, n) integers, each run of equal ones a document of its own.
        context: (b, c, width) what cross_attn and cross_gau attend to, context_mask (b, c), True = real token,
        context_pos: (c,) or (b, c) where the context's tokens stand, for rotary positions to count for them too.
        prefix_attn_len: how many tokens of each row, one number or (b,), see each other (PrefixDecoder only).
        condition: (b, width) or (b, n, width) what adaptive norms and scales are conditioned on.
        grid: (b, n, 2) or (1, n, 2) the row and the column of each token, for pos='rotary2d'.
        beside: further side inputs, by name.  return_hiddens: (y, hiddens), layers + 2 streams (b, n, d): docs/state.md
        return_auxiliary_loss: as last the loss that layers have of their own (moe_balance_loss), a mean over them.
        """
        mask = check_stream(self.dim, x, mask)
        named: dict[str, Any] = {"attn_mask": attn_mask, "doc_ids": doc_ids, "condition": condition, "grid": grid}
        named |= {"context": context, "context_mask": context_mask, "context_pos": context_pos}
        given = given_here(self, beside, **named, prefix_attn_len=prefix_attn_len)
        noted = noting(return_hiddens, return_auxiliary_loss)
        y, _ = explained(self, x, None, mask, checked(self, x, given), noted=noted)
        return y if noted is None else (y, *noted.given(self.column.down()))

    def step(
        self,
        x: Float[Tensor, "b n d"],
        state: StackState | None = None,
        mask: Tensor | None = None,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        context_pos: Int[Tensor, "... c"] | None = None,
        prefix_attn_len: int | Tensor | None = None,
        condition: Float[Tensor, "b *n _"] | None = None,
        grid: Int[Tensor, "_ n 2"] | None = None,
        reset: Tensor | None = None,
        return_hiddens: bool = False,
        return_auxiliary_loss: bool = False,
        **beside: Any,
    ) -> tuple[Any, ...]:
        """Any number of new tokens behind what `state` has seen: their outputs, and the state with them.

        Only causal stacks have one. A context (and a prefix) is given in the first call, the state then holds it; so
        it does a condition of rows, until another is given, while one of tokens is given with each call.
        `reset` names rows that start anew, with their context. `return_hiddens`: (y, state, hiddens), of new tokens;
        `return_auxiliary_loss`: their loss as last.
        """
        self.check_steppable(state)
        mask = check_stream(self.dim, x, mask)
        named: dict[str, Any] = {"context": context, "context_mask": context_mask, "context_pos": context_pos}
        named |= {"prefix_attn_len": prefix_attn_len, "condition": condition, "grid": grid}
        given = checked(self, x, given_here(self, beside, **named), state, keeps=True)
        reset = None if reset is None else as_rows("reset", reset, x.shape[0])
        if state is not None:
            self.check_state(state, x.shape[0])
            if reset is not None:
                state = self.reset(state, reset)
        noted = noting(return_hiddens, return_auxiliary_loss)
        found = explained(self, x, state, mask, given, keep_state=True, noted=noted)
        return found if noted is None else (*found, *noted.given(self.column.down()))

    def attention_maps(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        return_hiddens: bool = False,
        return_auxiliary_loss: bool = False,
        **beside: Any,
    ) -> tuple[Any, ...]:
        """As forward, with the matrix of every layer that has one: (b, h, n, n), or (b, h, n, c) over a context.

        Memory slots are left out; hiddens and the loss come last. ValueError when no block of the stack has a matrix.
        """
        mask = check_stream(self.dim, x, mask)
        noted = cast(Noted, noting(return_hiddens, return_auxiliary_loss, self.blocks()))
        y, _ = explained(self, x, None, mask, checked(self, x, given_here(self, beside), None), noted=noted)
        check_noted(noted, self.layout)
        return y, *noted.given(self.column.down())

    @typed
    def run(
        self,
        x: Float[Tensor, "b n d"],
        state: StackState | None,
        mask: Bool[Tensor, "b n"] | None,
        beside: Mapping[str, Any],
        *,
        keep_state: bool = False,
        noted: Noted | None = None,
    ) -> tuple[Float[Tensor, "b n d"], StackState | None]:
        """The way of a tensor: in through the door, down the branches, out through the door."""
        watches = watching(self)
        for watch in watches:
            x = watch.given(self, x)
        plan = None if mask is None else plan_rows(mask)
        if plan is not None:
            x = pack(x, plan)
        memory = 0
        if self.memory_tokens is not None:
            memory = len(self.memory_tokens) if state is None else 0
            x = self.memory_tokens(x) if memory else reaching(x, self.memory_tokens.parameters())
        new = None if plan is None else plan.new + memory
        beside = packed(beside, Door(plan, memory, x.shape[1] - memory, x.device))
        asked = asked_of(self, watches) if watches else ()
        noted, kept = noted_for(asked, noted) if watches else noted, keep_state or "state" in asked
        y, new_state = self.column.run(x, state, new, beside, keep_state=kept, noted=noted)
        y = y[:, memory:] if memory else y
        if noted is not None:
            noted.unpack(plan, memory, None if state is None else len(self.memory_tokens or ()))
        for watch in watches:
            watch.take(self, cast(Noted, noted), new_state)
        return (y if plan is None else unpack(y, plan)), new_state if keep_state else None

    def check_steppable(self, state: Any = None) -> None:
        """ValueError with the reason when the stack cannot be stepped."""
        check_steppable(self, state)

    def check_state(self, state: StackState, batch: int | None = None) -> None:
        """TypeError or ValueError when `state` is not one of this stack's, or has another batch size (None: any)."""
        check_state(self, state, batch)

    def open(self, state: StackState, n: int) -> tuple[StackState, bool]:
        """The state with room for n more slots, and whether a call may write into its buffers."""
        return cast("tuple[StackState, bool]", opened(self.column, state, n))

    def reset(self, state: StackState, rows: Bool[Tensor, " b"]) -> StackState:
        """`state` with the named rows as fresh as before their first token; a context they attend to stays theirs."""
        return reset(self.column, state, rows, self.memory_tokens)

    def shorten(self, state: StackState, tokens: int) -> StackState:
        """`state` with the keys and values of each row's last `tokens` tokens only, and of its memory tokens.

        Transformer-XL's memory (https://arxiv.org/abs/1901.02860), once it is detached: what a token sees then depends
        on where a sequence is cut. Blocks whose state is bounded keep it.
        """
        return shorten(self.column, state, tokens, 0 if self.memory_tokens is None else len(self.memory_tokens))

    def auxiliary_loss(self, state: StackState, since: StackState | None = None) -> Float[Tensor, ""]:
        """What the layers lose beside the model's own loss (block_attn_compress_loss), to be added to it in training.

        The mean over the tokens read between `since` (None: the beginning) and `state`, and over the layers that have
        such a loss. ValueError when none has.
        """
        return weighed(self.column, state, since)

    @property
    def goes_in_pieces(self) -> bool:
        return self.piece_width is not None

    def one_piece(
        self, state: StackState | None, x: Tensor, new: Tensor | None, beside: Mapping[str, Any]
    ) -> tuple[Tensor, StackState | None]:
        return cast(BlockByBlock, self.column).piece(x, state, new, beside)

    def room(self, *piece: Any) -> tuple[Any, int]:
        return self, piece[0].shape[1]
