"""`SeveralIds`: several token ids at each place, each of a vocabulary of its own, as one stream."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..base.checks import as_mask, given, is_integral
from ..base.frozen import frozen
from ..base.registry import nearest
from ..base.shapes import Bool, Float, Int, Integer, Tensor, typed
from ..flags.flag import flag
from ..layers.embeddings import TokenEmbedding
from .input_embedding import check_embed_num_tokens, in_range
from .stream_input import StreamInput, absolute_positions

__all__ = ["SeveralIds"]


class SeveralIds(StreamInput):
    """The sum of an embedding for each of several ids, with absolute positions, norm, dropout and projection."""

    @frozen
    class Config(StreamInput.Config):
        num_tokens: Mapping[str, int] = flag(
            doc="as many ids of each input, by name: {'note': 128, 'length': 16}",
            tried="every combination has its own",
        )

    def __init__(self, config: Config, dim: int, relative: bool = False):
        super().__init__(config, dim)
        self.num_tokens = check_embed_num_tokens(config.num_tokens, "num_tokens")
        if not self.num_tokens:
            raise ValueError("num_tokens has no inputs; give at least one, such as {'note': 128}")
        # A ModuleDict has methods, and a name such as 'type' would be one of them.
        self.embeds = nn.ModuleDict(
            {f"{name}_embed": TokenEmbedding(count, self.width) for name, count in self.num_tokens.items()}
        )
        self.pos_emb = absolute_positions(config, self.width, relative)
        self.surround(config)

    @typed
    def embedded(self, x: Integer[Tensor, "b n k"], mask: Tensor | None) -> Float[Tensor, "b n d"]:
        y: Any = 0
        for embed, ids in zip(self.embeds.values(), x.unbind(-1), strict=True):
            y = y + embed(ids)
        return y

    def check(self, x: Any, mask: Any) -> tuple[Int[Tensor, "b n k"], Bool[Tensor, "b n"] | None]:
        """The ids (b, n, k) in the order of num_tokens, and the mask as booleans; TypeError or ValueError otherwise."""
        x = self.columns(x)
        ids = [in_range(f"x[{name!r}]", x[..., i], count) for i, (name, count) in enumerate(self.num_tokens.items())]
        return torch.stack(ids, -1), None if mask is None else as_mask(mask, (x.shape[0], x.shape[1]))

    def columns(self, x: Any) -> Integer[Tensor, "b n k"]:
        """The ids side by side."""
        names = list(self.num_tokens)
        wanted = f"a mapping of {', '.join(map(repr, names))} to integer tensors (batch, tokens)"
        if isinstance(x, torch.Tensor):
            x = {name: x[..., i] for i, name in enumerate(names)} if x.dim() == 3 and x.shape[2] == len(names) else x
        if not isinstance(x, Mapping):
            raise TypeError(f"x must be {wanted}, or one tensor (batch, tokens, {len(names)}), not {given(x)}")
        for name in x:
            if name not in names:
                raise ValueError(
                    f"x has {name!r}, but num_tokens has {', '.join(map(repr, names))}{nearest(name, names)}"
                )
        shape = tuple(given_for(x, names[0]).shape)
        for name in names:
            if tuple(given_for(x, name).shape) != shape or len(shape) != 2 or not shape[1]:
                raise ValueError(
                    f"x[{name!r}] has shape {tuple(x[name].shape)}: all inputs are (batch, tokens), of one shape and "
                    "with at least one token"
                )
        return torch.stack([x[name].long() for name in names], -1)


def given_for(x: Mapping[str, Any], name: str) -> Tensor:
    """The ids of an input; TypeError or ValueError where there are none."""
    if name not in x:
        raise ValueError(f"x has no {name!r}: every call gives ids for all of num_tokens")
    if not is_integral(x[name]):
        raise TypeError(f"x[{name!r}] must be an integer tensor (batch, tokens), not {given(x[name])}")
    return x[name]
