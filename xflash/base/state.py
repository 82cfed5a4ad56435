"""What goes down beside x (`Ctx`), and what is carried on from call to call (`StackState`)."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F

from .checks import as_order
from .moved import names_before
from .relay import Relay
from .shapes import Bool, Float, Int, Tensor
from .values import again, first_tensor, own, row_count, tensors, tree_map

__all__ = [
    "TAKEN",
    "AttentionMap",
    "BranchState",
    "Ctx",
    "Lease",
    "StackState",
    "State",
    "document_positions",
    "document_starts",
    "first_tensor",
    "may_be_loaded",
    "own",
    "row_count",
    "tensors",
    "tree_map",
]


class Lease:
    """How far the buffers that several states share have been written: only the newest state may write in place.

    Who writes has claimed it first, and nobody else can until it is released: a step that fails in between, or that
    another thread takes from the same state, leaves the others to copy. inference: whether some of the buffers may have
    been made in inference mode, outside which nobody may write into them.
    """

    fill: int
    inference: bool = False

    def __init__(self, fill: int):
        self.fill = fill
        # A graph does not know in which mode it will run.
        self.inference = torch.compiler.is_dynamo_compiling() or torch.is_inference_mode_enabled()

    def claim(self, bound: int) -> bool:
        """Whether the state that has `bound` slots may write behind them; it is the only one told so."""
        with CLAIMING:
            free = self.fill == bound
            if free:
                self.fill = CLAIMED
        return free

    def release(self, bound: int) -> None:
        """The buffers are written up to `bound`."""
        self.inference = self.inference or torch.is_inference_mode_enabled()
        self.fill = bound


# No state has so many slots.
CLAIMED = -1
# One for all leases, which are copied and saved; it is held for the time of a comparison.
CLAIMING = threading.Lock()
# Stands for the lease where the caller has made the room, and keeps it itself.
TAKEN = Lease(-1)


class BranchState(NamedTuple):
    """The state of one branch: the last normed tokens for the token shift, and what its block carries."""

    shift: Tensor | None
    block: Any


S = TypeVar("S", bound="State")


class State:
    """What every state can do: a value made of tensors and plain values in named tuples, the batch first.

    A state of one's own derives from it and from the NamedTuple that has its fields.
    """

    __slots__ = ()

    def map(self: S, fn: Callable[[Tensor], Tensor]) -> S:
        """A state of its own with `fn` applied to every tensor."""
        parts = cast("tuple", self)
        return again(parts, [part.map(fn) if isinstance(part, State) else tree_map(fn, part) for part in parts])

    def __deepcopy__(self: S, memo: dict) -> S:
        return self.map(torch.clone)

    def reorder(self: S, index: Int[Tensor, " b2"]) -> S:
        """The rows that `index` names, in its order; a row may be named more than once (beam search)."""
        index = as_order(index, self.rows)
        return self.map(lambda t: t.index_select(0, index))

    def detach(self: S) -> S:
        """The same values, cut from the graph that made them."""
        return tree_map(Tensor.detach, self)

    def to(self: S, *args, **kwargs) -> S:
        """Moved or cast like a tensor; integer tensors keep their dtype."""

        def move(t: Tensor) -> Tensor:
            moved = t.to(*args, **kwargs)
            return moved if t.is_floating_point() else moved.to(t.dtype)

        return self.map(move)

    @property
    def rows(self) -> int | None:
        """The number of rows the state has; None where it holds no tensor, and so fits any."""
        return row_count(self)


class StackFields(NamedTuple):
    """What a stack carries."""

    maker: str
    bound: int
    length: Tensor | None
    lease: Lease | None
    branches: tuple[BranchState, ...]
    carried: tuple[tuple[str, Tensor], ...] = ()


class StackState(State, StackFields):
    """A value: what a causal stack carries from one call to the next; None stands for nothing seen yet.

    `bound` is the number of slots used, an upper bound when rows differ, `length` then is each row's own (b,).
    `carried`: the side inputs, by name, that the next call has unless it is given others.
    """

    __slots__ = ()

    def map(self, fn: Callable[[Tensor], Tensor]) -> "StackState":
        return State.map(self._replace(lease=None), fn)


def tuples(kind: type = tuple) -> Iterator[type]:
    """The classes of tuples of this package that are imported so far."""
    for cls in kind.__subclasses__():
        yield from tuples(cls)
        if cls.__module__.partition(".")[0] == __name__.partition(".")[0]:
            yield cls


def may_be_loaded() -> None:
    """Lets torch.load, which by default builds only what it knows, build the states of all that is imported so far."""
    package = __name__.partition(".")[0]
    own: list[Any] = [Lease, *tuples()]
    torch.serialization.add_safe_globals(own)
    # Before 2.6 torch knows no class under another name than its own.
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6):
        torch.serialization.add_safe_globals(
            [(kind, f"{package}.{was}.{kind.__qualname__}") for kind in own for was in names_before(kind.__module__)]
        )


class AttentionMap(NamedTuple):
    """The weights (b, h, n, m) of one layer; whether its keys are the stack's tokens (else those of a context)."""

    weights: Tensor
    over_tokens: bool


