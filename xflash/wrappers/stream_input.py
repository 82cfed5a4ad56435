"""`StreamInput`: positions, norm, dropout and width of what a model embeds, and embeddings put in front of it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..base.checks import as_mask, check_dtype, given
from ..base.frozen import frozen
from ..base.looks import has_values, within
from ..base.shapes import Bool, Float, Int, Integer, Tensor, typed
from ..base.state import document_positions
from ..flags.flag import check_idle, flag
from ..layers.embeddings import LearnedPositions, ScaledSinusoidal
from ..layers.norms import LayerNorm
from ..stack.door import plan_rows

__all__ = ["StreamInput", "absolute_positions"]


TOO_LONG = (
    "tokens are more than max_seq_len={count}, the number of learned positions; give a larger max_seq_len, or relative "
    "positions such as pos='rotary'"
)


class StreamInput(nn.Module):
    """What all inputs of tokens that come one after the other have, whatever a token is.

    `dim` is the width of the stream; `relative`: whether its stack has positions already. `past` and `length` say how
    many tokens the rows have seen before a call: all of them `past`, or each its `length` (b,), of which `past` is a
    bound.
    """

    @frozen
    class Config:
        max_seq_len: int | None = flag(
            None,
            "the most tokens of a row where positions are learned; a segment's length in trainers",
            at_least=0,
            tried="every combination has its own",
        )
        emb_dim: int | None = flag(
            None, "width of the embeddings, mapped to the stack's (None: its dim)", at_least=1, tried=(20,)
        )
        emb_proj_bias: bool = flag(True, "an offset of that map", tried=({"emb_proj_bias": False, "emb_dim": 20},))
        use_abs_pos_emb: bool | None = flag(
            None, "learned positions (None: unless the stack has relative ones)", tried=(True, False)
        )
        scaled_sinu_pos_emb: bool = flag(
            False, "sines and cosines of the position, with a learned scale, instead of learned positions",
            paper="https://arxiv.org/abs/2202.10447", tried=(True,),
        )  # fmt: skip
        post_emb_norm: bool = flag(
            False,
            "a LayerNorm behind the sum of the embeddings",
            paper="https://arxiv.org/abs/2211.05100",
            tried=(True,),
        )
        post_emb_norm_eps: float = flag(
            1e-5,
            "added to the variance in that LayerNorm",
            above=0,
            tried=({"post_emb_norm_eps": 1e-3, "post_emb_norm": True},),
        )
        post_emb_norm_bias: bool = flag(
            False,
            "a learned offset beside the gain of that LayerNorm",
            tried=({"post_emb_norm_bias": True, "post_emb_norm": True},),
        )
        pos_emb_offset: int = flag(
            0, "learned positions in front of the first token's, which no token has (RoBERTa, OPT, BART: 2)",
            at_least=0, paper="https://arxiv.org/abs/1907.11692", tried=(2,),
        )  # fmt: skip
        emb_dropout: float = flag(0.0, "dropout of that sum", at_least=0, below=1, tried=(0.1,))

    pos_emb: nn.Module | None
    # Whether positions are added behind the map to the stack's width, in front of which they are as wide as embeddings.
    pos_emb_at_dim: bool = False

    def __init__(self, config: Config, dim: int):
        super().__init__()
        self.dim, self.width, self.emb_dropout = dim, config.emb_dim or dim, config.emb_dropout
        if self.width == dim:
            check_idle(config, ("emb_proj_bias",), f"the embeddings are as wide as the stack ({dim})")

    def surround(self, config: Config) -> None:
        """Adds what stands behind the sum of a token's embeddings."""
        self.post_emb_norm = norm_behind(config, self.width)
        self.project_emb = projection(self.width, self.dim, config.emb_proj_bias) if self.width != self.dim else None

    @property
    def length_limit(self) -> int | None:
        """The most tokens a row can have; None when any number is possible."""
        return self.pos_emb.max_seq_len if isinstance(self.pos_emb, LearnedPositions) else None

    def check_given(self, x: Tensor, own: Any) -> None:
        """TypeError or ValueError for what calls give each token beside x, where it does not fit x."""

    @typed
    def forward(
        self,
        x: Any,
        mask: Bool[Tensor, "b n"] | None = None,
        *,
        past: int = 0,
        length: Int[Tensor, " b"] | None = None,
        doc_ids: Integer[Tensor, "b n"] | None = None,
        prepend_embeds: Any = None,
        prepend_mask: Any = None,
        **own: Any,
    ) -> tuple[Float[Tensor, "b m d"], Tensor | None]:
        """Embedded tokens behind the embeddings in front of them (b, p, d), and the mask of both.

        own: what each token is given beside it, which is checked here, in sentences of its own.
        """
        y = self.embedded(x, mask, **own)
        positions, late = self.positions_of(y, mask, past, length, doc_ids), self.pos_emb_at_dim
        y = y if positions is None or late else y + positions
        y = self.further(y, x, **own)
        return self.finished(y, mask, doc_ids, prepend_embeds, prepend_mask, positions if late else None)

    def embedded(self, x: Any, mask: Tensor | None, **own: Any) -> Float[Tensor, "b n d"]:
        """The embeddings of the tokens themselves."""
        raise NotImplementedError

    def further(self, y: Float[Tensor, "b n d"], x: Any, **own: Any) -> Float[Tensor, "b n d"]:
        """What is added to the embeddings y of tokens x, and of their positions."""
        return y

    def positions_of(
        self,
        y: Float[Tensor, "b n d"],
        mask: Tensor | None,
        past: int,
        length: Int[Tensor, " b"] | None,
        doc_ids: Tensor | None,
    ) -> Float[Tensor, "_ n _"] | None:
        """The absolute positions of embedded tokens; None where there are none."""
        if self.pos_emb is None:
            return None
        return self.pos_emb(self.in_length(y, token_positions(y, mask, past, length, doc_ids), past))

    def finished(
        self,
        y: Float[Tensor, "b n d"],
        mask: Tensor | None,
        doc_ids: Tensor | None,
        prepend_embeds: Any,
        prepend_mask: Any,
        positions: Float[Tensor, "_ n _"] | None = None,
    ) -> tuple[Float[Tensor, "b m d"], Tensor | None]:
        """The sum of a token's embeddings as the stack gets it, behind the embeddings in front, and the mask of both.

        What is put in front is checked here, in sentences of its own. positions: what is added at the stack's width.
        """
        if self.post_emb_norm is not None:
            y = self.post_emb_norm(y)
        if self.emb_dropout:
            y = F.dropout(y, self.emb_dropout, self.training)
        if self.project_emb is not None:
            y = self.project_emb(y)
        if positions is not None:
            y = y + positions
        if prepend_embeds is not None:
            if doc_ids is not None:
                raise ValueError(
                    "doc_ids and prepend_embeds exclude each other: the embeddings would belong to no document"
                )
            return self.behind(y, mask, prepend_embeds, prepend_mask)
        if prepend_mask is not None:
            raise ValueError("prepend_mask is given without prepend_embeds")
        return y, mask

    def behind(self, x: Tensor, mask: Tensor | None, prefix: Tensor, prefix_mask: Tensor | None):
        """The embeddings `prefix` and x behind them, and the mask of both."""
        if not isinstance(prefix, torch.Tensor) or not prefix.is_floating_point():
            expected = f"a floating-point tensor (batch, any number, {self.dim})"
            raise TypeError(f"prepend_embeds must be {expected}, not {given(prefix)}")
        if prefix.dim() != 3 or prefix.shape[0] != x.shape[0] or prefix.shape[2] != self.dim:
            raise ValueError(
                f"prepend_embeds must be ({x.shape[0]}, any number, {self.dim}), not {tuple(prefix.shape)}"
            )
        if torch.promote_types(prefix.dtype, x.dtype) != x.dtype:
            check_dtype("prepend_embeds are", "prepend_embeds", prefix.dtype, x.dtype)
        if mask is not None or prefix_mask is not None:
            mask = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
            front = prefix.new_ones(prefix.shape[:2], dtype=torch.bool)
            front = front if prefix_mask is None else as_mask(prefix_mask, tuple(prefix.shape[:2]), "prepend_mask")
            mask = torch.cat((front, mask), 1)
        return torch.cat((prefix.to(x.dtype), x), 1), mask

    def in_length(self, x: Tensor, where: Tensor, past: int) -> Int[Tensor, "_ n"]:
        """Where the tokens stand; ValueError when a row would grow beyond the learned positions."""
        limit, bound = self.length_limit, x.shape[1] + past
        # The bound counts masked tokens: only where it is exceeded are the positions themselves looked at.
        if limit is None or bound <= limit or not where.shape[0]:
            return where
        graph = torch.compiler.is_compiling() and where.device.type == "cpu"
        if where.shape[0] > 1 and graph:
            return within(where, 0, limit - 1, "{past} " + TOO_LONG)
        if where.shape[0] == 1 or not has_values(where) or int(where.max()) >= limit:
            raise ValueError(f"{bound} {TOO_LONG.format(count=limit)}")
        return where


