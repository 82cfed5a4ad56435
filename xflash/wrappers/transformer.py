"""`TransformerWrapper`: token ids in, logits out, around any stack."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..checks import as_doc_ids, as_rows, check_count, check_share, check_switch, given
from ..configurable import Configurable
from ..door import as_mask, plan_rows
from ..layers.embeddings import LearnedPositions, ScaledSinusoidal, TokenEmbedding
from ..layers.norms import LayerNorm
from ..shapes import Float, Int, Tensor
from ..stack import AttentionLayers
from ..state import StackState, document_positions, tensors, tree_map

__all__ = ["ModelState", "TransformerWrapper"]


class ModelState(NamedTuple):
    """The stack's state, and how many tokens each row has seen, embeddings in front of them not counted.

    `bound` is an upper bound, `length` each row's own (b,) where rows differ.
    """

    stack: StackState
    bound: int
    length: Tensor | None

    def map(self, fn) -> "ModelState":
        """A state of its own with `fn` applied to every tensor."""
        return ModelState(self.stack.map(fn), self.bound, tree_map(fn, self.length))

    def __deepcopy__(self, memo: dict) -> "ModelState":
        return self.map(torch.clone)

    def reorder(self, index: Int[Tensor, " b2"]) -> "ModelState":
        """The rows that `index` names, in its order; a row may be named more than once (beam search)."""
        return self.map(lambda t: t.index_select(0, index))

    def detach(self) -> "ModelState":
        """The same values, cut from the graph that made them."""
        return self._replace(stack=self.stack.detach())

    def to(self, *args, **kwargs) -> "ModelState":
        """Moved or cast like a tensor; integer tensors keep their dtype."""
        length = None if self.length is None else self.length.to(*args, **kwargs).to(self.length.dtype)
        return ModelState(self.stack.to(*args, **kwargs), self.bound, length)


class TransformerWrapper(Configurable):
    """Token embedding, absolute positions, a stack, and the projection to logits.

    `model(ids)` gives logits (b, n, num_tokens); `model.step(ids, state)` gives (logits, state) for any number of new
    tokens, when the stack is causal. `use_abs_pos_emb=None` means learned positions unless the stack has relative
    ones; then `max_seq_len` limits the length. Embeddings put in front (`prepend_embeds`) carry no position.
    `return_only_embed` leaves the head out: the model then gives the stack's output (b, n, d), as an encoder does.
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
        return_only_embed: bool = False,
    ):
        super().__init__()
        if not isinstance(attn_layers, AttentionLayers):
            raise TypeError(
                f"attn_layers must be a stack such as Encoder(...) or Decoder(...), not {type(attn_layers).__name__}"
            )
        counts = {"num_tokens": num_tokens, "emb_dim": emb_dim, "logits_dim": logits_dim}
        for name, value in (counts | {"max_seq_len": max_seq_len or None}).items():
            if value is not None or name == "num_tokens":
                check_count(name, value)
        switches = {"scaled_sinu_pos_emb": scaled_sinu_pos_emb, "use_abs_pos_emb": use_abs_pos_emb or False}
        switches |= {"l2norm_embed": l2norm_embed, "post_emb_norm": post_emb_norm, "tie_embedding": tie_embedding}
        switches |= {"logits_bias": logits_bias, "return_only_embed": return_only_embed}
        for name, value in switches.items():
            check_switch(name, value)
        check_share("emb_dropout", emb_dropout)
        self.attn_layers = attn_layers
        self.num_tokens, self.dim = num_tokens, attn_layers.dim
        if num_memory_tokens is not None and num_memory_tokens != 0:
            check_count("num_memory_tokens", num_memory_tokens)
            attn_layers.set_memory_tokens(num_memory_tokens)
        width = emb_dim or self.dim
        self.token_emb = TokenEmbedding(num_tokens, width, l2norm_embed)
        self.max_seq_len = max_seq_len or None
        self.pos_emb = self.absolute(use_abs_pos_emb, scaled_sinu_pos_emb, width, l2norm_embed)
        self.post_emb_norm = LayerNorm(LayerNorm.Config(), width) if post_emb_norm else None
        self.emb_dropout = emb_dropout
        self.project_emb = projection(width, self.dim) if width != self.dim else None
        self.tie_embedding = tie_embedding
        if tie_embedding_scale is not None and not tie_embedding:
            raise ValueError(f"tie_embedding_scale={tie_embedding_scale} is set, but tie_embedding is False")
        self.tie_embedding_scale = 1.0 if tie_embedding_scale is None else tie_embedding_scale
        self.return_only_embed = return_only_embed
        self.to_logits = self.head(tie_embedding, logits_dim, logits_bias, width)

    def absolute(self, wanted: bool | None, sinusoidal: bool, width: int, l2norm: bool) -> nn.Module | None:
        """The absolute positions that the arguments ask for."""
        if sinusoidal:
            if wanted is False:
                raise ValueError("scaled_sinu_pos_emb=True contradicts use_abs_pos_emb=False")
            return ScaledSinusoidal(width)
        if not (not self.attn_layers.has_relative_positions if wanted is None else wanted):
            return None
        if self.max_seq_len is None:
            raise ValueError("learned absolute positions need max_seq_len; give it, or use_abs_pos_emb=False")
        return LearnedPositions(self.max_seq_len, width, l2norm)

    def head(self, tied: bool, logits_dim: int | None, bias: bool, width: int) -> nn.Linear | None:
        """The projection to logits; None when it is the token embedding itself, or there is none."""
        if self.return_only_embed:
            for name, clash in (("tie_embedding", tied), ("logits_dim", logits_dim is not None), ("logits_bias", bias)):
                if clash:
                    raise ValueError(f"return_only_embed=True leaves no head, so {name} cannot be set")
            return None
        if not tied:
            head = nn.Linear(self.dim, logits_dim or self.num_tokens, bias=bias)
            nn.init.normal_(head.weight, std=0.02)
            if bias:
                nn.init.zeros_(head.bias)
            return head
        for name, clash in (("logits_dim", logits_dim is not None), ("logits_bias", bias)):
            if clash:
                raise ValueError(f"tie_embedding=True uses the token embedding as the head, so {name} cannot be set")
        if width != self.dim:
            raise ValueError(f"tie_embedding=True needs emb_dim ({width}) to be the stack's dim ({self.dim})")
        return None

    @property
    def causal(self) -> bool:
        """Whether no token sees a later one, so that the model can be stepped."""
        return self.attn_layers.causal

    @property
    def length_limit(self) -> int | None:
        """The most tokens a row can have; None when any number is possible."""
        return self.max_seq_len if isinstance(self.pos_emb, LearnedPositions) else None

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
        attn_mask: Tensor | None = None,
        doc_ids: Int[Tensor, "b n"] | None = None,
        context: Float[Tensor, "b c _"] | None = None,
        context_mask: Tensor | None = None,
        context_pos: Tensor | None = None,
        prefix_attn_len: int | Tensor | None = None,
        return_embeddings: bool = False,
        return_logits_and_embeddings: bool = False,
        return_attn: bool = False,
    ) -> Any:
        """Logits (b, n, v), or (b, p + n, v) with `prepend_embeds` (b, p, d).

        mask (b, n): True = real token. `context` (b, c, width) is what cross_attn and cross_gau layers attend to, with
        `context_mask` (b, c) and, for rotary positions to count, `context_pos`. `return_embeddings` gives the stack's
        output instead, `return_logits_and_embeddings` both, `return_attn` (logits, attention matrices).
        `prefix_attn_len` (PrefixDecoder): how many of each row's first tokens, embeddings in front included, see each
        other.
        """
        mask = self.check_ids(x, mask)
        if doc_ids is not None:
            doc_ids = as_doc_ids(doc_ids, (x.shape[0], x.shape[1]))
        embedded, mask = self.embed(x, mask, None, prepend_embeds, prepend_mask, doc_ids)
        beside: dict[str, Any] = {"attn_mask": attn_mask, "doc_ids": doc_ids}
        beside |= {"context": context, "context_mask": context_mask, "context_pos": context_pos}
        beside |= {"prefix_attn_len": prefix_attn_len}
        maps = None
        if return_attn:
            y, maps = self.attn_layers.attention_maps(embedded, mask, **beside)
        else:
            y = self.attn_layers(embedded, mask, **beside)
        if return_logits_and_embeddings:
            out: Any = (self.logits(y), y)
        else:
            out = y if return_embeddings else self.logits(y)
        return (out, maps) if return_attn else out

    def step(
        self,
        x: Int[Tensor, "b n"],
        state: ModelState | None = None,
        mask: Tensor | None = None,
        *,
        prepend_embeds: Float[Tensor, "b p d"] | None = None,
        prepend_mask: Tensor | None = None,
        context: Float[Tensor, "b c _"] | None = None,
        context_mask: Tensor | None = None,
        context_pos: Tensor | None = None,
        prefix_attn_len: int | Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Float[Tensor, "b n v"], ModelState]:
        """Logits of any number of new tokens behind what `state` has seen, and the state with them.

        `mask` covers the new tokens only; rows may differ in length. A context is given in the first call, the state
        then holds it. `reset` (b,) names rows that start anew, with their context.
        """
        self.attn_layers.check_steppable()
        mask = self.check_ids(x, mask)
        reset = None if reset is None else as_rows("reset", reset, x.shape[0])
        if state is not None:
            if not isinstance(state, ModelState):
                raise TypeError(f"state must be what step() gave, a ModelState, not {type(state).__name__}")
            self.attn_layers.check_state(state.stack, x.shape[0])
            if reset is not None:
                state = self.reset(state, reset)
        embedded, full = self.embed(x, mask, state, prepend_embeds, prepend_mask, None)
        beside: dict[str, Any] = {"context": context, "context_mask": context_mask, "context_pos": context_pos}
        beside |= {"prefix_attn_len": prefix_attn_len}
        y, stack = self.attn_layers.step(embedded, None if state is None else state.stack, full, **beside)
        bound, length = (0, None) if state is None else (state.bound, state.length)
        if mask is not None:
            length = mask.sum(1) + (bound if length is None else length)
        elif length is not None:
            length = length + x.shape[1]
        return self.logits(y), ModelState(stack, bound + x.shape[1], length)

    def reset(self, state: ModelState, rows: Tensor) -> ModelState:
        """`state` with the rows where the boolean `rows` (b,) is True as fresh as before their first token."""
        stack = self.attn_layers.reset(state.stack, as_rows("reset", rows, stack_batch(state)))
        before = torch.full_like(rows, state.bound, dtype=torch.long) if state.length is None else state.length
        return ModelState(stack, state.bound, before.masked_fill(rows.bool(), 0))

    def check_ids(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """The mask as booleans; TypeError or ValueError for ids that cannot be looked up."""
        if not isinstance(x, torch.Tensor) or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(f"token ids must be an integer tensor (batch, tokens), not {given(x)}")
        if x.dim() != 2 or x.shape[1] < 1:
            raise ValueError(f"token ids must be (batch, tokens) with at least one token, not {tuple(x.shape)}")
        # Looking at values would make a GPU wait; there the embedding itself fails.
        if x.device.type == "cpu" and not torch.compiler.is_compiling() and x.numel():
            low, high = x.min().item(), x.max().item()
            if low < 0 or high >= self.num_tokens:
                raise ValueError(f"token ids must be from 0 to {self.num_tokens - 1}, but they go from {low} to {high}")
        return None if mask is None else as_mask(mask, (x.shape[0], x.shape[1]))

    def embed(self, x, mask, state, prefix, prefix_mask, doc_ids) -> tuple[Tensor, Tensor | None]:
        """Embedded tokens with their absolute positions, embeddings in front of them, and the mask of both."""
        y = self.token_emb(x)
        if self.pos_emb is not None:
            where = self.token_positions(x, mask, state, doc_ids)
            self.check_length(where, state, x.shape[1])
            y = y + self.pos_emb(where)
        if self.post_emb_norm is not None:
            y = self.post_emb_norm(y)
        if self.emb_dropout:
            y = F.dropout(y, self.emb_dropout, self.training)
        if self.project_emb is not None:
            y = self.project_emb(y)
        if prefix is None:
            if prefix_mask is not None:
                raise ValueError("prepend_mask is given without prepend_embeds")
            return y, mask
        if doc_ids is not None:
            raise ValueError(
                "doc_ids and prepend_embeds exclude each other: the embeddings would belong to no document"
            )
        if not isinstance(prefix, torch.Tensor) or not prefix.is_floating_point():
            expected = f"a floating-point tensor (batch, any number, {self.dim})"
            raise TypeError(f"prepend_embeds must be {expected}, not {given(prefix)}")
        if prefix.dim() != 3 or prefix.shape[0] != x.shape[0] or prefix.shape[2] != self.dim:
            raise ValueError(
                f"prepend_embeds must be ({x.shape[0]}, any number, {self.dim}), not {tuple(prefix.shape)}"
            )
        if mask is not None or prefix_mask is not None:
            mask = x.new_ones(x.shape, dtype=torch.bool) if mask is None else mask
            front = prefix.new_ones(prefix.shape[:2], dtype=torch.bool)
            front = front if prefix_mask is None else as_mask(prefix_mask, tuple(prefix.shape[:2]), "prepend_mask")
            mask = torch.cat((front, mask), 1)
        return torch.cat((prefix.to(y.dtype), y), 1), mask

    def token_positions(
        self, x: Tensor, mask: Tensor | None, state: ModelState | None, doc_ids: Tensor | None
    ) -> Tensor:
        """(1 | b, n) each token's absolute position: real tokens count from 0 in their row, or in their document."""
        where = torch.arange(x.shape[1], device=x.device)[None]
        if doc_ids is not None:
            if mask is None:
                return document_positions(doc_ids)
            plan = plan_rows(mask)
            return document_positions(doc_ids.gather(1, plan.order)).gather(1, plan.dest)
        if mask is not None:
            where = (mask.cumsum(1) - 1).clamp(min=0)
        if state is not None:
            where = where + (state.bound if state.length is None else state.length[:, None])
        return where

    def check_length(self, where: Tensor, state: ModelState | None, n: int) -> None:
        """ValueError when a row would grow beyond the learned positions."""
        limit, bound = self.length_limit, n + (0 if state is None else state.bound)
        if limit is None or bound <= limit:
            return
        # The bound counts masked tokens: only where it is exceeded are the positions themselves looked at.
        if where.shape[0] == 1 or torch.compiler.is_compiling() or int(where.max()) >= limit:
            raise ValueError(
                f"{bound} tokens are more than max_seq_len={limit}, the number of learned positions; give a larger "
                "max_seq_len, or relative positions such as rotary_pos_emb=True"
            )

    def logits(self, y: Float[Tensor, "b n d"]) -> Float[Tensor, "b n v"]:
        """The projection of the stack's output to the vocabulary; the output itself with `return_only_embed`."""
        if self.return_only_embed:
            return y
        if self.to_logits is not None:
            return self.to_logits(y)
        scale = self.tie_embedding_scale
        return F.linear(y if scale == 1 else y * scale, self.token_emb.weight)


def projection(width: int, dim: int) -> nn.Linear:
    """The map from the embedding's width to the stack's; its bias starts at zero."""
    linear = nn.Linear(width, dim)
    nn.init.zeros_(linear.bias)
    return linear


def stack_batch(state: ModelState) -> int:
    """The number of rows a state has."""
    held = tensors(state.stack)
    return held[0].shape[0] if held else 1
