"""`XValTransformerWrapper`: token ids and numbers in, logits and numbers out, around any stack."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import nn

from ..base.frozen import frozen
from ..base.roles import Role
from ..base.shapes import Float, Int, Tensor
from ..flags.flag import like
from .model_state import ModelState
from .number_embedding import NumberEmbedding
from .pooled_output import pooled_output
from .stream_model import StreamModel
from .token_head import TokenHead
from .wanted import Wanted

__all__ = ["Predicted", "XValTransformerWrapper"]


class Predicted(NamedTuple):
    """The logits (b, n, v) of the next tokens, and the numbers (b, n) that these are where they stand for one."""

    logits: Float[Tensor, "b *n v"]
    numbers: Float[Tensor, "b *n"]


class XValTransformerWrapper(TokenHead, StreamModel):
    """A `TransformerWrapper` that reads and gives numbers (https://arxiv.org/abs/2310.02989).

    `model(ids, x_num)` gives (logits, numbers): the token `numerical_token_id` stands for a number, which is given
    beside it in x_num (b, n) and multiplies its embedding; what x_num holds at other tokens is not looked at.
    `model.step(ids, state, x_num=numbers)` gives ((logits, numbers), state).
    """

    @frozen
    class Config(TokenHead.Config, StreamModel.Config, NumberEmbedding.Config):
        logits_bias: bool = like(TokenHead.Config, "logits_bias", True, tried=(False,))

    gives = "logits and numbers of token ids and numbers"
    beside_tokens: ClassVar[tuple[str, ...]] = ("embed_ids", "x_num")
    maker: ClassVar[str] = "XValAutoregressiveWrapper(model).{how} makes tokens and numbers"
    roles: ClassVar[Mapping[str, Role]] = {**TokenHead.roles, "to_number": "head"}
    embedding: Any

    def assemble(self, config: Any) -> None:
        self.hold(config)
        self.num_tokens, self.numerical_token_id = config.num_tokens, config.numerical_token_id
        self.embedding = NumberEmbedding(config, self.dim, self.attn_layers.has_relative_positions)
        self.to_logits = self.head(config, config.emb_dim or self.dim)
        self.to_number = None if config.return_only_embed else nn.Linear(self.read_width, 1)
        if self.to_number is not None:
            nn.init.zeros_(self.to_number.bias)
        self.pooled = pooled_output(config, self.attn_layers)

    def logits(self, y: Float[Tensor, "b *n d"]) -> Any:
        """The logits and the numbers of the stack's output, pooled or not."""
        if self.to_number is None:
            return y
        return Predicted(super().logits(y), self.to_number(y)[..., 0])

    def forward(
        self,
        x: Int[Tensor, "b n"],
        x_num: Float[Tensor, "b n"],
        mask: Tensor | None = None,
        *,
        prepend_embeds: Float[Tensor, "b p d"] | None = None,
        prepend_mask: Tensor | None = None,
        embed_ids: Mapping[str, Int[Tensor, "b n"]] | None = None,
        return_embeddings: bool = False,
        return_logits_and_embeddings: bool = False,
        return_attn: bool = False,
        mems: ModelState | None = None,
        return_mems: bool = False,
        return_hiddens: bool = False,
        return_auxiliary_loss: bool = False,
        **beside: Any,
    ) -> Any:
        """(logits (b, n, v), numbers (b, n)) of ids and numbers x_num (b, n).

        The rest is as in TransformerWrapper, what it says of logits is of both; `beside`: side inputs of the stack.
        """
        front = {"prepend_embeds": prepend_embeds, "prepend_mask": prepend_mask, "embed_ids": embed_ids, "x_num": x_num}
        asked = return_hiddens, return_auxiliary_loss
        wanted = Wanted(return_embeddings, return_logits_and_embeddings, return_attn, return_mems, *asked)
        return self.call(x, mask, front, beside, wanted, mems)

    def step(
        self,
        x: Int[Tensor, "b n"],
        state: ModelState | None = None,
        mask: Tensor | None = None,
        *,
        x_num: Float[Tensor, "b n"],
        prepend_embeds: Float[Tensor, "b p d"] | None = None,
        prepend_mask: Tensor | None = None,
        embed_ids: Mapping[str, Int[Tensor, "b n"]] | None = None,
        reset: Tensor | None = None,
        return_hiddens: bool = False,
        return_auxiliary_loss: bool = False,
        **beside: Any,
    ) -> tuple[Any, ...]:
        """(logits, numbers) of any number of new tokens behind what `state` has seen, and the state with them.

        The rest is as in TransformerWrapper.
        """
        front = {"prepend_embeds": prepend_embeds, "prepend_mask": prepend_mask, "embed_ids": embed_ids, "x_num": x_num}
        noted = {"return_hiddens": return_hiddens, "return_auxiliary_loss": return_auxiliary_loss}
        return self.go_on(x, state, mask, front, beside, reset, noted)