def norm_behind(config: Any, width: int) -> LayerNorm | None:
    """The LayerNorm behind the embeddings; ValueError for its flags where there is none."""
    if config.post_emb_norm:
        return LayerNorm.of(width, eps=config.post_emb_norm_eps, bias=config.post_emb_norm_bias)
    check_idle(config, ("post_emb_norm_eps", "post_emb_norm_bias"), "post_emb_norm is False")
    return None


def absolute_positions(
    config: StreamInput.Config, width: int, relative: bool, l2norm: bool = False
) -> nn.Module | None:
    """The absolute positions that flags ask for; ValueError where they contradict each other."""
    learned = not relative if config.use_abs_pos_emb is None else config.use_abs_pos_emb
    if config.pos_emb_offset and (config.scaled_sinu_pos_emb or not learned):
        raise ValueError(f"pos_emb_offset={config.pos_emb_offset} is set, but no positions are learned")
    if config.scaled_sinu_pos_emb:
        if config.use_abs_pos_emb is False:
            raise ValueError("scaled_sinu_pos_emb=True contradicts use_abs_pos_emb=False")
        return ScaledSinusoidal(width)
    if not learned:
        return None
    if not config.max_seq_len:
        raise ValueError("learned absolute positions need max_seq_len; give it, or use_abs_pos_emb=False")
    return LearnedPositions(config.max_seq_len, width, l2norm, config.pos_emb_offset)


def token_positions(
    x: Tensor, mask: Tensor | None, past: int, length: Tensor | None, doc_ids: Tensor | None
) -> Int[Tensor, "_ n"]:
    """(1 | b, n) each token's absolute position: real tokens count from 0 in their row, or in their document."""
    where = torch.arange(x.shape[1], device=x.device)[None]
    if doc_ids is not None:
        if mask is None:
            return document_positions(doc_ids)
        plan = plan_rows(mask)
        return document_positions(doc_ids.gather(1, plan.order)).gather(1, plan.dest)
    if mask is not None:
        where = (mask.cumsum(1) - 1).clamp(min=0)
    return where + (past if length is None else length[:, None])


def projection(width: int, dim: int, bias: bool) -> nn.Linear:
    """The map from the embedding's width to the stack's; its bias starts at zero."""
    linear = nn.Linear(width, dim, bias=bias)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
