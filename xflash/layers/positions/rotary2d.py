"""`rotary2d`: pairs of channels of queries and keys are turned by the row and the column where they stand."""

from collections.abc import Sequence

from ...base.frozen import frozen
from ...base.registry import blocks, positions
from ...base.shapes import Float, Int, Tensor
from ...base.state import Ctx
from ...flags.flag import flag
from ..blocks.block import Block
from .angles import inverse_frequencies
from .pairs import Pairs

__all__ = ["Rotary2d"]


@positions.register("rotary2d")
class Rotary2d(Pairs):
    """Axial rotary embedding (https://arxiv.org/abs/2403.13298): half of the pairs turn by the row, half by the column.

    Scores depend on how many rows and columns lie between two tokens. Calls say where tokens stand: `grid`; what has no
    place (class tokens, registers, memory tokens) is not turned.
    """

    together = 4
    in_words = "four at a time, a pair for the row and one for the column"
    places_context = False
    heeds = frozenset({"grid"})

    @frozen
    class Config:
        emb_dim: int | None = flag(
            None,
            "channels of each key that are turned, a multiple of 4 (None: as many as there are; so of narrower keys)",
            at_least=4,
            tried=(4,),
        )
        base: float = flag(100.0, "base of the wavelengths, the same along rows and columns", above=1, tried=(500.0,))
        interpolation_factor: float = flag(1.0, "rows and columns are divided by it", at_least=1, tried=(2.0,))
        interleaved: bool = flag(
            False, "pairs are neighbours (2i, 2i + 1), not halves (i, i + width / 2)", tried=(True,)
        )

    def __init__(self, config: Config, causal: bool, heads: tuple[int, ...] = ()):
        super().__init__(config, causal, heads)
        if config.emb_dim is not None and config.emb_dim % 4:
            raise ValueError(f"rotary2d_emb_dim must be a multiple of 4, not {config.emb_dim}")

    def check(self, users: Sequence[Block]) -> None:
        name = positions.name_of(type(self))
        for block in users:
            if block.counts_places:
                raise ValueError(
                    f"pos={name!r} has places on a grid, but {blocks.name_of(type(block))!r} counts its tokens in one "
                    "line; pos='rotary' turns by that"
                )
        if all(block.takes_context for block in users):
            raise ValueError(
                f"pos={name!r} has nothing to turn in a stack whose blocks all attend to a context, which is no grid"
            )
        super().check([block for block in users if not block.takes_context])

    def places(self, ctx: Ctx) -> Int[Tensor, "_ n 2"]:
        """The row and the column of each token; memory tokens, which a call may consist of, have none."""
        grid = ctx.beside.get("grid")
        return ctx.positions.new_zeros(1, ctx.positions.shape[1], 2) if grid is None else grid

    def angles(self, where: Float[Tensor, "_ n 2"], width: int) -> Float[Tensor, "_ n half"]:
        frequency = inverse_frequencies(width // 2, self.config.base, where.device).to(where.dtype)
        return (where[..., None] * frequency).flatten(-2)
