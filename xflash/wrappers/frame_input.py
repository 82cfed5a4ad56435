"""`FrameInput`: what turns vectors, one a token, into the stream that a stack reads."""

from typing import Any, cast

import torch
from torch import nn

from ..base.checks import as_mask, check_dtype, given, main_weight
from ..base.frozen import frozen
from ..base.shapes import Bool, Float, Tensor, typed
from ..flags.flag import flag, like
from .stream_input import StreamInput, absolute_positions

__all__ = ["FrameInput"]


class FrameInput(StreamInput):
    """Frames (b, n, dim_in) mapped to the stream, with absolute positions, norm and dropout."""

    @frozen
    class Config(StreamInput.Config):
        dim_in: int | None = flag(
            None, "width of the frames, which a linear map takes to the stream's (None: they have it)",
            at_least=1, tried=(5,),
        )  # fmt: skip
        use_abs_pos_emb: bool | None = like(
            StreamInput.Config,
            "use_abs_pos_emb",
            doc="learned positions (None: where max_seq_len is given, unless the stack has relative ones)",
        )

    def __init__(self, config: Config, dim: int, relative: bool = False):
        super().__init__(config, dim)
        self.dim_in = config.dim_in or self.width
        self.project_in = None if config.dim_in is None else nn.Linear(config.dim_in, self.width, bias=False)
        placeless = relative or not config.max_seq_len
        self.pos_emb = absolute_positions(config, self.width, placeless)
        self.surround(config)

    @typed
    def embedded(self, x: Float[Tensor, "b n _"], mask: Bool[Tensor, "b n"] | None) -> Float[Tensor, "b n d"]:
        # What stands at a masked place may be no number, and its gradient would not be one either.
        x = x if mask is None else x.masked_fill(~mask[..., None], 0)
        return x if self.project_in is None else self.projected(x)

    def check(self, x: Any, mask: Any) -> tuple[Float[Tensor, "b n _"], Bool[Tensor, "b n"] | None]:
        """The frames, and the mask as booleans; TypeError or ValueError for what is no batch of them."""
        wanted = f"(batch, frames, {self.dim_in})"
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            raise TypeError(f"x must be a floating-point tensor {wanted}, not {given(x)}")
        if x.dim() != 3 or x.shape[1] < 1 or x.shape[2] != self.dim_in:
            raise ValueError(f"x must be {wanted} with at least one frame, not {tuple(x.shape)}")
        return x, None if mask is None else as_mask(mask, (x.shape[0], x.shape[1]))

    def projected(self, x: Float[Tensor, "b n _"]) -> Float[Tensor, "b n d"]:
        """The frames in the width of the embeddings."""
        try:
            return cast(nn.Linear, self.project_in)(x)
        except RuntimeError:
            # Only then: what the weights look like says little of a model that is sharded or quantised.
            weight = main_weight(self)
            if weight is not None and not torch.is_autocast_enabled(x.device.type):
                check_dtype("x is", "x", x.dtype, weight.dtype)
            raise
