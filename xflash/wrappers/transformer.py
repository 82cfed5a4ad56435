"""`TransformerWrapper`: token ids in, logits out, around any stack."""

from collections.abc import Mapping
from typing import Any

import torch

from ..base.checks import (
    as_doc_ids,
    as_rows,
    check_count,
    check_counts,
    check_switches,
    count_or_none,
)
from ..base.shapes import Float, Int, Tensor
from ..saving.configurable import Configurable
from ..stack.face import AttentionLayers
from ..stack.side_inputs import behind_front
from .compiled_step import CompilableStep
from .input_embedding import InputEmbedding
from .model_state import ModelState, stack_state
from .pooled_output import pooled_output
from .stack_given import check_stack, memory_length
from .token_head import TokenHead, scale_of_tied
from .wanted import Wanted

__all__ = ["ModelState", "TransformerWrapper"]


class TransformerWrapper(CompilableStep, TokenHead, Configurable):
    """Token embedding, absolute positions, a stack, and the projection to logits.

    `model(ids)` gives logits (b, n, num_tokens); `model.step(ids, state)` gives (logits, state) for any number of new
    tokens, when the stack is causal. `use_abs_pos_emb=None` means learned positions unless the stack has relative
    ones; then `max_seq_len` limits the length. Embeddings put in front (`prepend_embeds`) carry no position.

    `embed_num_tokens={'segment': 2}` adds embeddings of ids that calls give beside the tokens, as
    `embed_ids={'segment': ids}`. `average_pool_embed`, `attn_pool` or `use_cls_token` make one embedding a row, which
    the head projects: logits (b, num_tokens or logits_dim), (b, c, ...) with `num_cls_tokens=c`; such a model has no
    step.
    `return_only_embed` leaves the head out: the model then gives the stack's output (b, n, d), as an encoder does.

    `max_mem_len`: how many tokens' keys and values `remember` keeps of a state, which makes it Transformer-XL's memory
    (https://arxiv.org/abs/1901.02860): `logits, mems = model(ids, mems=mems, return_mems=True)`.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        max_seq_len: int | None = None,
        attn_layers: AttentionLayers,
        emb_dim: int | None = None,
        num_memory_tokens: int | None = None,
        use_abs_pos_emb: bool | None = None,
        scaled_sinu_pos_emb: bool = False,
        l2norm_embed: bool = False,
        post_emb_norm: bool = False,
        emb_dropout: float = 0.0,
        tie_embedding: bool = False,
        tie_embedding_scale: float | None = None,
        logits_dim: int | None = None,
        logits_bias: bool = False,
        embed_num_tokens: Mapping[str, int] | None = None,
        average_pool_embed: bool = False,
        use_cls_token: bool = False,
        num_cls_tokens: int = 1,
        attn_pool: bool = False,
        return_only_embed: bool = False,
        max_mem_len: int | None = None,
    ):
        super().__init__()
        check_stack(attn_layers)
        check_count("num_tokens", num_tokens)
        self.max_mem_len = memory_length(max_mem_len, attn_layers)
        check_counts(emb_dim=emb_dim, logits_dim=logits_dim)
        check_switches(tie_embedding=tie_embedding, logits_bias=logits_bias, return_only_embed=return_only_embed)
        self.attn_layers, self.num_tokens, self.dim = attn_layers, num_tokens, attn_layers.dim
        memory_tokens = count_or_none("num_memory_tokens", num_memory_tokens)
        if memory_tokens is not None:
            attn_layers.set_memory_tokens(memory_tokens)
        self.max_seq_len = count_or_none("max_seq_len", max_seq_len)
        absolute: dict[str, Any] = {"use_abs_pos_emb": use_abs_pos_emb, "scaled_sinu_pos_emb": scaled_sinu_pos_emb}
        absolute |= {"relative": attn_layers.has_relative_positions, "max_seq_len": self.max_seq_len}
        looks: dict[str, Any] = {"l2norm_embed": l2norm_embed, "post_emb_norm": post_emb_norm}
        looks |= {"emb_dropout": emb_dropout, "embed_num_tokens": embed_num_tokens}
        self.embedding = InputEmbedding(num_tokens, emb_dim or self.dim, self.dim, **absolute, **looks)
        self.tie_embedding, self.return_only_embed = tie_embedding, return_only_embed
        self.tie_embedding_scale = scale_of_tied(tie_embedding, tie_embedding_scale)
        self.to_logits = self.head(tie_embedding, logits_dim, logits_bias, emb_dim or self.dim)
        self.pooled = pooled_output(
            self.dim, attn_layers.causal, average_pool_embed, use_cls_token, num_cls_tokens, attn_pool
        )

    @property
    def causal(self) -> bool:
        """Whether no output depends on later tokens, so that the model can be stepped."""
        return self.attn_layers.causal and self.pooled is None

    @property
    def length_limit(self) -> int | None:
        """The most tokens a row can have; None when any number is possible."""
        return self.embedding.length_limit

    def flag_table(self) -> str:
        """Every flag of the stack with its value, default, type and meaning, as text."""
        return self.attn_layers.flag_table()

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
        """
        wanted = Wanted(return_embeddings, return_logits_and_embeddings, return_attn, return_mems)
        wanted.check(mems, attn_mask=attn_mask, doc_ids=doc_ids)
        front: dict[str, Any] = {"prepend_embeds": prepend_embeds, "prepend_mask": prepend_mask, "embed_ids": embed_ids}
        beside |= {"context": context, "context_mask": context_mask, "context_pos": context_pos}
        beside |= {"prefix_attn_len": prefix_attn_len, "condition": condition}
        if mems is not None or return_mems:
            logits, state = self.step(x, mems, mask, **front, **beside)
            return (logits, self.remember(state)) if return_mems else logits
        y, maps = self.outputs(x, mask, front, {**beside, "attn_mask": attn_mask, "doc_ids": doc_ids}, return_attn)
        if return_logits_and_embeddings:
            out: Any = (self.logits(y), y)
        else:
            out = y if return_embeddings else self.logits(y)
        return (out, maps) if return_attn else out

    def outputs(
        self, x: Int[Tensor, "b n"], mask: Tensor | None, front: dict[str, Any], beside: dict[str, Any], with_maps: bool
    ) -> tuple[Float[Tensor, "b *n d"], Any]:
        """What the head reads of whole sequences, and the attention matrices if asked for."""
        x, mask = self.embedding.check_ids(x, mask)
        if beside["doc_ids"] is not None:
            beside["doc_ids"] = as_doc_ids(beside["doc_ids"], (x.shape[0], x.shape[1]))
        embedded, mask = self.embedding(x, mask, doc_ids=beside["doc_ids"], **front)
        beside = self.behind(x, embedded.shape[1] - x.shape[1], beside)
        if self.pooled is not None:
            if beside.get("doc_ids") is not None:
                raise ValueError(
                    f"doc_ids and {self.pooled.kind} exclude each other: documents would be pooled together"
                )
            tokens, attn_mask = embedded, beside.get("attn_mask")
            embedded, mask, beside["attn_mask"] = self.pooled.front(embedded, mask, attn_mask)
            beside = self.behind(tokens, embedded.shape[1] - tokens.shape[1], beside)
        maps = None
        if with_maps:
            y, maps = self.attn_layers.attention_maps(embedded, mask, **beside)
        else:
            y = self.attn_layers(embedded, mask, **beside)
        return (y if self.pooled is None else self.pooled(y, mask)), maps

    def behind(self, x: Tensor, count: int, beside: dict[str, Any]) -> dict[str, Any]:
        """The side inputs as the stack is given them where `count` tokens stand in front of x."""
        return behind_front(beside, count, (x.shape[0], x.shape[1])) if count else beside

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
        **beside: Any,
    ) -> tuple[Float[Tensor, "b n v"], ModelState]:
        """Logits of any number of new tokens behind what `state` has seen, and the state with them.

        `mask` covers the new tokens only; rows may differ in length. A context is given in the first call, the state
        then holds it. `reset` (b,) names rows that start anew, with their context. A condition of rows is held as
        well, until another is given; one of tokens is given with each call.
        """
        if self.pooled is not None:
            raise ValueError(f"a model with {self.pooled.kind}=True has no step: its output is of the whole sequence")
        self.attn_layers.check_steppable()
        x, mask = self.embedding.check_ids(x, mask)
        reset = None if reset is None else as_rows("reset", reset, x.shape[0])
        if state is not None:
            self.attn_layers.check_state(stack_state(state), x.shape[0])
            if reset is not None:
                state = self.reset(state, reset)
        front: dict[str, Any] = {"prepend_embeds": prepend_embeds, "prepend_mask": prepend_mask}
        beside |= {"context": context, "context_mask": context_mask, "context_pos": context_pos}
        beside |= {"prefix_attn_len": prefix_attn_len, "condition": condition}
        plain = all(value is None for value in (*front.values(), *beside.values()))
        if state is not None and x.shape[1] == 1 and plain and not torch.is_grad_enabled() and self.compiled_step:
            self.embedding.check_embed_ids(x, embed_ids)
            return self.compiled_step(x, state, mask, embed_ids)
        return self.advance(x, state, mask, embed_ids=embed_ids, **front, **beside)

    def advance(
        self,
        x: Int[Tensor, "b n"],
        state: ModelState | None,
        mask: Tensor | None,
        *,
        prepend_embeds: Tensor | None = None,
        prepend_mask: Tensor | None = None,
        embed_ids: Mapping[str, Tensor] | None = None,
        **beside: Any,
    ) -> tuple[Float[Tensor, "b n v"], ModelState]:
        """`step` with checked ids, mask and state."""
        past, length = (0, None) if state is None else (state.bound, state.length)
        embedded, full = self.embedding(
            x,
            mask,
            past=past,
            length=length,
            prepend_embeds=prepend_embeds,
            prepend_mask=prepend_mask,
            embed_ids=embed_ids,
        )
        beside = self.behind(x, embedded.shape[1] - x.shape[1], beside)
        y, stack = self.attn_layers.step(embedded, None if state is None else state.stack, full, **beside)
        if mask is not None:
            length = mask.sum(1) + (past if length is None else length)
        elif length is not None:
            length = length + x.shape[1]
        return self.logits(y), ModelState(stack, past + x.shape[1], length)

    def auxiliary_loss(self, state: ModelState, since: ModelState | None = None) -> Float[Tensor, ""]:
        """What the stack's layers lose beside the model's own loss, between two states: see AttentionLayers."""
        return self.attn_layers.auxiliary_loss(stack_state(state), None if since is None else stack_state(since))

    def reset(self, state: ModelState, rows: Tensor) -> ModelState:
        """`state` with the rows where the boolean `rows` (b,) is True as fresh as before their first token."""
        held = stack_state(state)
        rows = as_rows("rows", rows, state.rows)
        stack = self.attn_layers.reset(held, rows)
        before = torch.full_like(rows, state.bound, dtype=torch.long) if state.length is None else state.length
        return ModelState(stack, state.bound, before.masked_fill(rows, 0))

    def remember(self, state: ModelState) -> ModelState:
        """What is left of a state behind a segment: cut from its graph, the last `max_mem_len` tokens (None: all)."""
        self.attn_layers.check_state(stack_state(state))
        state = state.detach()
        if self.max_mem_len is None:
            return state
        return state._replace(stack=self.attn_layers.shorten(state.stack, self.max_mem_len))
