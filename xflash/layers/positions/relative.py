"""Relative positions of a stack by name (rotary, rel_pos, alibi), and the biases GAU and FLASH keep of their own."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import nn

from ...base.registry import positions
from ...base.shapes import Float, Int, Tensor
from ...base.state import Ctx
from ...flags.flag import flag
from ..blocks.key_values import Slots
from ..kernels.relative import scores_bias, t5_bucket

__all__ = [
    "Alibi",
    "Bias",
    "DistanceBias",
    "Position",
    "RelPos",
    "Relative",
    "Rotary",
    "T5Bias",
    "ToeplitzBias",
    "angle_dtype",
    "inverse_frequencies",
]


def angle_dtype(dtype: torch.dtype) -> torch.dtype:
    """Angles and positions need float32 at least: bf16 has 33 distinct values among the last 1,024 of 8,192."""
    return torch.promote_types(dtype, torch.float32)


def inverse_frequencies(width: int, base: float, device: torch.device | None = None) -> Float[Tensor, " half"]:
    """base ** (-2i / width) in float32, as published models have them, whatever the model's dtype."""
    return 1.0 / (base ** (torch.arange(0, width, 2, device=device).float() / width))


class Position(nn.Module):
    """Base of the positions: built from a Config, the direction of the stack, and the head counts that take a bias."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Nothing to set."""

    def __init__(self, config: Any, causal: bool, heads: tuple[int, ...] = ()):
        super().__init__()
        self.config = config
        self.causal = causal

    @classmethod
    def family(cls) -> type["Position"]:
        """The class whose interface this one has (`Rotary`, `Bias`): a block that can use one member can use all."""
        return next(c for c in cls.__mro__ if issubclass(c, Position) and Position in c.__bases__)


positions.base = Position


class Bias(Position):
    """Base of the positions that add something to the scores by the distance between key and query."""

    def by_distance(self, distance: Int[Tensor, " l"], heads: int, dtype: torch.dtype) -> Float[Tensor, "h l"]:
        """The bias of each head at each distance (key minus query position), for scores of `dtype`."""
        raise NotImplementedError


