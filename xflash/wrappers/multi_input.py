"""`MultiInputTransformerWrapper`: several ids at each place in, logits of each out, around any stack."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from ..base.frozen import frozen
from ..base.roles import Role
from ..base.shapes import Float, Int, Tensor
from ..flags.flag import flag
from .model_state import ModelState
from .pooled_output import pooled_output
from .several_ids import SeveralIds
from .stream_model import StreamModel
from .token_head import projection
from .wanted import Wanted

__all__ = ["MultiInputTransformerWrapper"]

Ids = Mapping[str, Int[Tensor, "b n"]] | Int[Tensor, "b n k"]


class MultiInputTransformerWrapper(StreamModel):
    """Embeddings of several ids a token, summed, a stack, and a projection to the logits of each.

    With num_tokens={'note': 128, 'length': 16}, `model({'note': ids, 'length': ids})` gives {'note': (b, n, 128),
    'length': (b, n, 16)}; the inputs may be one tensor (b, n, 2) too, in this order. `model.step(x, state)` gives
    (logits, state) when the stack is causal.
    """

    @frozen
    class Config(StreamModel.Config, SeveralIds.Config):
        return_only_embed: bool = flag(
            False, "no heads: the model gives the stack's output, as an encoder does", tried=(True,)
        )

    gives = "logits of several ids a token"
    maker: ClassVar[str] = "step gives the logits of each input, of which the next ids can be drawn"
    embedding: SeveralIds

    def assemble(self, config: Any) -> None:
        self.hold(config)
        self.embedding = SeveralIds(config, self.dim, self.attn_layers.has_relative_positions)
        self.num_tokens, self.return_only_embed = self.embedding.num_tokens, config.return_only_embed
        # A ModuleDict has methods, and a name such as 'type' would be one of them.
        heads = {} if config.return_only_embed else self.num_tokens
        self.to_logits = Heads(
            {f"{name}_logits": projection(self.read_width, count, False) for name, count in heads.items()}
        )
        self.pooled = pooled_output(config, self.attn_layers)

    def logits(self, y: Float[Tensor, "b *n d"]) -> Any:
        """The logits of each input, by its name."""
        if self.return_only_embed:
            return y
        return {name: head(y) for name, head in zip(self.num_tokens, self.to_logits.values(), strict=True)}

    def forward(
        self,
        x: Ids,
        mask: Tensor | None = None,
        *,
        prepend_embeds: Float[Tensor, "b p d"] | None = None,
        prepend_mask: Tensor | None = None,
        return_embeddings: bool = False,
        return_logits_and_embeddings: bool = False,
        return_attn: bool = False,
        mems: ModelState | None = None,
        return_mems: bool = False,
        return_hiddens: bool = False,
        return_auxiliary_loss: bool = False,
        **beside: Any,
    ) -> Any:
        """The logits (b, n, count) of each input by its name.

        The rest is as in TransformerWrapper, what it says of logits is of all of them; `beside`: side inputs.
        """
        front = {"prepend_embeds": prepend_embeds, "prepend_mask": prepend_mask}
        asked = return_hiddens, return_auxiliary_loss
        wanted = Wanted(return_embeddings, return_logits_and_embeddings, return_attn, return_mems, *asked)
        return self.call(x, mask, front, beside, wanted, mems)

    def step(
        self,
        x: Ids,
        state: ModelState | None = None,
        mask: Tensor | None = None,
        *,
        prepend_embeds: Float[Tensor, "b p d"] | None = None,
        prepend_mask: Tensor | None = None,
        reset: Tensor | None = None,
        return_hiddens: bool = False,
        return_auxiliary_loss: bool = False,
        **beside: Any,
    ) -> tuple[Any, ...]:
        """Logits of any number of new tokens behind what `state` has seen, and the state: as in TransformerWrapper."""
        front = {"prepend_embeds": prepend_embeds, "prepend_mask": prepend_mask}
        noted = {"return_hiddens": return_hiddens, "return_auxiliary_loss": return_auxiliary_loss}
        return self.go_on(x, state, mask, front, beside, reset, noted)


class Heads(nn.ModuleDict):
    """A projection for each input."""

    @property
    def roles(self) -> dict[str, Role]:
        return dict.fromkeys(self, "head")
