"""What the two directions of the fused FLASH kernel have in common: the pieces they work on, and what tokens bring."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...base.shapes import Bool, Float, Int, Tensor
from .relative import toeplitz

__all__ = [
    "Parts",
    "Piece",
    "Settings",
    "Work",
    "activated",
    "band_scores",
    "bands",
    "given",
    "pieces",
    "prepared",
    "restored",
    "share",
    "shares",
    "turned",
    "unpair",
    "unreal",
]

# Bytes of the projection at work at once: on a CPU they should stay in its caches, elsewhere launches should be few.
BYTES = {"cpu": 2**21}
BYTES_ELSEWHERE = 2**32
# The shortest group whose scores that nobody sees are left out as far as bands go (half precision gains nothing by it),
# and the rows of a band on a CPU; elsewhere there are two bands.
LEAST = 128
BAND = 64


class Settings(NamedTuple):
    """As in `Spec`; start: groups closed before the call, mean: whether sums are divided by their number."""

    w: int
    attn_fn: str
    scale: float
    divide: float
    mean: bool
    start: int = 0


class Work(NamedTuple):
    """What belongs to a call, gains and offsets in the dtype of the projection."""

    hidden: Tensor
    gamma: Tensor
    beta: Tensor | None
    bias: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    new: Tensor | None
    settings: Settings
    paired: int

    @property
    def widths(self) -> tuple[int, int, int]:
        k = self.gamma.shape[1]
        e = (self.hidden.shape[2] - k) // 2
        return e, e, k


class Piece(NamedTuple):
    """Batch rows and tokens that are worked on together: `groups` groups of w tokens, the first number `group`."""

    batch: slice
    tokens: slice
    group: int
    groups: int
    w: int


def prepared(hidden, gamma, beta, vector, cos, sin, new, settings: Settings, paired: int) -> Work:
    dtype, w = hidden.dtype, settings.w
    bias = None if vector is None else toeplitz(vector, w, w).to(dtype)
    beta = None if beta is None else beta.to(dtype)
    return Work(hidden, gamma.to(dtype), beta, bias, cos, sin, new, settings, paired)


def pieces(work: Work, backwards: bool = False) -> Iterator[Piece]:
    """Rows apart from each other, the groups of a row in their order (or from the last), its open group by itself."""
    (b, n, c), w = work.hidden.shape, work.settings.w
    numbers = BYTES.get(work.hidden.device.type, BYTES_ELSEWHERE) // work.hidden.element_size()
    full, left = divmod(n, w)
    together = max(1, numbers // (w * c))
    some = [(g, min(together, full - g), w) for g in range(0, full, together)] + ([(full, 1, left)] if left else [])
    rows = max(1, numbers // (min(n, together * w) * c))
    for first in range(0, b, rows):
        for group, groups, width in reversed(some) if backwards else some:
            tokens = slice(group * w, group * w + groups * width)
            yield Piece(slice(first, min(first + rows, b)), tokens, group, groups, width)


class Parts(NamedTuple):
    """What a piece's tokens bring, groups in the first axis; `four` are q, far_q, k, far_k."""

    gate: Float[Tensor, "g w e"]
    v: Float[Tensor, "g w e"]
    z: Float[Tensor, "g w k"]
    four: Float[Tensor, "4 g w k"]


def activated(work: Work, piece: Piece) -> Parts:
    # One by one, so that the rows of each follow each other, as products like it.
    gate, v, z = (F.silu(t).view(-1, piece.w, t.shape[2]) for t in given(work, piece))
    if work.new is not None:
        v.masked_fill_(unreal(work.new, piece), 0)
    if work.paired:
        z = unpair(z, work.paired)
    gamma = work.gamma[:, None, None]
    four = z * gamma if work.beta is None else torch.addcmul(work.beta[:, None, None], z, gamma)
    if work.cos is not None and work.sin is not None:
        four = turned(work.cos[piece.tokens], work.sin[piece.tokens], four)
    return Parts(gate, v, z, four)


