"""What stands in front of the layers of a vision transformer, as weights that lie as they do here."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import einx
import torch
import torch.nn.functional as F
from torch import nn

from ...base.shapes import Tensor

__all__ = ["Front", "Made", "read"]


class Made(NamedTuple):
    """A weight that is made of others, whose shape and dtype are known before these are read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def read(weight: Any) -> Tensor:
    """The numbers of a weight, which may be in a file or made of others."""
    return weight if isinstance(weight, torch.Tensor) else weight.read()


class Front(NamedTuple):
    """The names of learned tokens in the order of their positions, of all positions, and of the projection of patches.

    Those that a head reads come first; all others are register tokens here. Positions of tokens are added to them, for
    they are the same in every image. placed: how many tokens have positions (None: all).  norm: the name of a norm
    behind these, which is made of the tokens too.
    """

    tokens: tuple[str, ...]
    positions: str
    projection: str
    placed: int | None = None
    norm: str | None = None

    def made(self, weights: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
        """All weights, those of the front as they lie here; ValueError for one that is missing or of another shape."""
        face: Any = model
        inputs, dim, count = face.embedding, face.dim, face.pooled.count
        found = dict(weights)
        tokens = [found.pop(name) for name in self.tokens if name in found]
        total = count + (0 if inputs.register_tokens is None else len(inputs.register_tokens))
        rows = sum(weight.shape[-2] for weight in tokens if len(weight.shape) == 3)
        placed = total if self.placed is None else self.placed
        if rows != total or any(tuple(weight.shape) != (1, weight.shape[-2], dim) for weight in tokens):
            said = {name: tuple(weights[name].shape) for name in self.tokens if name in weights}
            raise ValueError(
                f"the weights of learned tokens are {said or 'missing'}, not {total} of {dim} channels "
                f"({' and '.join(self.tokens)})"
            )
        shape = (dim, inputs.channels, *inputs.patch_size)
        found[self.projection] = checked(weights, self.projection, shape, flat)
        positions = None
        if inputs.pos_emb is not None:
            down, across = inputs.grid
            shape = (1, placed + down * across, dim)
            found[self.positions] = checked(
                weights, self.positions, shape, lambda t: einx.id("(y x) d -> y x d", t[0, placed:], y=down)
            )
            positions = weights[self.positions]

        def standing() -> Tensor:
            t = torch.cat([read(weight)[0] for weight in tokens])
            if positions is not None:
                t[:placed] += read(positions)[0, :placed].to(t.dtype)
            return t if self.norm is None else normed(t, self.norm, weights, inputs.post_emb_norm.config.eps)

        if count:
            found[self.tokens[0]] = Made((count, dim), tokens[0].dtype, lambda: standing()[:count])
        if total > count:
            found[self.tokens[-1]] = Made((total - count, dim), tokens[0].dtype, lambda: standing()[count:])
        return found


def checked(weights: Mapping[str, Any], name: str, shape: tuple[int, ...], turn: Callable[[Tensor], Tensor]) -> Made:
    """A weight that is turned; ValueError where it is missing or has another shape."""
    if name not in weights:
        raise ValueError(f"there is no weight {name!r}")
    weight = weights[name]
    if tuple(weight.shape) != shape:
        raise ValueError(f"the weight {name!r} is of shape {tuple(weight.shape)}, not {shape}")
    return Made(tuple(turn(torch.empty(shape, device="meta")).shape), weight.dtype, lambda: turn(read(weight)))


def normed(t: Tensor, name: str, weights: Mapping[str, Any], eps: float) -> Tensor:
    """Tokens behind a LayerNorm with these weights, of which the second may be missing."""
    gain, bias = (read(weights[part]) if part in weights else None for part in (f"{name}.weight", f"{name}.bias"))
    return F.layer_norm(t, t.shape[-1:], gain, bias, eps)


def flat(t: Tensor) -> Tensor:
    """The weights of a convolution as a matrix, of patches whose channels lie together."""
    return einx.id("d c y x -> d (y x c)", t)
