"""The sums that cross groups in the fused FLASH kernel: what each group reads, and what its gradient passes on."""

import torch

from ...base.shapes import Float, Tensor
from .fused_pieces import Parts, Piece, Work, share, shares

__all__ = ["carry_back", "read_and_carry"]

# Groups of a piece up to which they are summed one after the other, for cumsum is slow.
ONE_BY_ONE = 8


def read_and_carry(work: Work, piece: Piece, parts: Parts, total: Float[Tensor, "b k e"]) -> Float[Tensor, "g k e"]:
    """What the groups of a piece read of those before them; `total` becomes the sum up to their end."""
    w, far_k, read = work.settings.w, parts.four[3], parts.v.dtype
    if piece.groups == 1:
        before = (total * share(work, piece.group)).to(read, copy=True)
        if piece.w == w:
            add_product(total, far_k.mT, parts.v, 1 / w)
        return before
    kv = torch.bmm(far_k.mT, parts.v).unflatten(0, (-1, piece.groups))
    if piece.groups <= ONE_BY_ONE:
        seen = torch.empty_like(kv)
        for i in range(piece.groups):
            torch.mul(total, share(work, piece.group + i), out=seen[:, i])
            total.add_(kv[:, i], alpha=1 / w)
        return seen.flatten(0, 1)
    kv = kv.to(total.dtype) / w
    seen = torch.cat((total[:, None], kv[:, :-1]), 1).cumsum(1)
    total.copy_(seen[:, -1] + kv[:, -1])
    return (seen * shares(work, piece)).to(read).flatten(0, 1)


def carry_back(
    work: Work, piece: Piece, parts: Parts, dy: Tensor, above: Float[Tensor, "b k e"]
) -> Float[Tensor, "g k e"] | None:
    """The gradient of each group's far_k v^T, None of an open group; `above`, that of the sums behind a piece, becomes
    that of those before it."""
    w, far_q = work.settings.w, parts.four[1]
    if piece.groups == 1:
        given = (above / w).to(dy.dtype) if piece.w == w else None
        add_product(above, far_q.mT, dy, share(work, piece.group))
        return given
    read = torch.bmm(far_q.mT, dy).unflatten(0, (-1, piece.groups))
    if piece.groups <= ONE_BY_ONE:
        given = torch.empty_like(read)
        for i in reversed(range(piece.groups)):
            torch.mul(above, 1 / w, out=given[:, i])
            above.add_(read[:, i], alpha=share(work, piece.group + i))
        return given.flatten(0, 1)
    read = read.to(above.dtype) * shares(work, piece)
    later = torch.cat((read[:, 1:], above[:, None]), 1).flip(1).cumsum(1).flip(1)
    above += read.sum(1)
    return (later / w).to(dy.dtype).flatten(0, 1)


def add_product(total: Float[Tensor, "b i j"], left: Tensor, right: Tensor, alpha: float) -> None:
    """Adds alpha * left @ right in the dtype of the sum."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right, alpha=alpha)
    else:
        total.add_(torch.bmm(left, right), alpha=alpha)
