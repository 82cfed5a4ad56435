"""`Model`: what stands in front of a stack, and what reads it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..base.shapes import Float, Tensor
from ..saving.configurable import Configurable
from ..stack.face import AttentionLayers
from ..stack.side_inputs import behind_front
from .wanted import Wanted

__all__ = ["Model"]


class Model(Configurable):
    """Inputs, a stack, pooling and a head: `embedding`, `attn_layers`, `pooled` (None: there is none) and `logits`.

    Each of the four has a `Config`; that of a model holds all of their flags.
    """

    embedding: Any
    attn_layers: AttentionLayers
    pooled: Any
    passes: Any
    logits: Callable[..., Tensor]

    @property
    def dim(self) -> int:
        """The width of the stream."""
        return self.attn_layers.dim

    @property
    def has_auxiliary_loss(self) -> bool:
        """Whether layers have a loss of their own, which training adds to the model's (moe_balance_loss)."""
        return self.attn_layers.has_auxiliary_loss

    @property
    def auxiliary_flags(self) -> str:
        """The flags that give layers such a loss, as a sentence names them."""
        return self.attn_layers.auxiliary_flags

    def through(
        self,
        x: Float[Tensor, "b n d"],
        mask: Tensor | None,
        beside: Mapping[str, Any],
        wanted: Wanted,
        again: Callable[..., Tensor] | None = None,
    ) -> tuple[Float[Tensor, "b m d"], Tensor | None, list]:
        """What the stack makes of embedded tokens and the class tokens in front of them, their mask, what it noted.

        again: what it reads in their place, made of them and of passes before this one.
        """
        inputs, tokens = dict(beside), x
        if self.pooled is not None:
            x, mask, inputs["attn_mask"] = self.pooled.front(x, mask, inputs.get("attn_mask"))
            inputs = behind(tokens, x.shape[1] - tokens.shape[1], inputs)
        lost: list[Tensor] = []
        if again is not None:
            x = again(x, lambda read: self.pass_of(read, mask, inputs, wanted, lost))
        call: Any = self.attn_layers.attention_maps if wanted.attn else self.attn_layers
        found = call(x, mask, **inputs, **wanted.of_layers())
        y, *noted = found if isinstance(found, tuple) else (found,)
        if lost:
            # As of layers that are tied: each counts as often as it runs.
            noted[-1] = torch.stack([*lost, noted[-1]]).mean()
        return y, mask, noted

    def pass_of(
        self, x: Tensor, mask: Tensor | None, inputs: Mapping[str, Any], wanted: Wanted, lost: list[Tensor]
    ) -> Tensor:
        """A pass before the last one; `lost` gets what its layers lose of their own, where it is learned from."""
        if not wanted.auxiliary_loss or not self.passes.looped:
            return self.attn_layers(x, mask, **inputs)
        y, own = self.attn_layers(x, mask, **inputs, return_auxiliary_loss=True)
        lost.append(own)
        return y

    def answer(self, wanted: Wanted, embeddings: Tensor, read: Callable[[], Tensor], noted: list) -> Any:
        """What a call gives: logits of what the head is to `read`, or the embeddings, or both; then what is noted."""
        if wanted.embeddings:
            out: Any = embeddings
        else:
            out = self.logits(read())
            out = (out, embeddings) if wanted.logits_and_embeddings else out
        return (out, *noted) if noted else out


def behind(x: Tensor, count: int, beside: dict[str, Any]) -> dict[str, Any]:
    """The side inputs as the stack is given them where `count` tokens stand in front of x."""
    return behind_front(beside, count, (x.shape[0], x.shape[1])) if count else beside
