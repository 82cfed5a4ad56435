"""`InputEmbedding`: what turns token ids into the stream that a stack reads."""

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from ..base.checks import as_mask, check_count, given, is_integral, widened
from ..base.frozen import frozen
from ..base.looks import within
from ..base.registry import nearest
from ..base.shapes import Bool, Float, Int, Integer, Tensor, typed
from ..flags.flag import check_idle, flag
from ..layers.embeddings import TokenEmbedding
from .own_module import OwnModule, embeddings_of
from .stream_input import StreamInput, absolute_positions

__all__ = ["InputEmbedding"]


def check_embed_num_tokens(counts: Mapping[str, int] | None, flag: str = "embed_num_tokens") -> dict[str, int]:
    """The numbers of a flag as a dict; TypeError or ValueError unless it maps names to whole numbers of 1 or more."""
    for name, count in (counts or {}).items():
        if not isinstance(name, str):
            raise TypeError(f"{flag} must map names to numbers, but {name!r} is no name")
        if not name or "." in name:
            raise ValueError(f"{flag} has the name {name!r}: weights are named after it, so it needs letters")
        check_count(f"{flag}[{name!r}]", count)
    return dict(counts or {})


@frozen
class Vocabulary:
    """What models of token ids are told first."""

    num_tokens: int = flag(
        doc="token ids that there are: 0 to num_tokens - 1", at_least=1, tried="every combination has its own"
    )


class InputEmbedding(StreamInput):
    """Token embeddings with absolute positions, norm, dropout and projection, and embeddings put in front of them."""

    @frozen
    class Config(StreamInput.Config, Vocabulary):
        l2norm_embed: bool = flag(
            False,
            "embeddings of tokens and positions of length one, started small",
            paper="https://arxiv.org/abs/1910.05895",
            tried=(True,),
        )
        emb_scale: float | None = flag(
            None, "what token embeddings are multiplied by (None: 1)", above=0,
            paper="https://arxiv.org/abs/1706.03762", tried=(3.0,),
        )  # fmt: skip
        token_emb: OwnModule | None = flag(
            None, "a module of one's own from ids (b, n) to embeddings (b, n, emb_dim), each token for itself",
            tried="what it does is its own affair",
        )  # fmt: skip
        pos_emb_at_dim: bool = flag(
            False, "absolute positions of the stack's width, added behind the map from the embeddings' (OPT-350m)",
            paper="https://arxiv.org/abs/2205.01068",
            tried=({"pos_emb_at_dim": True, "emb_dim": 20, "use_abs_pos_emb": True},),
        )  # fmt: skip
        embed_num_tokens: Mapping[str, int] | None = flag(
            None, "further embeddings that are added, as many ids of each name: {'segment': 2}",
            paper="https://arxiv.org/abs/1810.04805", tried=({"embed_num_tokens": {"segment": 2, "type": 5}},),
        )  # fmt: skip

    token_emb: Any

    def __init__(self, config: Config, dim: int, relative: bool = False):
        super().__init__(config, dim)
        self.num_tokens, self.emb_scale = config.num_tokens, config.emb_scale
        self.token_emb = self.table_of(config)
        if self.width == dim:
            check_idle(config, ("pos_emb_at_dim",), f"the embeddings are as wide as the stack ({dim})")
        self.pos_emb_at_dim = config.pos_emb_at_dim
        width = dim if config.pos_emb_at_dim else self.width
        self.pos_emb = absolute_positions(config, width, relative, config.l2norm_embed)
        if config.pos_emb_at_dim and self.pos_emb is None:
            raise ValueError("pos_emb_at_dim=True is set, but there are no absolute positions")
        self.embed_num_tokens = check_embed_num_tokens(config.embed_num_tokens)
        # A ModuleDict has methods, and a name such as 'type' would be one of them.
        self.embeds = nn.ModuleDict(
            {f"{name}_embed": TokenEmbedding(count, self.width) for name, count in self.embed_num_tokens.items()}
        )
        self.surround(config)

    def table_of(self, config: Config) -> nn.Module:
        """What embeds tokens; ValueError where it would be of length one, but is one's own."""
        if config.token_emb is None:
            return TokenEmbedding(config.num_tokens, self.width, config.l2norm_embed)
        check_idle(config, ("l2norm_embed",), "token_emb is one's own")
        return cast(nn.Module, config.token_emb)

    @typed
    def embedded(self, x: Integer[Tensor, "b n"], mask: Tensor | None, embed_ids: Any = None) -> Float[Tensor, "b n d"]:
        table = self.token_emb
        y = table(x) if isinstance(table, TokenEmbedding) else embeddings_of(table, x, self.width)
        return y if self.emb_scale is None else y * self.emb_scale

    def further(
        self, y: Float[Tensor, "b n d"], x: Tensor, embed_ids: Any = None, **own: Any
    ) -> Float[Tensor, "b n d"]:
        for name, ids in self.check_embed_ids(x, embed_ids).items():
            y = y + self.embeds[f"{name}_embed"](ids)
        return y

    def check(self, x: Tensor, mask: Tensor | None) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"] | None]:
        """The ids, and the mask as booleans; TypeError or ValueError for ids that cannot be looked up."""
        check_integers("token ids", x)
        if x.dim() != 2 or x.shape[1] < 1:
            raise ValueError(f"token ids must be (batch, tokens) with at least one token, not {tuple(x.shape)}")
        x = in_range("token ids", x, self.num_tokens)
        return x, None if mask is None else as_mask(mask, (x.shape[0], x.shape[1]))

    def check_given(self, x: Tensor, own: Mapping[str, Any]) -> None:
        self.check_embed_ids(x, own["embed_ids"])

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


def check_integers(name: str, x: Any) -> None:
    """TypeError for anything but a tensor of integers."""
    if not is_integral(x):
        raise TypeError(f"{name} must be an integer tensor (batch, tokens), not {given(x)}")


def in_range(name: str, x: Tensor, count: int) -> Tensor:
    """The ids; ValueError for some outside 0 to count - 1 (elsewhere than on a CPU the embedding itself fails)."""
    sentence = "{name} must be from 0 to {high}, but they go from {least} to {most}"
    return within(widened(x), 0, count - 1, sentence, name)
