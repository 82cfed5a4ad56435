"""`Reading`: what blocks that read by softmax have in common: which steps on the scores they take."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ...base.registry import Registry, scores, weight_fns
from ...flags.aliases import names
from ..scores.read import ReadFlags
from .block import Block

__all__ = ["Reading"]

# What a step may need, in words.
NEEDS = {
    "buffers": "buffers beside the keys of every token",
    "chance": "numbers that are drawn alike where it is computed again for gradients",
    "causal": "keys that are the row's own tokens, none later than the query",
    "relay": "one matrix of scores a layer",
    "tokens": "queries that are the row's own tokens, beside keys that are",
}


class Reading(Block):
    """Base of the blocks that read by softmax; `offers` is what steps and weight functions may need of it, `kind` its
    name."""

    kind: ClassVar[str]
    holds: ClassVar[Mapping[str, Registry]] = {"scores": scores, "weight_fn": weight_fns}
    offers: ClassVar[frozenset[str]] = frozenset({"chance"})

    Config = ReadFlags

    @classmethod
    def refuses(cls, part: Any) -> str:
        missing = sorted(part.wants() - cls.offers)
        return f"{cls.kind} has no {NEEDS.get(missing[0], missing[0])}" if missing else ""

    @classmethod
    def takes_over(cls, part: type) -> bool:
        return super().takes_over(part) and getattr(part, "shared", True)

    @classmethod
    def arrange(cls, place: int, layers: Sequence[tuple[str, Any]], heads: int) -> Sequence[tuple[str, Any]]:
        """The column as it is; ValueError where a step would meet what it cannot meet in another layer."""
        for step in names(layers[place][1].scores):
            configs = [config for name, config in layers if name == cls.kind and step in names(config.scores)]
            scores[step].check(cls.kind, configs, heads)
        return layers
