"""`residual`: scores go on from layer to layer."""

from collections.abc import Sequence
from typing import Any

from ...base.registry import scores
from ...base.shapes import Float, Tensor
from .step import Read, ScoreStep

__all__ = ["ResidualScores"]

# What makes the scores of two layers matrices of the same keys.
ALIKE = ("heads", "num_mem_kv", "window", "sinks")


@scores.register("residual")
class ResidualScores(ScoreStep):
    """The scores of the layer of its kind before, as they were weighed there, are added (https://arxiv.org/abs/2012.11747).

    Layers without the step are passed over.
    """

    needs = frozenset({"relay"})
    shared = False

    @classmethod
    def check(cls, kind: str, configs: Sequence[Any], heads: int) -> None:
        if len(configs) < 2:
            raise ValueError(
                f"{kind}_scores has 'residual', which adds scores of one layer to another's, but only one {kind} layer "
                "of the stack has it"
            )
        for name in ALIKE:
            own = heads if name == "heads" else None
            found = list(dict.fromkeys(getattr(config, name, None) or own for config in configs))
            if len(found) > 1:
                raise ValueError(
                    f"{kind}_scores has 'residual', which adds scores of one layer to another's: all layers that have "
                    f"it need one {kind}_{name}, not {found[0]} and {found[1]}"
                )

    def before(self, s: Float[Tensor, "b h n m"], read: Read) -> Float[Tensor, "b h n m"]:
        left = read.ctx.relay.find("scores", self.kind)
        return s if left is None else s + left

    def settled(self, s: Float[Tensor, "b h n m"], read: Read) -> None:
        read.ctx.relay.leave("scores", self.kind, s)
