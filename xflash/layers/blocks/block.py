"""`Block`: the interface of everything that can stand in a layout, and the laws it obeys."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from ...base.checks import given
from ...base.frozen import frozen
from ...base.registry import Registry, blocks, positions
from ...base.shapes import Float, Int, Tensor
from ...base.state import Ctx
from ...flags.flag import flags_of
from ...flags.layout import AROUND
from ..site import Site

__all__ = ["Block", "update_of"]


class Block(nn.Module, ABC):
    """The f in `x + f(norm(x))`: a subclass owns a frozen dataclass `Config` and a forward `(x, ctx, state)`.

    A block keeps its output at a token free of later tokens when `site.causal`, of what stands behind `ctx.new`, and of
    how a sequence is cut into calls. Its state is a NamedTuple of tensors with the batch first, copied by the branch
    where they are parts of larger ones; None is a fresh one. `honours` names the fields of Ctx it can take into account
    beyond those (the stack refuses the others), `positions` the positions of the stack it uses; where not
    `mixes_tokens`, the stack's tokens never see each other. The state of one that `keeps_tokens` grows with every
    token, and `shorten` bounds it. A block that `takes_context` reads `ctx.context` when it has no state yet, and is
    refused without one. A block that is `causal_only` is refused in a bidirectional stack. One that `publishes` has
    state vectors that other layers may read, and must unless it `reads_own`; the stack then runs block after block of
    its tokens. One that `has_matrix` notes its weights in `ctx.maps`. One that can have a loss of its own says by
    which flag: `auxiliary_by` where its state holds it, `weighed_by` where it is of a call: then it `weighs`, gives
    `ctx.relay.lose` sums over the call's tokens when `ctx.relay.weighing`, and makes a loss of them in `weigh`. What
    one `shows` of itself it gives to `ctx.relay.show`, when `ctx.relay.asked`.
    `holds` says which flags name parts of a registry, one or several, whose own flags begin with the names of block
    and part; one that `borrows` from another block takes over its flags, unless its own say otherwise. `heeds`
    names the side inputs in `ctx.beside` that it looks at though no block has to. One that `counts_places` counts
    itself where its queries and keys stand, in one line, whatever positions say; one that `turns_kept` turns keys of
    former calls, by counting where they stand. What one that `moves` remembers can be made of what another layer read
    (`remade`), which it then `keeps_read`. One that is `steady` decodes a token by `ctx.length` and what its state
    holds, whatever `ctx.past` says, so that one graph serves all tokens. `example` has the flags of the stack that
    docs/flags.md shows it in, where its name and its first flag are not enough.
    """

    honours: ClassVar[frozenset[str]] = frozenset()
    positions: ClassVar[frozenset[str]] = frozenset()
    takes_context: ClassVar[bool] = False
    causal_only: ClassVar[bool] = False
    mixes_tokens: ClassVar[bool] = True
    keeps_tokens: ClassVar[bool] = False
    publishes: ClassVar[bool] = False
    views: ClassVar[int] = 1
    holds: ClassVar[Mapping[str, Registry]] = {}
    borrows: ClassVar[str | None] = None
    reads_own: bool = True
    has_matrix: ClassVar[bool] = False
    auxiliary_by: ClassVar[str] = ""
    weighed_by: ClassVar[str] = ""
    heeds: ClassVar[frozenset[str]] = frozenset()
    counts_places: ClassVar[bool] = False
    turns_kept: bool = False
    moves: ClassVar[bool] = False
    keeps_read: bool = False
    steady: bool = False
    example: ClassVar[Mapping[str, Any]] = {}

    @frozen
    class Config:
        """The flags of the block."""

    def __init__(self, config: Any, site: Site):
        super().__init__()
        self.config = config
        self.site = site

    @classmethod
    def works_alone(cls) -> bool:
        """Whether a token's update is made of the token itself only."""
        return not (cls.mixes_tokens or cls.takes_context)

    @classmethod
    def unlike(cls) -> str:
        """Why no block can be as this class is, or ''."""
        for name in getattr(cls.Config, "__dataclass_fields__", ()):
            of_position = any(name in [f"{p}_{f}" for f in flags_of(part.Config)] for p, part in positions.items())
            if name in AROUND or name.startswith("norm_") or of_position:
                return f"has a flag {name!r}, which a layout says of any block: give it another name"
        return ""

    @abstractmethod
    def forward(self, x: Float[Tensor, "b n d"], ctx: Ctx, state: Any = None) -> tuple[Float[Tensor, "b n d"], Any]:
        """The update of the stream, and the state to carry on (None unless `ctx.keep_state`)."""

    def members(self, state: Any = None) -> list[tuple["Block", Any]]:
        """The blocks in here, each with its part of a state: itself, or those in parallel."""
        return [(self, state)]

    def bias_heads(self) -> int | None:
        """How many heads of an additive position bias the block takes; None when it takes none."""
        return None

    def key_width(self) -> int | None:
        """How many channels of a key rotary positions can turn; None when nobody knows."""
        return getattr(self.config, "dim_head", None)

    def head_counts(self) -> tuple[int, int]:
        """How many heads of queries the block has, and of keys: the second axis of what positions turn."""
        heads = getattr(self, "heads", None) or getattr(self.config, "heads", None) or 1
        return heads, getattr(self, "kv_heads", None) or heads

    def turned_queries(self) -> int:
        """How many queries a token has that positions turn."""
        return self.head_counts()[0]

    def context_width(self) -> int | None:
        """The width of the context the block attends to; None when it attends to none."""
        return None

    def check_context(self, context: Tensor, batch: int, otherwise: str = "") -> None:
        """ValueError unless the context is (batch, at least one token, its width); `otherwise`: how to have another."""
        width = self.context_width()
        if context.dim() != 3 or context.shape[0] != batch or context.shape[2] != width or context.shape[1] < 1:
            raise ValueError(
                f"context must be ({batch}, at least one token, {width}), not {tuple(context.shape)}{otherwise}"
            )

    def reads_states(self) -> tuple[int, ...]:
        """Which publishing layers' state vectors the block reads from `ctx.states`, counted from 1 down the column."""
        return ()

    def published(self, state: Any, x: Tensor) -> Float[Tensor, "b s d"]:
        """What the tokens of other layers may read of this one's state, which may be None."""
        raise NotImplementedError(f"{type(self).__name__} publishes nothing")

    def publishes_every(self) -> int:
        """After how many tokens of a row the state vectors change that a block that `publishes` lets others read."""
        raise NotImplementedError(f"{type(self).__name__} publishes nothing")

    @classmethod
    def refuses(cls, part: type) -> str:
        """Why the block cannot hold a part of a registry that it `holds`, or ''."""
        return ""

    @classmethod
    def takes_over(cls, part: type) -> bool:
        """Whether the block takes a part over that the block it borrows from has."""
        return not cls.refuses(part)

    @classmethod
    def arrange(cls, place: int, layers: Sequence[tuple[str, Any]], heads: int) -> Sequence[tuple[str, Any]]:
        """The column of (name, Config) with what the layer at `place` asks of others; heads: the stack's."""
        return layers

    def kept_on_reset(self, state: Any) -> Any:
        """What of its state a row keeps when it starts anew: nothing, or the context it attends to."""
        return None

    def optional(self, state: Any) -> tuple[str, ...]:
        """How the names of parameters begin that a call behind `state` may do without, whatever the reason.

        They get gradients of zeros then, not None: processes that train together wait for each other's.
        """
        return ()

    def seen_window(self) -> tuple[int | None, int]:
        """How many tokens a query sees (None: all), and how many of the first ones always."""
        return None, 0

    def refuses_step(self) -> str:
        """Why the block cannot be stepped (settings that reproduce a peer and break the chunk law), or ''."""
        return ""

    def refuses_maps(self) -> str:
        """Why the block cannot give the attention matrix that it has, or ''."""
        return ""

    def shows(self) -> tuple[str, ...]:
        """What `xflash.capture` may ask of the block as it is set, beside its matrix, the stream and its state."""
        return ()

    def auxiliary(self, state: Any) -> Float[Tensor, " b"] | None:
        """A loss of the block's own, summed over each row's tokens since the row began; None when it has none."""
        return None

    def weighs(self) -> bool:
        """Whether each call has a loss of the block's own."""
        return False

    def weigh(self, sums: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """The loss of a call, of the sums over its tokens that the block has left."""
        raise NotImplementedError

    def reserve(self, state: Any, used: int, need: int, copy: bool, length: Int[Tensor, " b"] | None) -> Any:
        """The state with room for `need` tokens, `used` of them seen.

        copy: asks for buffers of its own, without what another continuation has written behind each row's end.
        length: (b,) what each row has seen, None where all have seen `used`.
        """
        return state

    def shorten(self, state: Any, tokens: int, front: int, bound: int, length: Int[Tensor, " b"] | None) -> Any:
        """The state of a block that `keeps_tokens`, with each row's first `front` and last `tokens` tokens only."""
        return state

    def refuses_gap(self) -> str:
        """Why a block that `keeps_tokens` cannot keep the first ones and give up those behind them, or ''."""
        return ""

    def rooted(self) -> str:
        """Why a block that `moves` cannot do so as it is set, or ''."""
        return ""

    def remade(self, state: Any, x: Float[Tensor, "b n d"], ctx: Ctx) -> Any:
        """The state of a block that `moves`, in place of another's `state`, of whose tokens it would have read x."""
        raise NotImplementedError(f"{type(self).__name__} remembers what it read alone")

    def extra_repr(self) -> str:
        shown = ", ".join(f"{k}={v!r}" for k, v in vars(self.config).items()) if self.config is not None else ""
        return shown


blocks.base = Block


def update_of(block: Block, out: Any, x: Float[Tensor, "b n *_ d"]) -> tuple[Float[Tensor, "b n d"], Any]:
    """What a block gave; TypeError or ValueError unless it is a pair of an update in the shape of x and a state.

    A tensor of two rows would be taken apart into a pair, and one of another shape be broadcast by the join.
    """
    if not isinstance(out, tuple) or len(out) != 2 or not isinstance(out[0], torch.Tensor):
        shown = f"({', '.join(given(part) for part in out)})" if isinstance(out, tuple) else type(out).__name__
        raise TypeError(
            f"{type(block).__name__}.forward must give (y, state), a tensor and a state or None, not {shown}"
        )
    if out[0].shape != x.shape and (x.dim() == 3 or out[0].shape != x[:, :, 0].shape):
        raise ValueError(
            f"{type(block).__name__}.forward must give y in the shape of x, {tuple(x.shape)}, not {tuple(out[0].shape)}"
        )
    return out
