"""`Slots`: where the queries of a call and the keys they read stand."""

from typing import NamedTuple

from ...base.shapes import Int, Tensor

__all__ = ["Slots"]


class Slots(NamedTuple):
    """Where the queries of a call and the slots they read stand, in one count.

    at: (1 | b, n) of each query.  keys: (1 | b, m) of each slot, None where slot j stands at j.  alike: every row is
    as the first.
    """

    at: Int[Tensor, "_ n"]
    keys: Int[Tensor, "_ m"] | None
    alike: bool