def given(work: Work, piece: Piece) -> tuple[Tensor, ...]:
    """Gate, values and base of a piece before their activation."""
    return work.hidden[piece.batch, piece.tokens].split(work.widths, -1)


def unpair(z: Float[Tensor, "g w k"], paired: int) -> Float[Tensor, "g w k"]:
    """The first members of all pairs, then the second ones, then what has no pair."""
    moved = torch.empty_like(z, memory_format=torch.contiguous_format)
    for place, taken in halves(paired):
        moved[..., place] = z[..., taken]
    moved[..., paired:] = z[..., paired:]
    return moved


def halves(paired: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where the first and the second members of pairs go, and where they are taken from."""
    middle = paired // 2
    return (slice(0, middle), slice(0, paired, 2)), (slice(middle, paired), slice(1, paired, 2))


def restored(moved: Float[Tensor, "g w k"], paired: int) -> Float[Tensor, "g w k"]:
    """The inverse of `unpair`."""
    z = torch.empty_like(moved)
    for place, taken in halves(paired):
        z[..., taken] = moved[..., place]
    z[..., paired:] = moved[..., paired:]
    return z


def turned(
    cos: Float[Tensor, "n r"], sin: Float[Tensor, "n r"], four: Float[Tensor, "4 g w k"], back: bool = False
) -> Float[Tensor, "4 g w k"]:
    """The first r channels rotated (or back) by the tables of the piece's tokens; it may take the memory of `four`."""
    length, r = cos.shape
    part = four.view(4, -1, length, four.shape[3])[..., :r]
    ahead, behind = sin.chunk(2, -1)[::-1] if back else sin.chunk(2, -1)
    moved = part * cos
    moved[..., : r // 2].addcmul_(part[..., r // 2 :], ahead)
    moved[..., r // 2 :].addcmul_(part[..., : r // 2], behind)
    if r == four.shape[3]:
        return moved.view(four.shape)
    part.copy_(moved)
    return four


def unreal(new: Int[Tensor, " b"], piece: Piece) -> Bool[Tensor, "g w 1"]:
    """Which tokens of a piece do not exist."""
    index = torch.arange(piece.tokens.start, piece.tokens.stop, device=new.device)
    return (index >= new[piece.batch, None]).view(-1, piece.w, 1)


def bands(w: int, like: Tensor) -> list[tuple[int, int]]:
    """The rows of a group in bands where that is worth it: none sees keys of those behind it."""
    if w < LEAST or like.element_size() < 4:
        return [(0, w)]
    rows = BAND if like.device.type == "cpu" else (w + 1) // 2
    return [(low, min(low + rows, w)) for low in range(0, w, rows)]


def band_scores(work: Work, parts: Parts, low: int, high: int) -> Float[Tensor, "g i j"]:
    """Scores of the queries low .. high against the keys before `high`."""
    q, k = parts.four[0][:, low:high], parts.four[2][:, :high]
    if work.bias is None:
        return torch.bmm(q, k.mT).mul_(work.settings.scale)
    return torch.baddbmm(work.bias[:, low:high, :high], q, k.mT, alpha=work.settings.scale)


def share(work: Work, group: int) -> float:
    """What the sum of the groups before a group is multiplied by."""
    return 1 / max(group + work.settings.start, 1) if work.settings.mean else 1.0


def shares(work: Work, piece: Piece) -> Float[Tensor, "g 1 1"] | float:
    """What the sums of the groups before are multiplied by, for each group of a piece."""
    if not work.settings.mean:
        return 1.0
    number = torch.arange(piece.group, piece.group + piece.groups, device=work.hidden.device) + work.settings.start
    exact = torch.promote_types(work.hidden.dtype, torch.float32)
    return (1 / number.clamp(min=1).to(exact))[:, None, None]
