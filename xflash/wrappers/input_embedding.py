"""`InputEmbedding`: what turns token ids into the stream that a stack reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..base.checks import as_mask, check_count, check_dtype, given, is_integral, widened
from ..base.looks import has_values, within
from ..base.registry import nearest
from ..base.shapes import Bool, Float, Int, Integer, Tensor, typed
from ..base.state import document_positions
from ..flags.flag import check_idle, flag
from ..layers.embeddings import LearnedPositions, ScaledSinusoidal, TokenEmbedding
from ..layers.norms import LayerNorm
from ..stack.door import plan_rows

__all__ = ["InputEmbedding"]


def check_embed_num_tokens(counts: Mapping[str, int] | None) -> dict[str, int]:
    """`embed_num_tokens` as a dict; TypeError or ValueError unless it maps names to whole numbers of 1 or more."""
    for name, count in (counts or {}).items():
        if not isinstance(name, str):
            raise TypeError(f"embed_num_tokens must map names to numbers, but {name!r} is no name")
        if not name or "." in name:
            raise ValueError(f"embed_num_tokens has the name {name!r}: weights are named after it, so it needs letters")
        check_count(f"embed_num_tokens[{name!r}]", count)
    return dict(counts or {})


TOO_LONG = (
    "tokens are more than max_seq_len={count}, the number of learned positions; give a larger max_seq_len, or relative "
    "positions such as pos='rotary'"
)


class InputEmbedding(nn.Module):
    """Token embeddings with absolute positions, norm, dropout and projection, and embeddings put in front of them.

    `dim` is the width of the stream; `relative`: whether its stack has positions already. `past` and `length` say how
    many tokens the rows have seen before a call: all of them `past`, or each its `length` (b,), of which `past` is a
    bound.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        num_tokens: int = flag(
            doc="token ids that there are: 0 to num_tokens - 1", at_least=1, tried="every combination has its own"
        )
        max_seq_len: int | None = flag(
            None, "the most tokens of a row where positions are learned; a segment's length in trainers", at_least=0,
            tried="every combination has its own",
        )  # fmt: skip
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
        l2norm_embed: bool = flag(
            False, "embeddings of tokens and positions of length one, started small",
            paper="https://arxiv.org/abs/1910.05895", tried=(True,),
        )  # fmt: skip
        post_emb_norm: bool = flag(
            False, "a LayerNorm behind the sum of the embeddings",
            paper="https://arxiv.org/abs/2211.05100", tried=(True,),
        )  # fmt: skip
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
        emb_scale: float | None = flag(
            None, "what token embeddings are multiplied by (None: 1)", above=0,
            paper="https://arxiv.org/abs/1706.03762", tried=(3.0,),
        )  # fmt: skip
        pos_emb_offset: int = flag(
            0, "learned positions in front of the first token's, which no token has (RoBERTa, OPT, BART: 2)",
            at_least=0, paper="https://arxiv.org/abs/1907.11692", tried=(2,),
        )  # fmt: skip
        pos_emb_at_dim: bool = flag(
            False, "absolute positions of the stack's width, added behind the map from the embeddings' (OPT-350m)",
            paper="https://arxiv.org/abs/2205.01068",
            tried=({"pos_emb_at_dim": True, "emb_dim": 20, "use_abs_pos_emb": True},),
        )  # fmt: skip
        emb_dropout: float = flag(0.0, "dropout of that sum", at_least=0, below=1, tried=(0.1,))
        embed_num_tokens: Mapping[str, int] | None = flag(
            None, "further embeddings that are added, as many ids of each name: {'segment': 2}",
            paper="https://arxiv.org/abs/1810.04805", tried=({"embed_num_tokens": {"segment": 2, "type": 5}},),
        )  # fmt: skip

    def __init__(self, config: Config, dim: int, relative: bool = False):
        super().__init__()
        width = config.emb_dim or dim
        self.num_tokens, self.dim = config.num_tokens, dim
        self.token_emb = TokenEmbedding(config.num_tokens, width, config.l2norm_embed)
        if width == dim:
            check_idle(config, ("emb_proj_bias", "pos_emb_at_dim"), f"the embeddings are as wide as the stack ({dim})")
        self.pos_emb_at_dim = config.pos_emb_at_dim
        self.pos_emb = absolute_positions(config, dim if config.pos_emb_at_dim else width, relative)
        self.embed_num_tokens = check_embed_num_tokens(config.embed_num_tokens)
        # A ModuleDict has methods, and a name such as 'type' would be one of them.
        self.embeds = nn.ModuleDict(
            {f"{name}_embed": TokenEmbedding(count, width) for name, count in self.embed_num_tokens.items()}
        )
        self.post_emb_norm = norm_behind(config, width)
        self.emb_scale = config.emb_scale
        self.emb_dropout = config.emb_dropout
        self.project_emb = projection(width, dim, config.emb_proj_bias) if width != dim else None

    @property
    def length_limit(self) -> int | None:
        """The most tokens a row can have; None when any number is possible."""
        return self.pos_emb.max_seq_len if isinstance(self.pos_emb, LearnedPositions) else None

    @typed
    def forward(
        self,
        x: Integer[Tensor, "b n"],
        mask: Tensor | None = None,
        *,
        past: int = 0,
        length: Int[Tensor, " b"] | None = None,
        doc_ids: Integer[Tensor, "b n"] | None = None,
        prepend_embeds: Any = None,
        prepend_mask: Any = None,
        embed_ids: Any = None,
    ) -> tuple[Float[Tensor, "b m d"], Tensor | None]:
        """Embedded tokens behind the embeddings in front of them (b, p, d), and the mask of both.

        What is put in front or added (`embed_ids`: (b, n) by name) is checked here, in sentences of its own.
        """
        y = self.token_emb(x)
        if self.emb_scale is not None:
            y = y * self.emb_scale
        if self.pos_emb is not None:
            placed = self.pos_emb(self.in_length(x, token_positions(x, mask, past, length, doc_ids), past))
            y = y if self.pos_emb_at_dim else y + placed
        for name, ids in self.check_embed_ids(x, embed_ids).items():
            y = y + self.embeds[f"{name}_embed"](ids)
        if self.post_emb_norm is not None:
            y = self.post_emb_norm(y)
        if self.emb_dropout:
            y = F.dropout(y, self.emb_dropout, self.training)
        if self.project_emb is not None:
            y = self.project_emb(y)
        if self.pos_emb_at_dim:
            y = y + placed
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

    def check_ids(self, x: Tensor, mask: Tensor | None) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"] | None]:
        """The ids, and the mask as booleans; TypeError or ValueError for ids that cannot be looked up."""
        check_integers("token ids", x)
        if x.dim() != 2 or x.shape[1] < 1:
            raise ValueError(f"token ids must be (batch, tokens) with at least one token, not {tuple(x.shape)}")
        x = in_range("token ids", x, self.num_tokens)
        return x, None if mask is None else as_mask(mask, (x.shape[0], x.shape[1]))

    def check_embed_ids(self, x: Tensor, embed_ids: Any) -> dict[str, Tensor]:
        """The ids of the further embeddings, in the order these were given in; TypeError or ValueError otherwise."""
        if embed_ids is None:
            embed_ids = {}
        if not isinstance(embed_ids, Mapping):
            raise TypeError(f"embed_ids must map names to ids, such as {{'segment': ids}}, not {given(embed_ids)}")
        known = ", ".join(map(repr, self.embed_num_tokens))
        checked = {}
        for name, ids in embed_ids.items():
            if not known:
                raise ValueError(f"embed_ids has {name!r}, but the model was built without embed_num_tokens")
            if name not in self.embed_num_tokens:
                near = nearest(name, self.embed_num_tokens)
                raise ValueError(f"embed_ids has {name!r}, but embed_num_tokens has {known}{near}")
            check_integers(f"embed_ids[{name!r}]", ids)
            if ids.shape != x.shape:
                raise ValueError(
                    f"embed_ids[{name!r}] has shape {tuple(ids.shape)}, but the token ids have {tuple(x.shape)}"
                )
            checked[name] = in_range(f"embed_ids[{name!r}]", ids, self.embed_num_tokens[name])
        missing = [name for name in self.embed_num_tokens if name not in embed_ids]
        if missing:
            raise ValueError(
                f"embed_ids has no {missing[0]!r}: every call gives ids for all of embed_num_tokens ({known})"
            )
        return {name: checked[name] for name in self.embed_num_tokens}

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


def absolute_positions(config: InputEmbedding.Config, width: int, relative: bool) -> nn.Module | None:
    """The absolute positions that flags ask for; ValueError where they contradict each other."""
    learned = not relative if config.use_abs_pos_emb is None else config.use_abs_pos_emb
    if config.pos_emb_at_dim and not (config.scaled_sinu_pos_emb or learned):
        raise ValueError("pos_emb_at_dim=True is set, but there are no absolute positions")
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
    return LearnedPositions(config.max_seq_len, width, config.l2norm_embed, config.pos_emb_offset)


def check_integers(name: str, x: Any) -> None:
    """TypeError for anything but a tensor of integers."""
    if not is_integral(x):
        raise TypeError(f"{name} must be an integer tensor (batch, tokens), not {given(x)}")


def in_range(name: str, x: Tensor, count: int) -> Tensor:
    """The ids; ValueError for some outside 0 to count - 1 (elsewhere than on a CPU the embedding itself fails)."""
    sentence = "{name} must be from 0 to {high}, but they go from {least} to {most}"
    return within(widened(x), 0, count - 1, sentence, name)


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
