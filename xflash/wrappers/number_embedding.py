"""`NumberEmbedding`: token ids, one of which stands for numbers that are given beside them."""

from collections.abc import Mapping
from typing import Any

import torch

from ..base.checks import check_dtype, given
from ..base.frozen import frozen
from ..base.shapes import Bool, Float, Integer, Tensor, typed
from ..flags.flag import flag
from ..generation.nets import check_token
from .input_embedding import InputEmbedding

__all__ = ["NumberEmbedding"]


class NumberEmbedding(InputEmbedding):
    """Token embeddings, that of `numerical_token_id` multiplied by the number it stands for."""

    @frozen
    class Config(InputEmbedding.Config):
        numerical_token_id: int = flag(
            doc="the token that stands for a number, which is given beside it", at_least=0,
            paper="https://arxiv.org/abs/2310.02989", tried="every combination has its own",
        )  # fmt: skip

    def __init__(self, config: Config, dim: int, relative: bool = False):
        super().__init__(config, dim, relative)
        self.numerical_token_id = check_token(self, "numerical_token_id", config.numerical_token_id)

    @typed
    def embedded(
        self, x: Integer[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None, embed_ids: Any = None, x_num: Any = None
    ) -> Float[Tensor, "b n d"]:
        """The embeddings of tokens, times x_num (b, n), the numbers, of which those at other tokens are not seen."""
        y, numbers = super().embedded(x, mask), self.check_numbers(x, x_num)
        if torch.promote_types(numbers.dtype, y.dtype) != y.dtype:
            check_dtype("x_num is", "x_num", numbers.dtype, y.dtype)
        counts = x == self.numerical_token_id
        # What stands at a masked place may be no number, and its gradient would not be one either.
        counts = counts if mask is None else counts & mask
        return y * torch.where(counts, numbers, 1)[..., None].to(y.dtype)

    def check_given(self, x: Tensor, own: Mapping[str, Any]) -> None:
        super().check_given(x, own)
        self.check_numbers(x, own["x_num"])

    def check_numbers(self, x: Tensor, x_num: Any) -> Float[Tensor, "b n"]:
        """The numbers; TypeError or ValueError where there is not one for each token."""
        wanted = f"a floating-point tensor {tuple(x.shape)}, a number for each token"
        if not isinstance(x_num, torch.Tensor) or not x_num.is_floating_point():
            raise TypeError(f"x_num must be {wanted}, not {given(x_num)}")
        if x_num.shape != x.shape:
            raise ValueError(f"x_num must be {wanted}, not {tuple(x_num.shape)}")
        return x_num