@dataclass(frozen=True)
class Ctx:
    """What every block gets beside x, built once a call and passed on unchanged.

    past: slots used before this call (an upper bound when rows differ).
    length: (b,) each row's tokens before this call, None when all rows have `past`.
    new: (b,) each row's real tokens in this call, None when all n are real.
    positions: (1 | b, n) the slot of each token of this call.
    states: (b, s, d) the state vectors that a publishing layer had before this call, by its number from 1.
    beside: the side inputs of this call by name, as they are behind the door.
    relay: what layers of this call leave for those below them.
    relative: the positions of the stack as blocks use them, `apart` those of blocks that have others, by their names.
    keep_state: whether the block must give its state back.  in_place: whether it may write into the state's buffers.
    """

    past: int
    length: Int[Tensor, " b"] | None
    new: Int[Tensor, " b"] | None
    positions: Int[Tensor, "_ n"]
    keep_state: bool = False
    in_place: bool = False
    beside: Mapping[str, Any] = field(default_factory=dict)
    relative: Any = None
    states: dict[int, Tensor] = field(default_factory=dict)
    maps: list | None = None
    memo: dict = field(default_factory=dict)
    relay: Relay = field(default_factory=Relay)
    apart: Mapping[tuple[str, ...], Any] = field(default_factory=dict)

    def seen_by(self, pos: tuple[str, ...] | None) -> "Ctx":
        """As a block sees it whose positions these are, by name; None for those of the stack."""
        if pos is None:
            return self
        # Written out, for `replace` takes as long as a tenth of a layer that decodes a token.
        return Ctx(
            self.past,
            self.length,
            self.new,
            self.positions,
            self.keep_state,
            self.in_place,
            self.beside,
            self.apart[pos],
            self.states,
            self.maps,
            self.memo,
            self.relay,
            self.apart,
        )

    @property
    def doc_ids(self) -> Int[Tensor, "b n"] | None:
        return self.beside.get("doc_ids")

    @property
    def attn_mask(self) -> Bool[Tensor, "..."] | None:
        return self.beside.get("attn_mask")

    @property
    def context(self) -> Float[Tensor, "b c _"] | None:
        return self.beside.get("context")

    @property
    def context_mask(self) -> Bool[Tensor, "b c"] | None:
        return self.beside.get("context_mask")

    @property
    def context_pos(self) -> Int[Tensor, "_ c"] | None:
        return self.beside.get("context_pos")

    @property
    def prefix(self) -> Int[Tensor, " _"] | None:
        """(1 | b,) the slots at the start of each row that see each other (fresh calls only)."""
        return self.beside.get("prefix_attn_len")

    @property
    def uniform(self) -> bool:
        """All rows have the same lengths, known without looking at data."""
        return self.length is None and self.new is None

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, computed by the first layer that asks and shared by the others of this call."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def ends(self, n: int) -> Int[Tensor, " b"] | None:
        """(b,) the tokens each row has seen behind this call of n; None where all have past + n."""
        if self.uniform:
            return None
        new, before = n if self.new is None else self.new, self.past if self.length is None else self.length
        return self.once("ends", lambda: new + before)

    def real(self, n: int) -> Bool[Tensor, "b n"] | None:
        """Which of the n tokens of this call are real; None when all are."""
        if self.new is None:
            return None
        new = self.new
        return self.once("real", lambda: torch.arange(n, device=new.device) < new[:, None])

    def filled(self) -> Int[Tensor, " _"]:
        """(1 | b,) the tokens each row has seen before this call."""
        if self.length is not None:
            return self.length
        return self.once("filled", lambda: torch.full((1,), self.past, device=self.positions.device))

    def doc_positions(self) -> Int[Tensor, "b n"]:
        """Each token's position in its own document (`doc_ids` must be set; each a run of equal ones)."""
        doc_ids = self.doc_ids
        if doc_ids is None:
            raise ValueError("this call has no doc_ids")
        return self.once("doc_positions", lambda: document_positions(doc_ids))


def document_starts(doc_ids: Int[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
    """True where a token belongs to another document than the one before it."""
    # All but the first would be a guard on there being three.
    index = torch.arange(doc_ids.shape[1], device=doc_ids.device)
    return (doc_ids != F.pad(doc_ids, (1, -1))) | (index == 0)


def document_positions(doc_ids: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """Each token's distance from the start of its document."""
    index = torch.arange(doc_ids.shape[1], device=doc_ids.device)
    return index - torch.where(document_starts(doc_ids), index, 0).cummax(1).values