@positions.register("rotary")
class Rotary(Position):
    """Rotary embedding of queries and keys (https://arxiv.org/abs/2104.09864), optionally xPos (2212.10554)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        emb_dim: int | None = flag(
            None, "channels of each key that are turned (None: all; all of narrower keys)", at_least=2
        )
        base: float = flag(10000.0, "base of the wavelengths", above=1)
        base_rescale_factor: float = flag(1.0, "NTK-aware rescaling of the base", above=0)
        interpolation_factor: float = flag(1.0, "positions are divided by it", at_least=1)
        interleaved: bool = flag(False, "pairs are neighbours (2i, 2i + 1), not halves (i, i + width / 2)")
        xpos: bool = flag(False, "scores also decay with distance (causal stacks, float32 or bfloat16)")
        xpos_scale_base: float = flag(512.0, "distance over which xPos decays by one power", above=0)

    def __init__(self, config: Config, causal: bool, heads: tuple[int, ...] = ()):
        super().__init__(config, causal, heads)
        if config.emb_dim is not None and config.emb_dim % 2:
            raise ValueError(f"rotary_emb_dim must be even, not {config.emb_dim}")
        if config.xpos and not causal:
            raise ValueError("rotary_xpos=True needs a causal stack: its decay has a direction")

    def width(self, key_width: int) -> int:
        """How many channels of a key of this width are turned: an even number, no more than the key has."""
        return min(self.config.emb_dim or key_width, key_width) // 2 * 2

    def table(
        self, where: Int[Tensor, "_ n"], key_width: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Cosines, signed sines and (xPos) scales of shape (1 | b, 1, n, width) in `dtype`."""
        width, config = self.width(key_width), self.config
        exact = angle_dtype(dtype)
        base = config.base * config.base_rescale_factor ** (width / max(width - 2, 1))
        frequency = inverse_frequencies(width, base, where.device).to(exact)
        angle = where.to(exact)[..., None] * frequency
        if config.interpolation_factor != 1:
            angle = angle / config.interpolation_factor
        sin, cos = angle.sin(), angle.cos()
        scale = None
        if config.xpos:
            ratio = (torch.arange(0, width, 2, device=where.device) + 0.4 * width) / (1.4 * width)
            scale = self.spread(*[ratio.to(exact) ** (where.to(exact)[..., None] / config.xpos_scale_base)] * 2)[
                :, None
            ]
        signed, even = self.spread(-sin, sin)[:, None].to(dtype), self.spread(cos, cos)[:, None].to(dtype)
        return even, signed, scale

    def spread(self, first: Tensor, second: Tensor) -> Tensor:
        """The values of both members of each pair, in the order in which the pairs lie."""
        if self.config.interleaved:
            return torch.stack((first, second), -1).flatten(-2)
        return torch.cat((first, second), -1)

    def turn(self, t: Float[Tensor, "b *h n k"], table: tuple, inverse: bool = False) -> Float[Tensor, "b *h n k"]:
        """`t` rotated to its positions; `inverse` divides by the xPos scale (keys) where queries are multiplied."""
        cos, sin, scale = table
        if t.dim() > 4 and cos.shape[0] != 1:
            cos, sin, scale = (part if part is None else part[:, None] for part in table)
        width = cos.shape[-1]
        part = t if width == t.shape[-1] else t[..., :width]
        if self.config.interleaved:
            swapped = part.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            swapped = part.roll(width // 2, -1)
        turned = torch.addcmul(part * cos, swapped, sin)
        if scale is not None:
            turned = (turned / scale if inverse else turned * scale).to(t.dtype)
        return turned if width == t.shape[-1] else torch.cat((turned, t[..., width:]), -1)


class DistanceBias(nn.Module):
    """Base of the learned biases by distance: an entry of `weight` (heads, entries) for each, (heads, l) from l."""

    weight: nn.Parameter
    settings: tuple

    def index(self, distance: Int[Tensor, " l"]) -> Int[Tensor, " l"]:
        """Which entry each distance has."""
        raise NotImplementedError

    def forward(self, distance: Int[Tensor, " l"]) -> Float[Tensor, "h l"]:
        return self.weight[:, self.index(distance)]

    def at(self, distance: Int[Tensor, " l"], ctx: Ctx, key: Any) -> Float[Tensor, "h l"]:
        """As forward; layers that ask for the same distances (the same `key`) share the index of a call."""
        return self.weight.index_select(1, ctx.once((key, *self.settings), lambda: self.index(distance)))


class T5Bias(DistanceBias):
    """A learned bias by T5's distance buckets (https://arxiv.org/abs/1910.10683)."""

    def __init__(self, heads: int, causal: bool, num_buckets: int, max_distance: int):
        super().__init__()
        if max_distance <= num_buckets // (2 if causal else 4):
            raise ValueError(
                f"a T5 bias with {num_buckets} buckets needs a max distance above "
                f"{num_buckets // (2 if causal else 4)}, not {max_distance}"
            )
        self.causal, self.num_buckets, self.max_distance = causal, num_buckets, max_distance
        self.settings = ("t5", causal, num_buckets, max_distance)
        # Small and unscaled: a unit-normal bias times sqrt(width) drowns the content of the scores for good.
        self.weight = nn.Parameter(torch.empty(heads, num_buckets).normal_(std=0.02))

    def index(self, distance: Int[Tensor, " l"]) -> Int[Tensor, " l"]:
        return t5_bucket(distance, self.causal, self.num_buckets, self.max_distance)


class ToeplitzBias(DistanceBias):
    """A learned bias for each distance below `length` either way; farther ones share the last."""

    def __init__(self, heads: int, length: int):
        super().__init__()
        self.length = length
        self.settings = ("toeplitz", length)
        self.weight = nn.Parameter(torch.empty(heads, 2 * length - 1).normal_(std=0.02))

    def index(self, distance: Int[Tensor, " l"]) -> Int[Tensor, " l"]:
        return distance.clamp(1 - self.length, self.length - 1) + self.length - 1


def own_bias(kind: Literal["t5", "toeplitz"] | None, heads: int, causal: bool, length: int) -> DistanceBias | None:
    """The bias a GAU or FLASH block keeps for itself: T5's 32 buckets up to 128, one entry a distance, or none."""
    if kind is None:
        return None
    return T5Bias(heads, causal, 32, 128) if kind == "t5" else ToeplitzBias(heads, length)


@positions.register("rel_pos")
class RelPos(Bias):
    """T5's relative bias, one table for all layers that have the same number of heads."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        num_buckets: int = flag(32, "distance buckets", at_least=4)
        max_distance: int = flag(128, "distances from here on share a bucket", at_least=2)

    def __init__(self, config: Config, causal: bool, heads: tuple[int, ...] = ()):
        super().__init__(config, causal, heads)
        tables = {str(h): T5Bias(h, causal, config.num_buckets, config.max_distance) for h in heads}
        self.tables = nn.ModuleDict(tables)

    def by_distance(self, distance: Int[Tensor, " l"], heads: int, dtype: torch.dtype) -> Float[Tensor, "h l"]:
        return self.tables[str(heads)](distance)


@positions.register("alibi")
class Alibi(Bias):
    """A penalty linear in the distance, one slope a head (https://arxiv.org/abs/2108.12409), alike both ways."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        num_heads: int | None = flag(
            None,
            "heads with a slope, the others without (None: all; all of a layer that has fewer)",
            at_least=1,
        )

    def by_distance(self, distance: Int[Tensor, " l"], heads: int, dtype: torch.dtype) -> Float[Tensor, "h l"]:
        sloped = min(self.config.num_heads or heads, heads)
        slopes = torch.tensor(alibi_slopes(sloped) + [0.0] * (heads - sloped))
        # A copy that is waited for would make every layer wait for the GPU.
        slopes = slopes.to(distance.device, non_blocking=True)
        return -slopes[:, None].to(angle_dtype(dtype)) * distance.abs()


def alibi_slopes(heads: int) -> list[float]:
    """The paper's slopes: a geometric series; between powers of two, every second one of the next series fills up."""
    power = 2 ** math.floor(math.log2(heads))
    start = 2.0 ** (-8.0 / power)
    slopes = [start ** (i + 1) for i in range(power)]
    return slopes if power == heads else slopes + alibi_slopes(2 * power)[0::2][: heads - power]


def places(ctx: Ctx) -> Int[Tensor, "_ n"]:
    """Where the tokens of a call stand: counted anew in each document, which keys that are not turned see as alone."""
    return ctx.positions if ctx.doc_ids is None else ctx.doc_positions()


class Relative:
    """The positions of a stack as its blocks use them: tables and biases are made once a call."""

    def __init__(self, modules: Iterable[Position]):
        modules = list(modules)
        self.rotaries = [m for m in modules if isinstance(m, Rotary)]
        self.biases = [m for m in modules if isinstance(m, Bias)]

    def rotate(
        self,
        t: Float[Tensor, "b *h n k"],
        ctx: Ctx,
        inverse: bool = False,
        where: Int[Tensor, "_ n"] | None = None,
    ) -> Float[Tensor, "b *h n k"]:
        """Queries (or keys, `inverse`) turned to their places, or to those of a context (`where`)."""
        stand = places(ctx) if where is None else where
        for i, rotary in enumerate(self.rotaries):
            width, dtype = t.shape[-1], t.dtype
            make = partial(rotary.table, stand, width, dtype)
            t = rotary.turn(t, ctx.once(("rotary", i, width, dtype, where is None), make), inverse)
        return t

    @property
    def turns_once(self) -> bool:
        """Whether all that `rotate` does is to turn pairs of channels by one table of cosines and sines."""
        plain = all(type(m).turn is Rotary.turn and not m.config.xpos for m in self.rotaries)
        return plain and len(self.rotaries) < 2

    def pairs(
        self, ctx: Ctx, key_width: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "n r"], Float[Tensor, "n r"], bool]:
        """The tables (n, width) of a stack that `turns_once`, alike for all rows, and whether pairs are neighbours."""
        (rotary,) = self.rotaries
        make = partial(rotary.table, ctx.positions, key_width, dtype)
        cos, sin, _ = ctx.once(("rotary", 0, key_width, dtype, True), make)
        return cos[0, 0], sin[0, 0], rotary.config.interleaved

    def rotate_both(
        self, both: Float[Tensor, "b *_ n k"], queries: int, ctx: Ctx
    ) -> tuple[Float[Tensor, "b *_ n k"], Float[Tensor, "b *_ n k"]]:
        """Queries, the first ones on the axis before the tokens, and keys behind them, turned; at once if alike."""
        apart = queries, both.shape[-3] - queries
        if any(rotary.config.xpos for rotary in self.rotaries):
            q, k = both.split(apart, -3)
            return self.rotate(q, ctx), self.rotate(k, ctx, inverse=True)
        q, k = self.rotate(both, ctx).split(apart, -3)
        return q, k

    def turn(
        self, t: Float[Tensor, "b h n k"], where: Int[Tensor, "_ n"], ctx: Ctx, view: Any, inverse: bool = False
    ) -> Float[Tensor, "b h n k"]:
        """Queries (or keys, `inverse`) turned to places in a window, the same in all layers of the same `view`."""
        for i, rotary in enumerate(self.rotaries):
            make = partial(rotary.table, where, t.shape[-1], t.dtype)
            t = rotary.turn(t, ctx.once(("window", i, t.shape[-1], t.dtype, view, inverse), make), inverse)
        return t

    def by_distance(self, distance: Int[Tensor, " l"], heads: int, dtype: torch.dtype) -> Float[Tensor, "h l"] | None:
        """What the stack's biases add at each distance (key minus query); None without any."""
        if not self.biases:
            return None
        return torch.stack([bias.by_distance(distance, heads, dtype) for bias in self.biases]).sum(0).to(dtype)

    def bias(
        self, heads: int, slots: Slots, m: int, ctx: Ctx, dtype: torch.dtype, view: tuple = (None, 0)
    ) -> Float[Tensor, "_ h n m"] | None:
        """What the stack's biases add to the scores of queries against m slots; None without any.

        view: what makes layers remember other tokens than their neighbours do.
        """
        if not self.biases:
            return None
        return ctx.once(
            ("bias", heads, dtype, view),
            lambda: scores_bias(lambda gap: cast(Tensor, self.by_distance(gap, heads, dtype)), *slots, m),
        )
