"""`TransformerWrapper`: token ids in, logits out, around any stack."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ..base.frozen import frozen
from ..base.shapes import Float, Int, Tensor
from .input_embedding import InputEmbedding
from .model_state import ModelState
from .passes import Passes, passes, passes_before
from .pooled_output import pooled_output
from .side_calls import with_side_calls
from .stream_model import StreamModel
from .token_head import TokenHead
from .wanted import Wanted

__all__ = ["ModelState", "TransformerWrapper"]


class TransformerWrapper(TokenHead, StreamModel):
    """Token embedding, absolute positions, a stack, and the projection to logits.

    `model(ids)` gives logits (b, n, num_tokens); `model.step(ids, state)` gives (logits, state) for any number of new
    tokens, when the stack is causal. `use_abs_pos_emb=None` means learned positions unless the stack has relative
    ones; then `max_seq_len` limits the length. Embeddings put in front (`prepend_embeds`) carry no position.

    `embed_num_tokens={'segment': 2}` adds embeddings of ids that calls give beside the tokens, as
    `embed_ids={'segment': ids}`. `average_pool_embed`, `attn_pool` or `use_cls_token` make one embedding a row, which
    the head projects: logits (b, num_tokens or logits_dim), (b, c, ...) with `num_cls_tokens=c` or
    `num_pooled_tokens=c`; such a model has no step.
    `return_only_embed` leaves the head out: the model then gives the stack's output (b, n, d), as an encoder does.
    With `num_output_heads` logits are a tuple. `recycling` and `looped` have the stack run several times.

    `max_mem_len`: how many tokens' keys and values `remember` keeps of a state, which makes it Transformer-XL's memory
    (https://arxiv.org/abs/1901.02860): `logits, mems = model(ids, mems=mems, return_mems=True)`.
    """

    @frozen
    class Config(TokenHead.Config, Passes.Config, StreamModel.Config, InputEmbedding.Config):
        pass

    beside_tokens: ClassVar[tuple[str, ...]] = ("embed_ids",)
    filler: ClassVar[str] = "MaskedLMWrapper(model).generate fills in tokens"
    embedding: InputEmbedding

    def assemble(self, config: Any) -> None:
        self.hold(config)
        self.num_tokens = config.num_tokens
        self.embedding = InputEmbedding(config, self.dim, self.attn_layers.has_relative_positions)
        self.to_logits = self.head(config, config.emb_dim or self.dim)
        self.pooled = pooled_output(config, self.attn_layers)
        self.passes = passes(config, self.dim)
        if self.passes is not None and self.max_mem_len is not None:
            raise ValueError(f"{self.passes.kind}=True has no state, so max_mem_len={self.max_mem_len} cannot be set")

    @with_side_calls
    def forward(
        self,
        x: Int[Tensor, "b n"],
        mask: Tensor | None = None,
        *,
        prepend_embeds: Float[Tensor, "b p d"] | None = None,
        prepend_mask: Tensor | None = None,
        embed_ids: Mapping[str, Int[Tensor, "b n"]] | None = None,
        attn_mask: Tensor | None = None,
        doc_ids: Int[Tensor, "b n"] | None = None,
        context: Float[Tensor, "b c _"] | None = None,
        context_mask: Tensor | None = None,
        context_pos: Int[Tensor, "... c"] | None = None,
        prefix_attn_len: int | Tensor | None = None,
        condition: Float[Tensor, "b *n _"] | None = None,
        return_embeddings: bool = False,
        return_logits_and_embeddings: bool = False,
        return_attn: bool = False,
        mems: ModelState | None = None,
        return_mems: bool = False,
        return_hiddens: bool = False,
        return_auxiliary_loss: bool = False,
        recycle_steps: int | None = None,
        looped_steps: int | None = None,
        **beside: Any,
    ) -> Any:
        """Logits (b, n, v), or (b, p + n, v) with `prepend_embeds` (b, p, d); (b, v) of a model that pools.

        mask (b, n): True = real token. `embed_ids`: ids (b, n) for each name of `embed_num_tokens`. `context` (b, c,
        width) is what cross_attn and cross_gau layers attend to, with `context_mask` (b, c) and, for rotary positions
        to count, `context_pos`. `return_embeddings` gives what the head reads instead (the stack's output, pooled if
        the model pools), `return_logits_and_embeddings` both, `return_attn` (logits, attention matrices), CLS tokens
        among their rows and columns. `prefix_attn_len` (PrefixDecoder): how many of each row's first tokens,
        embeddings in front included, see each other. `condition` (b, width) or (b, n, width): what adaptive parts of
        the stack are conditioned on; what stands in front of the tokens has none. `beside`: further side inputs.
        `mems`: what a call with `return_mems`, which gives (logits, mems), has left of the segment before.
        `return_hiddens`: behind all else a list of layers + 2 streams (b, n, d), embeddings and CLS tokens in front
        included: what the first layer gets, what each layer leaves, and what the stack gives, behind its last norm.
        `return_auxiliary_loss`: as last what layers lose of their own (moe_balance_loss), to be added to the loss.
        `seq_start_pos`, `self_attn_kv_mask`, `cache`, `input_not_include_cache`, `return_intermediates`: as in
        x-transformers, see `with_side_calls`.
        `recycle_steps`, `looped_steps`: how many passes a model with recycling or looped has; it notes the last.
        """
        front: dict[str, Any] = {"prepend_embeds": prepend_embeds, "prepend_mask": prepend_mask, "embed_ids": embed_ids}
        beside |= {"context": context, "context_mask": context_mask, "context_pos": context_pos}
        beside |= {"prefix_attn_len": prefix_attn_len, "condition": condition}
        beside |= {"attn_mask": attn_mask, "doc_ids": doc_ids}
        asked = return_hiddens, return_auxiliary_loss
        wanted = Wanted(return_embeddings, return_logits_and_embeddings, return_attn, return_mems, *asked)
        return self.call(x, mask, front, beside, wanted, mems, passes_before(self.passes, recycle_steps, looped_steps))

    def step(
        self,
        x: Int[Tensor, "b n"],
        state: ModelState | None = None,
        mask: Tensor | None = None,
        *,
        prepend_embeds: Float[Tensor, "b p d"] | None = None,
        prepend_mask: Tensor | None = None,
        embed_ids: Mapping[str, Int[Tensor, "b n"]] | None = None,
        context: Float[Tensor, "b c _"] | None = None,
        context_mask: Tensor | None = None,
        context_pos: Int[Tensor, "... c"] | None = None,
        prefix_attn_len: int | Tensor | None = None,
        condition: Float[Tensor, "b *n _"] | None = None,
        reset: Tensor | None = None,
        return_hiddens: bool = False,
        return_auxiliary_loss: bool = False,
        **beside: Any,
    ) -> tuple[Any, ...]:
        """Logits of any number of new tokens behind what `state` has seen, and the state with them.

        `mask` covers the new tokens only; rows may differ in length. A context is given in the first call, the state
        then holds it. `reset` (b,) names rows that start anew, with their context. A condition of rows is held as
        well, until another is given; one of tokens is given with each call. `return_hiddens`: (logits, state, hiddens),
        those of the new tokens; `return_auxiliary_loss`: their loss as last.
        """
        front: dict[str, Any] = {"prepend_embeds": prepend_embeds, "prepend_mask": prepend_mask, "embed_ids": embed_ids}
        beside |= {"context": context, "context_mask": context_mask, "context_pos": context_pos}
        beside |= {"prefix_attn_len": prefix_attn_len, "condition": condition}
        noted = {"return_hiddens": return_hiddens, "return_auxiliary_loss": return_auxiliary_loss}
        return self.go_on(x, state, mask, front, beside, reset, noted)
