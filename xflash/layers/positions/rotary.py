"""`rotary`: pairs of channels of queries and keys are turned by where they stand."""

from collections.abc import Sequence

import torch

from ...base.frozen import frozen
from ...base.registry import blocks, positions
from ...base.shapes import Float, Int, Tensor
from ...flags.flag import flag
from ..blocks.block import Block
from .angles import angle_dtype
from .pairs import Pairs
from .scaling import ScalingFlags, amplitude, check_factors, check_scaling, scaled_frequencies

__all__ = ["Rotary"]


@positions.register("rotary")
class Rotary(Pairs):
    """Rotary embedding of queries and keys (https://arxiv.org/abs/2104.09864), optionally xPos (2212.10554)."""

    @frozen
    class Config(ScalingFlags):
        emb_dim: int | None = flag(
            None,
            "channels of each key that are turned (None: all, but for an odd one; so of narrower keys)",
            at_least=2,
            tried=(4,),
        )
        num_heads: int | None = flag(
            None,
            "the last heads of a layer that are turned, the others without places (None: all; all of a layer that has "
            "fewer)",
            at_least=1,
            paper="https://arxiv.org/abs/2405.04434",
            tried=(2,),
        )
        base: float = flag(10000.0, "base of the wavelengths", above=1, tried=(500.0,))
        base_rescale_factor: float = flag(
            1.0, "NTK-aware rescaling of the base", above=0, paper="https://arxiv.org/abs/2309.00071", tried=(1.5,)
        )
        interpolation_factor: float = flag(
            1.0, "positions are divided by it", at_least=1, paper="https://arxiv.org/abs/2306.15595", tried=(2.0,)
        )
        interleaved: bool = flag(
            False, "pairs are neighbours (2i, 2i + 1), not halves (i, i + width / 2)", tried=(True,)
        )
        xpos: bool = flag(
            False,
            "scores also decay with distance (causal stacks, float32 or bfloat16)",
            paper="https://arxiv.org/abs/2212.10554",
            tried=({"xpos": True},),
        )
        xpos_scale_base: float = flag(
            512.0,
            "distance over which xPos decays by one power",
            above=0,
            tried=({"xpos_scale_base": 64.0, "xpos": True},),
        )

    def __init__(self, config: Config, causal: bool, heads: tuple[int, ...] = ()):
        super().__init__(config, causal, heads)
        if config.emb_dim is not None and config.emb_dim % 2:
            raise ValueError(f"rotary_emb_dim must be even, not {config.emb_dim}")
        if config.xpos and not causal:
            raise ValueError("rotary_xpos=True needs a causal stack: its decay has a direction")
        check_scaling(config, positions.name_of(type(self)))

    def check(self, users: Sequence[Block]) -> None:
        super().check(users)
        name = positions.name_of(type(self))
        self.check_heads(users, name)
        for block in users:
            if (width := block.key_width()) is not None:
                check_factors(self.config, self.width(width), name)
            if block.counts_places and self.config.scaling == "dynamic":
                raise ValueError(
                    f"{name}_scaling='dynamic' counts the text up to each token, but "
                    f"{blocks.name_of(type(block))!r} counts places inside its window"
                )
            if self.config.xpos and getattr(getattr(block, "reader", None), "meets", False):
                raise ValueError(
                    f"{name}_xpos=True makes queries longer and keys shorter by their places, but "
                    f"{blocks.name_of(type(block))}_scores has a step that compares their lengths (l2_distance): leave "
                    "out one of them"
                )

    def check_heads(self, users: Sequence[Block], name: str) -> None:
        """ValueError when no layer has as many heads as are to be turned, or several of a layer share a key."""
        turned, shared = self.config.num_heads or 0, [b for b in users if b.head_counts()[0] != b.head_counts()[1]]
        most = max((block.head_counts()[0] for block in users), default=turned)
        if turned > most:
            raise ValueError(f"{name}_num_heads={turned}, but no layer has more than {most} heads")
        if turned and shared:
            kind, (heads, kv_heads) = blocks.name_of(type(shared[0])), shared[0].head_counts()
            raise ValueError(
                f"{name}_num_heads={turned} turns heads one by one, but the {heads} heads of {kind!r} share {kv_heads} "
                f"keys: leave out {kind}_kv_heads, or that"
            )

    def refuses_ahead(self) -> tuple[str, str] | None:
        if not self.config.xpos:
            return None
        flag = f"{positions.name_of(type(self))}_xpos=True"
        return flag, "its decay has a direction, and keys ahead would be amplified"

    @property
    def alike(self) -> bool:
        return not self.config.xpos

    @property
    def in_pairs(self) -> bool:
        return type(self).turn is Rotary.turn and not self.config.xpos

    @property
    def size(self) -> float:
        return amplitude(self.config)

    def angles(self, where: Float[Tensor, "_ n"], width: int) -> Float[Tensor, "_ n half"]:
        base = self.config.base * self.config.base_rescale_factor ** (width / max(width - 2, 1))
        return where[..., None] * scaled_frequencies(self.config, base, width, where).to(where.dtype)

    def turn(self, t: Float[Tensor, "b *h n k"], table: tuple, inverse: bool = False) -> Float[Tensor, "b *h n k"]:
        turned = self.config.num_heads
        if turned is None or turned >= t.shape[1]:
            return super().turn(t, table, inverse)
        rest, last = t.split((t.shape[1] - turned, turned), 1)
        return torch.cat((rest, super().turn(last, table, inverse)), 1)

    def table(
        self, where: Int[Tensor, "_ n"], key_width: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Cosines, signed sines and (xPos) scales of shape (1 | b, 1, n, width); scales in float32 at least."""
        cos, sin, _ = super().table(where, key_width, dtype)
        return cos, sin, self.decay(where.to(angle_dtype(dtype)), cos.shape[-1]) if self.config.xpos else None

    def decay(self, where: Float[Tensor, "_ n"], width: int) -> Float[Tensor, "_ 1 n r"]:
        """xPos's scales (1 | b, 1, n, width)."""
        ratio = (torch.arange(0, width, 2, device=where.device) + 0.4 * width) / (1.4 * width)
        scale = ratio.to(where.dtype) ** (where[..., None] / self.config.xpos_scale_base)
        return self.spread(scale, scale)[:, None]
