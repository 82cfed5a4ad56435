"""`RecurrentMemoryWrapper`: a causal model that reads segment by segment, learned memory tokens between them."""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from ..base.checks import as_rows
from ..base.pieces import Piecewise, borders, fills
from ..base.shapes import Bool, Float, Int, Tensor
from ..base.state import StackState, State
from ..flags.flag import flag
from ..layers.norms import RMSNorm
from ..layers.reaching import reaching
from ..saving.configurable import Configurable
from ..stack.door import Plan, plan_rows, unpack
from .options import check_needs_nothing
from .transformer import TransformerWrapper

__all__ = ["RecurrentMemoryState", "RecurrentMemoryWrapper"]


class RecurrentMemoryFields(NamedTuple):
    """What a recurrent memory model carries."""

    memory: Float[Tensor, "b t d"]
    stack: StackState | None
    bound: int
    length: Int[Tensor, " b"] | None


class RecurrentMemoryState(State, RecurrentMemoryFields):
    """The memory that the open segment was begun with, what the stack has read of it, and how many tokens that was.

    `bound` is an upper bound of them, `length` each row's own number (b,) where rows differ.
    """

    __slots__ = ()


class RecurrentMemoryWrapper(Piecewise, Configurable):
    """A causal model that knows of earlier segments what its memory tokens hold (https://arxiv.org/abs/2207.06881).

    Each segment of `segment_len` tokens is read as [memory, tokens, memory]: the tokens see the memory in front, the
    memory behind sees all of the segment, and what the stack makes of it is the memory of the next segment. Nothing
    else crosses. A segment is closed when it is full and not before, row by row, so that `step` gives the same wherever
    a text is cut, and memory and time a token do not grow with the text.

    Absolute positions of `net` count a segment's tokens, from 0 in each; in the stack the memory in front takes the
    first slots, which moves all tokens alike. Gradients flow through all segments until the state is detached
    (`SegmentWrapper(..., detach_every=)`). Raises ValueError for a net that has no step, attends to a context, adds
    embeddings of other ids, has Transformer-XL's memory, or fewer positions than a segment has tokens.
    """

    causal, pooled, length_limit, max_seq_len = True, None, None, None

    @dataclass(frozen=True)
    class Config:
        net: TransformerWrapper = flag(doc="a causal model that reads the segments")
        num_memory_tokens: int = flag(doc="learned tokens that one segment hands to the next", at_least=1)
        segment_len: int = flag(doc="tokens in a segment", at_least=1)

    def assemble(self, config: Config) -> None:
        net, num_memory_tokens, segment_len = config.net, config.num_memory_tokens, config.segment_len
        check_net(net)
        if net.length_limit is not None and net.length_limit < segment_len:
            raise ValueError(
                f"segment_len={segment_len} is more than max_seq_len={net.length_limit}, the number of learned "
                "positions"
            )
        self.net, self.num_memory_tokens, self.segment_len = net, num_memory_tokens, segment_len
        self.num_tokens, self.dim = net.num_tokens, net.dim
        # A stack need not end in a norm, and what goes round without one would grow from segment to segment.
        self.norm = RMSNorm.of(net.dim)
        self.memory, self.read_embed, self.write_embed = (
            nn.Parameter(torch.empty(num_memory_tokens, net.dim).normal_(std=std)) for std in (1.0, 0.02, 0.02)
        )

    @property
    def return_only_embed(self) -> bool:
        """Whether the net leaves the head out."""
        return self.net.return_only_embed

    def extra_repr(self) -> str:
        return f"num_memory_tokens={self.num_memory_tokens}, segment_len={self.segment_len}"

    def forward(self, x: Int[Tensor, "b n"], mask: Tensor | None = None) -> Float[Tensor, "b n v"]:
        """Logits of whole texts of any length; mask (b, n): True = real token."""
        return self.step(x, None, mask)[0]

    def step(
        self,
        x: Int[Tensor, "b n"],
        state: RecurrentMemoryState | None = None,
        mask: Tensor | None = None,
        *,
        reset: Tensor | None = None,
    ) -> tuple[Float[Tensor, "b n v"], RecurrentMemoryState]:
        """Logits of any number of new tokens behind what `state` has seen, and the state with them.

        `mask` covers the new tokens only; rows may differ in length. `reset` (b,) names rows that start anew.
        """
        x, mask = self.net.embedding.check(x, mask)
        reset = None if reset is None else as_rows("reset", reset, x.shape[0])
        if state is None:
            # Not a view: what a graph gets here is as what it gives.
            memory = self.memory.expand(x.shape[0], -1, -1).clone()
            state = RecurrentMemoryState(memory, None, 0, None)
        else:
            self.check_state(state, x.shape[0])
            if reset is not None:
                state = self.reset(state, reset)
        plan = None if mask is None else plan_rows(mask)
        y, state = self.by_segments(x if plan is None else x.gather(1, plan.order), state, plan)
        # A text may end in its first segment, or begin in an open one.
        y = reaching(y, (self.memory, self.read_embed, self.write_embed, *self.norm.parameters()))
        return self.net.logits(y if plan is None else unpack(y, plan)), state

    def check_state(self, state: Any, batch: int | None = None) -> None:
        """TypeError or ValueError for what is no state of this model, or is of another batch size (None: of any)."""
        if not isinstance(state, RecurrentMemoryState):
            raise TypeError(f"state must be what step() gave, a RecurrentMemoryState, not {type(state).__name__}")
        self.net.attn_layers.check_state(cast(StackState, state.stack), batch)
        if state.memory.shape[1] != self.num_memory_tokens:
            raise ValueError(
                f"the state has {state.memory.shape[1]} memory tokens, but the model has {self.num_memory_tokens}"
            )

    def reset(self, state: RecurrentMemoryState, rows: Tensor) -> RecurrentMemoryState:
        """`state` with the rows where the boolean `rows` (b,) is True as fresh as before their first token."""
        self.check_state(state)
        rows = as_rows("rows", rows, state.memory.shape[0])
        memory = torch.where(rows[:, None, None], self.memory.to(state.memory.dtype), state.memory)
        stack = self.net.attn_layers.reset(cast(StackState, state.stack), rows)
        _, stack = self.net.attn_layers.step(self.to_read(memory), stack, self.memory_mask(rows))
        return RecurrentMemoryState(memory, stack, state.bound, lengths(state).masked_fill(rows, 0))

    def by_segments(
        self, ids: Int[Tensor, "b n"], state: RecurrentMemoryState, plan: Plan | None
    ) -> tuple[Float[Tensor, "b n d"], RecurrentMemoryState]:
        """Packed tokens, cut where the segment of a row is full."""
        outputs = []
        filled = [state.bound]
        if state.length is not None and state.bound + ids.shape[1] > self.segment_len:
            # Only where a segment may become full does one have to look at the data.
            filled = fills(state.length, self.segment_len)
            state = state._replace(bound=max(filled))
        for start, end in borders(ids.shape[1], self.segment_len, filled):
            new = None if plan is None else (plan.new - start).clamp(0, end - start)
            state, opened = self.turn(state)
            fills_all = new is None and state.length is None and end < ids.shape[1]
            y, state = self.next_piece(state, ids[:, start:end], new, opened, fills_all)
            outputs.append(y)
        return torch.cat(outputs, 1), state

    def one_piece(
        self,
        state: RecurrentMemoryState,
        ids: Int[Tensor, "b n"],
        new: Int[Tensor, " b"] | None,
        opened: Bool[Tensor, " b"] | bool,
        fills_all: bool,
    ) -> tuple[Float[Tensor, "b n d"], RecurrentMemoryState]:
        """Tokens within each row's segment; `fills_all` when they are the last of it in all rows."""
        return self.closed(ids, state) if fills_all else self.open_piece(ids, new, state, opened)

    def room(self, *piece: Any) -> tuple[Any, int]:
        return self.net.attn_layers, piece[0].shape[1] + self.num_memory_tokens

    def turn(self, state: RecurrentMemoryState) -> tuple[RecurrentMemoryState, Bool[Tensor, " b"] | bool]:
        """The state with the full segments closed, and the rows that are to read a new memory first (True: all)."""
        memory, stack, bound, length = state
        if stack is None or bound < self.segment_len:
            return state, stack is None
        layers = self.net.attn_layers
        if length is None:
            memory, _ = layers.step(self.to_write(memory), stack)
            return RecurrentMemoryState(memory, None, 0, None), True
        full = length == self.segment_len
        written, stack = layers.step(self.to_write(memory), stack, self.memory_mask(full))
        memory = torch.where(full[:, None, None], written, memory)
        # A row has no more tokens than this; buffers would otherwise be as long as what all segments took together.
        stack = layers.shorten(layers.reset(stack, full), self.num_memory_tokens + self.segment_len)
        return RecurrentMemoryState(memory, stack, self.segment_len - 1, length.masked_fill(full, 0)), full

    def closed(
        self, ids: Int[Tensor, "b n"], state: RecurrentMemoryState
    ) -> tuple[Float[Tensor, "b n d"], RecurrentMemoryState]:
        """Tokens that fill the segment of all rows, closed in the same pass: what `open_piece` and `turn` do in two."""
        memory, stack, bound, _ = state
        x = self.net.embedding(ids, past=bound)[0]
        n, t = x.shape[1], self.num_memory_tokens
        x = torch.cat((x, self.to_write(memory).to(x.dtype)), 1)
        if stack is None:
            y = self.net.attn_layers(torch.cat((self.to_read(memory).to(x.dtype), x), 1))[:, t:]
        else:
            y = self.net.attn_layers.step(x, stack)[0]
        return y[:, :n], RecurrentMemoryState(y[:, n:].clone(), None, 0, None)

    def open_piece(
        self,
        ids: Int[Tensor, "b n"],
        new: Int[Tensor, " b"] | None,
        state: RecurrentMemoryState,
        opened: Bool[Tensor, " b"] | bool,
    ) -> tuple[Float[Tensor, "b n d"], RecurrentMemoryState]:
        """Tokens within each row's segment, behind the memory of the rows that have just opened theirs."""
        memory, stack, bound, length = state
        real = None if new is None else torch.arange(ids.shape[1], device=ids.device) < new[:, None]
        x, _ = self.net.embedding(ids, real, past=bound, length=length)
        n = x.shape[1]
        if opened is not False:
            x = torch.cat((self.to_read(memory).to(x.dtype), x), 1)
            rows = real.new_ones(len(ids)) if opened is True and real is not None else opened
            if not isinstance(rows, bool):
                real = ids.new_ones(ids.shape, dtype=torch.bool) if real is None else real
                real = torch.cat((self.memory_mask(rows), real), 1)
        y, stack = self.net.attn_layers.step(x, stack, real)
        if new is not None:
            length = lengths(state) + new
        elif length is not None:
            length = length + n
        return y[:, -n:], RecurrentMemoryState(memory, stack, min(bound + n, self.segment_len), length)

    def memory_mask(self, rows: Bool[Tensor, " b"]) -> Bool[Tensor, "b t"]:
        """The mask of memory tokens that are there for the named rows."""
        return rows[:, None].expand(-1, self.num_memory_tokens)

    def to_read(self, memory: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """What stands in front of a segment."""
        return self.norm(memory) + self.read_embed

    def to_write(self, memory: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """What stands behind a segment."""
        return self.norm(memory) + self.write_embed


def lengths(state: RecurrentMemoryState) -> Int[Tensor, " b"]:
    """Each row's tokens in its open segment."""
    if state.length is not None:
        return state.length
    return torch.full(state.memory.shape[:1], state.bound, dtype=torch.long, device=state.memory.device)


def check_net(net: TransformerWrapper) -> None:
    """ValueError for what cannot be read in segments with memory tokens around them."""
    net.check_steppable()
    if net.gives:
        raise ValueError(
            f"{type(net).__name__} gives {net.gives}: one that is read in segments gives logits of one head"
        )
    if net.has_auxiliary_loss:
        raise ValueError(
            f"{net.auxiliary_flags} gives a loss of a call, and a segment with its memory is several of them: build "
            "the stack without"
        )
    if any(block.context_width() is not None for block in net.attn_layers.blocks()):
        raise ValueError("memory tokens and a context exclude each other: segments after the first would not have it")
    check_needs_nothing(net.attn_layers, "a model read with memory tokens is given ids of tokens only")
    if net.embedding.embed_num_tokens:
        raise ValueError("memory tokens and embed_num_tokens exclude each other: a call has ids of tokens only")
    if net.max_mem_len is not None:
        raise ValueError(
            f"num_memory_tokens and max_mem_len={net.max_mem_len} exclude each other: only memory "
            "tokens cross to the next segment"
        )
