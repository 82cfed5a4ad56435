"""`QKNorm`: what is done to queries and keys before they meet, and what their scores are multiplied by."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from ...base.frozen import frozen
from ...base.shapes import Float, Tensor
from ...flags.flag import check_idle, flag
from ..kernels.softmax import unit
from ..norms import rms_normed
from ..scores.read import ReadFlags
from .reading import Reading

__all__ = ["QKFlags", "QKNorm"]


@frozen
class QKFlags(ReadFlags):
    """The flags of scores: how queries and keys are normed, and by what their products are multiplied."""

    score_scale: float | None = flag(
        None,
        "what scores are multiplied by (None: dim_head ** -0.5)",
        above=0,
        paper="https://arxiv.org/abs/1910.10683",
        tried=(1.0,),
    )
    qk_norm: bool = flag(
        False,
        "queries and keys l2-normalised, without gains",
        paper="https://arxiv.org/abs/2010.04245",
        tried=(True,),
    )
    qk_norm_groups: int = flag(
        1,
        "groups of channels that qk_norm normalises each for itself",
        at_least=1,
        tried=({"qk_norm_groups": 2, "qk_norm": True, "qk_norm_scale": 4.0},),
    )
    qk_norm_scale: float = flag(10.0, "what qk_norm multiplies the scores by", above=0, tried="with groups of qk_norm")
    qk_norm_dim_scale: bool = flag(
        False,
        "learned scales per head and channel instead of qk_norm_scale",
        paper="https://arxiv.org/abs/2302.05442",
        tried=({"qk_norm_dim_scale": True, "qk_norm": True},),
    )
    qk_rmsnorm: Literal["head", "width"] | None = flag(
        None,
        "queries and keys of mean square one times learned gains: each head, the gains shared (Qwen3), or all heads "
        "as one vector (OLMo 2)",
        paper="https://arxiv.org/abs/2501.00656",
        tried=("head", {"qk_rmsnorm": "width", "qk_rmsnorm_eps": 1e-3, "qk_rmsnorm_unit_offset": True}),
    )
    qk_rmsnorm_eps: float = flag(
        1e-6, "added to the mean square before the root", above=0, tried="qk_rmsnorm has it beside it"
    )
    qk_rmsnorm_unit_offset: bool = flag(
        False,
        "these gains are 1 + what is learned (Gemma 3)",
        paper="https://arxiv.org/abs/2503.19786",
        tried="qk_rmsnorm has it beside it",
    )


# Flags that say how, and the one that has to be set for them.
DETAILS = {
    "qk_norm": ("qk_norm_groups", "qk_norm_scale", "qk_norm_dim_scale"),
    "qk_rmsnorm": ("qk_rmsnorm_eps", "qk_rmsnorm_unit_offset"),
}


class QKNorm(Reading):
    """Base of the blocks whose queries and keys may be normed, `heads` and `kv_heads` of them.

    `q_gain` and `k_gain` are there where gains are learned.
    """

    heads: int
    kv_heads: int

    def build_qk_norm(self, config: QKFlags, width: int) -> float:
        """What scores are multiplied by; width: of a head.  ValueError for flags that contradict each other."""
        self.check_qk_norm(config, width)
        plain = width**-0.5 if config.score_scale is None else config.score_scale
        if config.qk_rmsnorm is not None:
            counts = (1, 1) if config.qk_rmsnorm == "head" else (self.heads, self.kv_heads)
            self.gains_of([(heads * width,) for heads in counts], 0.0 if config.qk_rmsnorm_unit_offset else 1.0)
        if config.qk_norm_dim_scale:
            self.gains_of([(heads, 1, width) for heads in (self.heads, self.kv_heads)], width**0.25)
        return config.qk_norm_scale if config.qk_norm and not config.qk_norm_dim_scale else plain

    def gains_of(self, shapes: Sequence[tuple[int, ...]], start: float) -> None:
        """Learned gains of these shapes for queries and for keys."""
        self.q_gain, self.k_gain = (nn.Parameter(torch.full(shape, start)) for shape in shapes)

    def check_qk_norm(self, config: QKFlags, width: int) -> None:
        """ValueError for flags of which one has no effect, or that contradict each other."""
        kind, defaults = self.kind, QKFlags.__dataclass_fields__
        for asked, details in DETAILS.items():
            if not (said := getattr(config, asked)):
                check_idle(config, details, f"{kind}_{asked} is {said}", f"{kind}_")
        if not config.qk_norm:
            return
        if config.qk_rmsnorm is not None:
            raise ValueError(
                f"{kind}_qk_norm=True and {kind}_qk_rmsnorm={config.qk_rmsnorm!r} are two norms of the same queries "
                "and keys: leave out one of them"
            )
        if width % config.qk_norm_groups or width // config.qk_norm_groups < 3:
            raise ValueError(
                f"{kind}_qk_norm_groups={config.qk_norm_groups} must cut {kind}_dim_head={width} "
                "into equal groups of 3 channels or more"
            )
        scale = config.qk_norm_scale
        if config.qk_norm_dim_scale and scale != defaults["qk_norm_scale"].default:
            raise ValueError(
                f"{kind}_qk_norm_scale={scale} is set, but {kind}_qk_norm_dim_scale=True learns scales in its stead"
            )
        if config.score_scale is not None and not config.qk_norm_dim_scale:
            raise ValueError(
                f"{kind}_score_scale={config.score_scale} is set, but {kind}_qk_norm=True multiplies scores by "
                f"{kind}_qk_norm_scale={scale}"
            )

    def normed(
        self, t: Float[Tensor, "b *h n k"], *roles: Literal["q", "k"], some: slice = slice(None)
    ) -> Float[Tensor, "b *h n k"]:
        """`t` normed as the flags ask for: heads of one role, of which there may be `some` only, or groups of both."""
        if self.config.qk_norm:
            return self.cosine(t, *roles, some=some)
        if self.config.qk_rmsnorm is None:
            return t
        if len(roles) == 1:
            return self.rms(t, *roles)
        parts = zip(t.split((t.shape[2] - 1, 1), 2), roles, strict=True)
        return torch.cat([self.rms(part, role) for part, role in parts], 2)

    def cosine(
        self, t: Float[Tensor, "b *h n k"], *roles: Literal["q", "k"], some: slice = slice(None)
    ) -> Float[Tensor, "b *h n k"]:
        """`t` l2-normalised, and scaled per channel where that is learned."""
        t = unit(t.unflatten(-1, (self.config.qk_norm_groups, -1))).flatten(-2)
        if not self.config.qk_norm_dim_scale:
            return t
        gains = [getattr(self, f"{role}_gain")[some] for role in roles]
        if len(gains) > 1:
            gains = [torch.cat([gain.unflatten(0, (self.kv_heads, -1)) for gain in gains], 1)]
        return t * gains[0].to(t.dtype)

    def rms(self, t: Float[Tensor, "b *h n k"], role: Literal["q", "k"]) -> Float[Tensor, "b *h n k"]:
        """`t` with mean square one, each head or all of a token's heads together, times the gains."""
        gain, config = getattr(self, f"{role}_gain"), self.config
        if config.qk_rmsnorm == "head":
            return rms_normed(t, gain, config.qk_rmsnorm_eps, config.qk_rmsnorm_unit_offset)
        tokens = t.movedim(-2, 1)
        wide = rms_normed(tokens.flatten(2), gain, config.qk_rmsnorm_eps, config.qk_rmsnorm_unit_offset)
        return wide.view(tokens.shape).movedim(1, -2)
