"""`ScoreStep`: what may stand between the scores of a softmax read and its values; `WeightFn`: scores to weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import nn

from ...base.frozen import frozen
from ...base.registry import scores, weight_fns
from ...base.shapes import Bool, Float, Int, Tensor
from ...base.state import Ctx

__all__ = ["Read", "ScoreStep", "WeightFn"]


@dataclass
class Read:
    """What a step may know of the read it takes part in.

    ctx: that of the call, None where state vectors are written.  q, k: as they meet, query head h with key head h // r.
    at: (1 | b, n) where the queries stand, keys: (1 | b, m) where the keys do, in one count (keys None: key j stands at
    j); at None where they are no tokens in one row.  rows: (b,) which batch row of the call each row of scores belongs
    to, None where it is that row.  buffers, fresh: what `bring` has given for the keys, and for the queries' tokens, by
    name; asked: what `ask` has; added: what a step leaves to be added to the buffers of the last keys.  memory: how
    many learned keys stand in front of the others, which are no tokens and which all queries see.  bias: what has been
    added to the scores.  mask: (1 | b, 1 | h, 1 | n, m) which keys each query sees, causality included, None where all
    are seen.  blind: (1 | b, 1 | h, 1 | n, 1) the queries that see nothing, which the mask has see everything; None
    where none can be.
    """

    q: Float[Tensor, "b h n k"]
    k: Float[Tensor, "b _ m k"]
    ctx: Any
    at: Int[Tensor, "_ n"] | None = None
    keys: Int[Tensor, "_ m"] | None = None
    rows: Int[Tensor, " b"] | None = None
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    fresh: Mapping[str, Tensor] = field(default_factory=dict)
    asked: Mapping[str, Tensor] = field(default_factory=dict)
    added: dict[str, Tensor] = field(default_factory=dict)
    memory: int = 0
    bias: Float[Tensor, "_ _ n m"] | None = None
    mask: Bool[Tensor, "_ _ _ m"] | None = None
    blind: Bool[Tensor, "_ _ _ 1"] | None = None

    def distance(self, m: int) -> Int[Tensor, "_ 1 n m"]:
        """How far before each query the m keys stand, below 0 of those ahead."""
        at = cast(Tensor, self.at)
        keys = torch.arange(m, device=at.device) if self.keys is None else self.keys[:, None, None]
        return at[:, None, :, None] - keys

    def shown(self, t: Float[Tensor, "b h n m"], heads: slice = slice(None)) -> Float[Tensor, "b h n m"]:
        """`t` of these heads, 0 where a key is hidden."""
        for hidden in (None if self.mask is None else ~self.mask, self.blind):
            t = t if hidden is None else t.masked_fill(hidden[:, heads], 0)
        return t

    def since(self, first: int) -> "Read":
        """The read of the keys from `first` on."""
        at = None if self.at is None else self.at - first
        buffers = {name: t[:, :, first:] for name, t in self.buffers.items()}
        return replace(self, k=self.k[:, :, first:], at=at, buffers=buffers)


# Methods of a step that need the matrix of scores.
MATRIX = ("before", "settled", "around", "behind")
DOES = (*MATRIX, "bias", "extra_key", "meet")


class ScoreStep(nn.Module):
    """Base of the steps of a softmax read; a subclass owns a frozen dataclass `Config` and what it changes.

    `before`, `settled`, `around` and `behind` need the matrix of scores; a step that says what it does as a `bias`, an
    `extra_key` or by how queries and keys `meet` leaves the fused kernel in place. `needs` says what a block has to
    offer: 'causal' (keys are tokens of the row, none of them later), 'tokens' (queries are, which it may `ask`),
    'relay' (one matrix of tokens by tokens or context a layer); a step that `brings` named buffers a token needs a
    block that keeps them. `kind` is the block's name, and what the flags of the step begin with. Where not `shared`, a
    block that takes over another's steps does not take over this one. Where `across_heads`, it needs all heads of a
    layer at once; where it `takes_queries`, they are to be as wide as a head. One that `adds_between` key and query
    needs what stands there: none of it may be given up while keys in front of it stay. `example` has the flags of its
    example in the docs.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    brings: ClassVar[tuple[str, ...]] = ()
    shared: ClassVar[bool] = True
    across_heads: ClassVar[bool] = False
    takes_queries: ClassVar[bool] = False
    adds_between: ClassVar[bool] = False
    example: ClassVar[Mapping[str, Any]] = {}

    @frozen
    class Config:
        """Nothing to set."""

    def __init__(self, config: Any, site: Any, heads: int, kind: str):
        super().__init__()
        self.config, self.heads, self.kind = config, heads, kind
        if "causal" in self.needs and not site.causal:
            name = scores.name_of(type(self))
            raise ValueError(f"{kind}_scores has {name!r}, which looks back only, in a bidirectional stack")

    @classmethod
    def unlike(cls) -> str:
        """Why a stack would be the same without the step, or ''."""
        done = any(getattr(cls, name) is not getattr(ScoreStep, name) for name in DOES)
        return "" if done else f"changes nothing: {cls.__name__} has none of {', '.join(DOES)}"

    @classmethod
    def wants(cls) -> frozenset[str]:
        """What a block has to offer."""
        return cls.needs | {"buffers"} if cls.brings else cls.needs

    @classmethod
    def takes_matrix(cls) -> bool:
        """Whether the step works on the matrix, which the fused kernel never makes."""
        return any(getattr(cls, name) is not getattr(ScoreStep, name) for name in MATRIX)

    @classmethod
    def check(cls, kind: str, configs: Sequence[Any], heads: int) -> None:
        """ValueError where layers of one column that have the step, by their blocks' Configs, exclude each other.

        heads: the stack's, of blocks that set none.
        """

    def before(self, s: Float[Tensor, "b h n m"], read: Read) -> Float[Tensor, "b h n m"]:
        """The scores, biases included, keys that are not seen not yet hidden."""
        return s

    def settled(self, s: Float[Tensor, "b h n m"], read: Read) -> None:
        """Is told the scores when all steps are through, keys that are not seen not yet hidden."""

    def around(self, s: Float[Tensor, "b h n m"], weigh: Callable[[Tensor], Tensor]) -> Float[Tensor, "b h n m"]:
        """The weights of scores, -inf where nothing is seen; `weigh` gives those of the weight function."""
        return weigh(s)

    def behind(self, weights: Float[Tensor, "b h n m"], read: Read) -> Float[Tensor, "b h n m"]:
        """The weights as they meet the values."""
        return weights

    def meet(
        self, q: Float[Tensor, "b h n k"], k: Float[Tensor, "b _ m k"]
    ) -> tuple[Float[Tensor, "b h n _"], Float[Tensor, "b _ m _"]]:
        """Queries and keys, memory ones included, as they are multiplied with each other."""
        return q, k

    def bias(self, read: Read) -> Float[Tensor, "_ h n m"] | None:
        """What is added to the scores of the tokens (`read.memory` is none yet), or None."""
        return None

    def extra_key(self, read: Read) -> Float[Tensor, "_ h _ t"] | None:
        """The scores (1 | b, h, 1 | n, t) of t further keys that all queries see, with values of zero, or None."""
        return None

    def bring(self, x: Float[Tensor, "b n d"], ctx: Ctx, last: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """A buffer (b, h, n, k) of the tokens for each name in `brings`, kept beside the keys and never rewritten,
        but that what `before` leaves in `read.added` (b, h, m, k) is added to it for the calls that follow.

        last: (b, h, 1, k) that of each row's token before these, zeros where there is none; None in a first call.
        """
        return {}

    def ask(self, x: Float[Tensor, "b n d"]) -> dict[str, Tensor]:
        """What the tokens of a call ask as queries (b, h, n, k), by name; nobody keeps it."""
        return {}

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in vars(self.config).items())


class WeightFn(nn.Module, ABC):
    """Base of the functions from scores, -inf where a key is not seen, to weights in float32 at least.

    `fused`: whether it is what the fused kernel computes.  `needs`: what a block has to offer, 'chance' where it draws
    numbers.  `example`: the flags of its example in the docs.
    """

    fused: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    example: ClassVar[Mapping[str, Any]] = {}

    @frozen
    class Config:
        """Nothing to set."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    @classmethod
    def wants(cls) -> frozenset[str]:
        """What a block has to offer."""
        return cls.needs

    @abstractmethod
    def forward(self, s: Float[Tensor, "b h n m"]) -> Float[Tensor, "b h n m"]:
        """The weights of each query's keys."""


scores.base = ScoreStep
weight_fns.base = WeightFn
