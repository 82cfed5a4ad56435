"""The sums that cross groups in the fused FLASH kernel: what each group reads, and what its gradient passes on."""

import torch

from ...base.shapes import Float, Tensor
from .fused_pieces import Parts, Piece, Work, share, shares

__all__ = ["carry_back", "read_and_carry"]

# Groups of a piece up to which they are summed one after the other, for cumsum is slow: around it all of them are gone
# over in float32 several times. On a CPU few calls count, elsewhere few bytes.
ONE_BY_ONE = {"cpu": 8}
ONE_BY_ONE_ELSEWHERE = 64


def read_and_carry(
    work: Work, piece: Piece, parts: Parts, total: Float[Tensor, "b k e"], seen: Float[Tensor, "b g k e"]
) -> None:
    """What the groups of a piece read of those before them, into `seen`; `total` becomes the sum up to their end."""
    w, far_k = work.settings.w, parts.four[3]
    if piece.groups == 1:
        torch.mul(total, share(work, piece.group), out=seen[:, 0])
        if piece.w == w:
            add_product(total, far_k.mT, parts.v, 1 / w)
        return
    kv = torch.bmm(far_k.mT, parts.v).unflatten(0, (-1, piece.groups))
    if are_few(work, piece):
        for i in range(piece.groups):
            torch.mul(total, share(work, piece.group + i), out=seen[:, i])
            total.add_(kv[:, i], alpha=1 / w)
        return
    kv = kv.to(total.dtype) / w
    sums = torch.cat((total[:, None], kv[:, :-1]), 1).cumsum(1)
    total.copy_(sums[:, -1] + kv[:, -1])
    seen.copy_(sums * shares(work, piece))


def are_few(work: Work, piece: Piece) -> bool:
    """Whether the groups of a piece are summed one after the other."""
    return piece.groups <= ONE_BY_ONE.get(work.hidden.device.type, ONE_BY_ONE_ELSEWHERE)


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
    if are_few(work, piece):
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
