"""`ContinuousTransformerWrapper`: vectors in, vectors out, around any stack."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..base.frozen import frozen
from ..base.roles import Role
from ..base.shapes import Float, Int, Tensor
from ..flags.flag import flag
from .frame_input import FrameInput
from .model_state import ModelState
from .pooled_output import pooled_output
from .stream_model import StreamModel
from .targets import which_are_real
from .token_head import projection
from .wanted import Wanted

__all__ = ["ContinuousTransformerWrapper"]


class ContinuousTransformerWrapper(StreamModel):
    """A linear map to the stream, absolute positions, a stack, and a linear map to vectors again.

    `model(x)` takes frames (b, n, dim_in), a vector for each token, and gives (b, n, dim_out), (b, dim_out) of a model
    that pools; `model.step(x, state)` gives (frames, state) when the stack is causal. With `max_seq_len`, and a stack
    without relative positions, positions are learned.
    """

    @frozen
    class Config(StreamModel.Config, FrameInput.Config):
        dim_out: int | None = flag(
            None, "width of what comes out, by a linear map (None: the stream itself)", at_least=1, tried=(7,)
        )

    gives = "vectors of vectors"
    maker: ClassVar[str] = "ContinuousAutoregressiveWrapper(model).{how} makes frames"
    roles: ClassVar[Mapping[str, Role]] = {"project_out": "head"}
    embedding: FrameInput

    def assemble(self, config: Any) -> None:
        self.hold(config)
        self.embedding = FrameInput(config, self.dim, self.attn_layers.has_relative_positions)
        self.dim_in, self.dim_out = self.embedding.dim_in, config.dim_out or self.read_width
        out = config.dim_out
        self.project_out = None if out is None else projection(self.read_width, out, False)
        self.pooled = pooled_output(config, self.attn_layers)

    def logits(self, y: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n _"]:
        """The stack's output, pooled or not, in the width of what comes out."""
        return y if self.project_out is None else self.project_out(y)

    def forward(
        self,
        x: Float[Tensor, "b n _"],
        mask: Tensor | None = None,
        *,
        lens: Int[Tensor, " b"] | Sequence[int] | None = None,
        prepend_embeds: Float[Tensor, "b p d"] | None = None,
        prepend_mask: Tensor | None = None,
        return_embeddings: bool = False,
        return_logits_and_embeddings: bool = False,
        return_attn: bool = False,
        mems: ModelState | None = None,
        return_mems: bool = False,
        return_hiddens: bool = False,
        return_auxiliary_loss: bool = False,
        **beside: Any,
    ) -> Any:
        """Vectors (b, n, dim_out), or (b, p + n, dim_out) with `prepend_embeds` (b, p, d).

        mask (b, n): True = real frame; or `lens`, how many of each row are. The rest is as in TransformerWrapper, what
        it says of logits is of these vectors; `beside`: side inputs of the stack (`context`, `doc_ids`, ...).
        """
        front = {"prepend_embeds": prepend_embeds, "prepend_mask": prepend_mask}
        asked = return_hiddens, return_auxiliary_loss
        wanted = Wanted(return_embeddings, return_logits_and_embeddings, return_attn, return_mems, *asked)
        if lens is not None:
            x, mask = self.embedding.check(x, mask)
            mask = which_are_real(x[..., 0], mask, lens)
        return self.call(x, mask, front, beside, wanted, mems)

    def step(
        self,
        x: Float[Tensor, "b n _"],
        state: ModelState | None = None,
        mask: Tensor | None = None,
        *,
        prepend_embeds: Float[Tensor, "b p d"] | None = None,
        prepend_mask: Tensor | None = None,
        reset: Tensor | None = None,
        return_hiddens: bool = False,
        return_auxiliary_loss: bool = False,
        **beside: Any,
    ) -> tuple[Any, ...]:
        """Vectors of any number of new frames behind what `state` has seen, and the state: as in TransformerWrapper."""
        front = {"prepend_embeds": prepend_embeds, "prepend_mask": prepend_mask}
        noted = {"return_hiddens": return_hiddens, "return_auxiliary_loss": return_auxiliary_loss}
        return self.go_on(x, state, mask, front, beside, reset, noted)
