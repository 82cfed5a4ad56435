"""`GatedUnit`: what the gated attention unit among tokens (`gau`) and over a context (`cross_gau`) have in common."""

import math
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from torch import nn

from ...base.frozen import frozen
from ...base.shapes import Float, Int, Tensor
from ...base.state import AttentionMap
from ...flags.flag import flag
from ..kernels.gated import gated_attention, gated_weights
from ..site import MOST, Site
from .block import Block

__all__ = ["GatedUnit"]

# softmax_plus leaves its scores alone at this many keys; with fewer than the least they are treated as that many.
PLUS_LENGTH, PLUS_LEAST = 512, 16


class GatedUnit(Block):
    """The weights, normalisers and scales of a gated attention unit; `kind` is the name the block is registered by."""

    kind: ClassVar[str]

    @frozen
    class Config:
        query_key_dim: int = flag(
            128,
            "width of the shared projection that queries and keys come from",
            at_least=1,
            paper="https://arxiv.org/abs/2202.10447",
            tried=(12,),
        )
        expansion_factor: float = flag(
            2.0,
            "width of values and gate, times the model's",
            above=0,
            at_most=MOST,
            paper="https://arxiv.org/abs/2202.10447",
            tried=(1.5,),
        )
        heads: int = flag(
            1, "heads that share query_key_dim and the values' width between them", at_least=1, tried=(2,)
        )
        attn_fn: Literal["relu2", "laplace", "softmax", "softmax_plus"] = flag(
            "relu2",
            "scores to weights; softmax_plus sharpens its scores by log(keys seen) / log(512)",
            paper="https://arxiv.org/abs/2209.10655",
            tried=("laplace", "softmax", "softmax_plus"),
        )
        normaliser: Literal["row_index", "fixed", "row_sum", "none", "padded_length"] | None = flag(
            None,
            "divides relu2 and laplace: by keys seen, a fixed length, the row's sum, nothing, or (peers) the tensor's "
            "length (None: row_index)",
            tried=(
                {"normaliser": "row_sum", "attn_fn": "laplace"},
                {"normaliser": "none", "attn_fn": "relu2"},
                {"normaliser": "padded_length", "attn_fn": "relu2"},
            ),
        )
        normaliser_place: Literal["outside", "inside", "content"] | None = flag(
            None,
            "f(qk + bias) / n, f((qk + bias) / n) or f(qk / n + bias) (None: outside)",
            tried=(
                {"normaliser_place": "inside", "attn_fn": "relu2"},
                {"normaliser_place": "inside", "attn_fn": "laplace"},
                {"normaliser_place": "content", "attn_fn": "relu2"},
            ),
        )
        fixed_length: int | None = flag(
            None,
            "the n of normaliser='fixed' (None: 512)",
            at_least=1,
            tried=({"fixed_length": 20, "normaliser": "fixed", "attn_fn": "relu2"},),
        )
        score_scale: Literal["sqrt", "none"] = flag(
            "sqrt", "qk / sqrt(width of a head), or qk as it is", tried=("none",)
        )
        gamma_init: Literal["ones", "normal"] | None = flag(
            None,
            "start of the gains of queries and keys: 1, or N(0, .02) (None: ones, without score_scale normal)",
            tried=("normal",),
        )
        offset: bool = flag(True, "learned offsets of queries and keys beside their gains", tried=(False,))
        bias: bool = flag(False, "biases in the linear maps", tried=(True,))
        dropout: float = flag(0.0, "dropout of the attention weights", at_least=0, below=1, tried=(0.1,))
        out_dropout: float = flag(0.0, "dropout of the output", at_least=0, below=1, tried=(0.1,))

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site)
        self.check(config)
        heads, width, kind = config.heads, config.query_key_dim, self.kind
        inner = site.channels(f"{kind}_expansion_factor", config.expansion_factor)
        for size, name in ((width, "query_key_dim"), (inner, "expansion_factor")):
            if size % heads:
                raise ValueError(f"{kind}_heads={heads} does not divide the {size} channels that {kind}_{name} makes")
        self.normaliser, self.place = settle(config)
        self.scale = (width // heads) ** -0.5 if config.score_scale == "sqrt" else 1.0
        self.inner, self.width = inner, width
        self.to_out = site.linear_out(inner, bias=config.bias, gated=True)
        self.gamma = nn.Parameter(torch.ones(2, width))
        self.beta = nn.Parameter(torch.zeros(2, width)) if config.offset else None
        if (config.gamma_init or ("ones" if config.score_scale == "sqrt" else "normal")) == "normal":
            nn.init.normal_(self.gamma, std=0.02)

    def key_width(self) -> int:
        return self.width // self.config.heads

    def shows(self) -> tuple[str, ...]:
        return ("gates",)

    def check(self, config: Config) -> None:
        """Raises ValueError for settings that contradict each other, naming both flags."""
        kind, fn, normaliser, place = self.kind, config.attn_fn, config.normaliser, config.normaliser_place
        if fn.startswith("softmax") and normaliser not in (None, "none"):
            raise ValueError(
                f"{kind}_attn_fn={fn!r} normalises its rows itself: {kind}_normaliser={normaliser!r} must be left out"
            )
        if place is not None:
            placed = f"{kind}_normaliser_place={place!r}"
            if fn.startswith("softmax"):
                raise ValueError(f"{placed} is set, but {kind}_attn_fn={fn!r} takes no normaliser")
            if normaliser == "none" or (normaliser == "row_sum" and place != "outside"):
                raise ValueError(
                    f"{kind}_normaliser={normaliser!r} has no place {place!r}: leave out {kind}_normaliser_place"
                )
        if config.fixed_length is not None and normaliser != "fixed":
            raise ValueError(
                f"{kind}_fixed_length={config.fixed_length} is set, but {kind}_normaliser is {normaliser!r}, not "
                "'fixed'"
            )

    def scaled(self, z: Float[Tensor, "b n k"], role: Literal[0, 1]) -> Float[Tensor, "b h n k"]:
        """Queries (0) or keys (1) of all heads: a scaled and offset copy of z."""
        t = z * self.gamma[role].to(z.dtype)
        if self.beta is not None:
            t = t + self.beta[role].to(z.dtype)
        return rearrange(t, "b n (h k) -> b h n k", h=self.config.heads)

    def read(
        self,
        q: Float[Tensor, "b h n k"],
        k: Float[Tensor, "b h m k"],
        v: Float[Tensor, "b h m e"],
        *,
        seen: Int[Tensor, "*_ n"],
        padded: int,
        maps: list[AttentionMap] | None = None,
        over_tokens: bool = True,
        **limits: Any,
    ) -> Float[Tensor, "b h n e"]:
        """What the queries read from the values; `seen` is how many keys each may see, `padded` the tensor's length.

        limits: which they are (allowed, causal, between) and what is added to their scores (bias, vector), as
        `gated_attention` takes them.
        """
        softmax_plus = self.config.attn_fn == "softmax_plus"
        options: dict[str, Any] = {
            "attn_fn": "softmax" if softmax_plus else self.config.attn_fn,
            "scale": self.scale,
            "divisor": plus_divisor(seen, q.dtype) if softmax_plus else self.divisor(seen, padded),
            "place": self.place,
            **limits,
        }
        if maps is not None:
            maps.append(AttentionMap(gated_weights(q, k, **options), over_tokens))
        return gated_attention(q, k, v, dropout_p=self.config.dropout if self.training else 0.0, **options)

    def divisor(self, seen: Int[Tensor, "*_ n"], padded: int) -> Tensor | float | str | None:
        """What the kernel divides by."""
        return {
            "row_index": seen,
            "fixed": self.config.fixed_length or PLUS_LENGTH,
            "padded_length": padded,
            "row_sum": "row_sum",
            "none": None,
        }[self.normaliser]

    @property
    def takes_sums(self) -> bool:
        """Whether each row is divided by a sum over its keys, so that keys that do not exist have to be masked."""
        return self.config.attn_fn.startswith("softmax") or self.normaliser == "row_sum"


def plus_divisor(seen: Int[Tensor, "*_ n"], dtype: torch.dtype) -> Float[Tensor, "*_ n"]:
    """log(512) / log(keys seen): dividing by it sharpens long rows (https://kexue.fm/archives/9019, softmax_plus)."""
    exact = torch.promote_types(dtype, torch.float32)
    return math.log(PLUS_LENGTH) / seen.clamp(min=PLUS_LEAST).to(exact).log()


def settle(config: GatedUnit.Config) -> tuple[str, str]:
    """The normaliser and its place, the defaults filled in."""
    if config.attn_fn == "softmax_plus":
        return "none", "inside"
    normaliser = config.normaliser or ("none" if config.attn_fn == "softmax" else "row_index")
    return normaliser, config.normaliser_place or "outside"
