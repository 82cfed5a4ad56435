"""`TransformerWrapper`: token ids in, logits out, around any stack."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..base.checks import as_doc_ids, as_rows, check_switch
from ..base.shapes import Float, Int, Tensor
from ..flags.flag import flag
from ..stack.face import AttentionLayers
from ..stack.memory import moved_down
from .compiled_step import CompilableStep
from .input_embedding import InputEmbedding
from .model import Model, behind
from .model_state import ModelState, stack_state
from .pooled_output import PooledOutput, pooled_output
from .side_calls import with_side_calls
from .stack_given import memory_length, memory_shift
from .token_head import TokenHead
from .wanted import Wanted

__all__ = ["ModelState", "TransformerWrapper"]


class TransformerWrapper(CompilableStep, TokenHead, Model):
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

    @dataclass(frozen=True, kw_only=True)
    class Config(TokenHead.Config, PooledOutput.Config, InputEmbedding.Config):
        attn_layers: AttentionLayers = flag(
            doc="the stack: Decoder(...), Encoder(...) or another", tried="every combination has its own"
        )
        num_memory_tokens: int | None = flag(
            None, "learned tokens in front of every sequence (None: as the stack says)", at_least=0,
            paper="https://arxiv.org/abs/2006.11527", tried=(3,),
        )  # fmt: skip
        max_mem_len: int | None = flag(
            None, "tokens whose keys and values are carried on to the next segment (None: no memory)", at_least=0,
            paper="https://arxiv.org/abs/1901.02860", tried=(29,),
        )  # fmt: skip

        shift_mem_down: int = flag(
            0, "each layer is given what the layer so many below it has read before, as its memory", at_least=0,
            paper="https://arxiv.org/abs/2012.15688", tried=({"shift_mem_down": 1, "max_mem_len": 29},),
        )  # fmt: skip

    embedding: InputEmbedding

    def assemble(self, config: Any) -> None:
        self.attn_layers, self.num_tokens = config.attn_layers, config.num_tokens
        self.max_mem_len = memory_length(config.max_mem_len, self.attn_layers)
        self.shift_mem_down = memory_shift(config.shift_mem_down, self.max_mem_len, self.attn_layers)
        if config.num_memory_tokens:
            self.attn_layers.set_memory_tokens(config.num_memory_tokens)
        self.max_seq_len = config.max_seq_len or None
        self.embedding = InputEmbedding(config, self.dim, self.attn_layers.has_relative_positions)
        self.to_logits = self.head(config, config.emb_dim or self.dim)
        self.pooled = pooled_output(config, self.dim, self.attn_layers.causal)

    @property
    def causal(self) -> bool:
        """Whether no output depends on later tokens, so that the model can be stepped."""
        return self.attn_layers.causal and self.pooled is None

    @property
    def length_limit(self) -> int | None:
        """The most tokens a row can have; None when any number is possible."""
        return self.embedding.length_limit

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
        """
        asked = return_hiddens, return_auxiliary_loss
        wanted = Wanted(return_embeddings, return_logits_and_embeddings, return_attn, return_mems, *asked)
        wanted.check(mems, attn_mask=attn_mask, doc_ids=doc_ids)
        front: dict[str, Any] = {"prepend_embeds": prepend_embeds, "prepend_mask": prepend_mask, "embed_ids": embed_ids}
        beside |= {"context": context, "context_mask": context_mask, "context_pos": context_pos}
        beside |= {"prefix_attn_len": prefix_attn_len, "condition": condition}
        if mems is not None or return_mems:
            logits, state, *noted = self.step(x, mems, mask, **front, **beside, **wanted.of_layers())
            out = (logits, self.remember(state), *noted) if return_mems else (logits, *noted)
            return out if len(out) > 1 else logits
        y, noted = self.outputs(x, mask, front, {**beside, "attn_mask": attn_mask, "doc_ids": doc_ids}, wanted)
        return self.answer(wanted, y, lambda: y, noted)

    def outputs(
        self, x: Int[Tensor, "b n"], mask: Tensor | None, front: dict[str, Any], beside: dict[str, Any], wanted: Wanted
    ) -> tuple[Float[Tensor, "b *n d"], list]:
        """What the head reads of whole sequences, and what was asked for of the layers."""
        x, mask = self.embedding.check_ids(x, mask)
        if beside["doc_ids"] is not None:
            beside["doc_ids"] = as_doc_ids(beside["doc_ids"], (x.shape[0], x.shape[1]))
        embedded, mask = self.embedding(x, mask, doc_ids=beside["doc_ids"], **front)
        beside = behind(x, embedded.shape[1] - x.shape[1], beside)
        if self.pooled is not None and beside.get("doc_ids") is not None:
            raise ValueError(f"doc_ids and {self.pooled.kind} exclude each other: documents would be pooled together")
        y, mask, noted = self.through(embedded, mask, beside, wanted)
        return (y if self.pooled is None else self.pooled(y, mask)), noted

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
        plain = plain and return_hiddens is False and return_auxiliary_loss is False
        noted = {"return_hiddens": return_hiddens, "return_auxiliary_loss": return_auxiliary_loss}
        if state is not None and x.shape[1] == 1 and plain and not torch.is_grad_enabled() and self.compiled_step:
            self.embedding.check_embed_ids(x, embed_ids)
            return self.compiled_step(x, state, mask, embed_ids)
        return self.advance(x, state, mask, embed_ids=embed_ids, noted=noted, **front, **beside)

    def advance(
        self,
        x: Int[Tensor, "b n"],
        state: ModelState | None,
        mask: Tensor | None,
        *,
        prepend_embeds: Tensor | None = None,
        prepend_mask: Tensor | None = None,
        embed_ids: Mapping[str, Tensor] | None = None,
        noted: Mapping[str, bool] | None = None,
        **beside: Any,
    ) -> tuple[Any, ...]:
        """`step` with checked ids, mask and state; noted: what of the layers is wanted, by switches of the stack's."""
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
        inputs: dict[str, Any] = {**behind(x, embedded.shape[1] - x.shape[1], beside), **(noted or {})}
        y, stack, *found = self.attn_layers.step(embedded, None if state is None else state.stack, full, **inputs)
        if mask is not None:
            length = mask.sum(1) + (past if length is None else length)
        elif length is not None:
            length = length + x.shape[1]
        return self.logits(y), ModelState(stack, past + x.shape[1], length), *found

    def generate(self, *given: Any, **options: Any) -> Any:
        """TypeError that says what makes tokens."""
        raise TypeError(makes_none(self, "generate"))

    def stream(self, *given: Any, **options: Any) -> Any:
        """As `generate`."""
        raise TypeError(makes_none(self, "stream"))

    def beam_search(self, *given: Any, **options: Any) -> Any:
        """As `generate`."""
        raise TypeError(makes_none(self, "beam_search"))

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

    def remember(self, state: ModelState, detach: bool = True) -> ModelState:
        """What is left of a state behind a segment: the last `max_mem_len` tokens (None: all), cut from its graph."""
        self.attn_layers.check_state(stack_state(state))
        check_switch("detach", detach)
        state = state.detach() if detach else state
        if self.max_mem_len is None:
            return state
        stack = self.attn_layers.shorten(state.stack, self.max_mem_len)
        if self.shift_mem_down:
            stack = moved_down(self.attn_layers.column, stack, self.shift_mem_down)
        return state._replace(stack=stack)


def makes_none(model: TransformerWrapper, how: str) -> str:
    """What to do with a model that makes no tokens itself."""
    does = f"AutoregressiveWrapper(model).{how} makes tokens"
    if model.pooled is not None:
        does = "its output is one of whole sequences"
    elif not model.causal:
        does = "MaskedLMWrapper(model).generate fills in tokens"
    return f"{type(model).__name__} has no {how}: {does}"
