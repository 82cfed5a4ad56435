"""What `fused_groups` computes by PyTorch's own means, for derivatives of its gradients."""

from typing import Any

import torch
import torch.nn.functional as F

from ...base.shapes import Float, Tensor
from .carried import before
from .fused_pieces import Settings, unpair
from .groups import place
from .mixed_chunk import outer, read
from .operators import gradients_of
from .relative import toeplitz
from .tiled import laplace

__all__ = ["differentiable", "plain_groups"]


def differentiable(ctx: Any, held: tuple, *above: Tensor | None) -> tuple:
    """The backward of `flash_groups`, for which `held` was saved, where its gradients are to be differentiated."""
    hidden, gamma, beta, vector, cos, sin, new, _, _, closed = held
    *settings, paired = ctx.settings

    def slow(*given):
        return plain_groups(*given, cos, sin, new, Settings(*settings), paired)

    needed = ctx.needs_input_grad
    *found, dclosed = gradients_of(slow, (hidden, gamma, beta, vector, closed), (*needed[:4], needed[6]), above)
    return *found, None, None, dclosed, *[None] * 9


def plain_groups(
    hidden, gamma, beta, vector, closed, cos, sin, new, settings: Settings, paired: int
) -> tuple[Float[Tensor, "b n e"], Float[Tensor, "b k e"]]:
    """The arguments and results of the operator `flash_groups`, all weights at once."""
    n, k, w = hidden.shape[1], gamma.shape[1], settings.w
    e = (hidden.shape[2] - k) // 2
    gate, v, z = F.silu(hidden).split((e, e, k), -1)
    if new is not None:
        v = v.masked_fill(torch.arange(n, device=v.device)[:, None] >= new[:, None, None], 0)
    four = (unpair(z, paired) if paired else z) * gamma[:, None, None].to(z.dtype)
    four = four if beta is None else four + beta[:, None, None].to(z.dtype)
    four = four if cos is None else rotated(four, cos, sin)
    layout = place(n, w, 0)
    q, far_q, near, far_k = (layout.put(t) for t in four)
    v = layout.put(v)
    scores = q @ near.mT * settings.scale
    scores = scores if vector is None else scores + toeplitz(vector, w, w).to(scores.dtype)
    # Not by -inf ahead, whose derivatives are NaN.
    weights = (scores.relu().square() if settings.attn_fn == "relu2" else laplace(scores)).tril()
    # An open group adds nothing to the sums.
    kv = outer(far_k, v, w)[:, : n // w]
    seen = before(F.pad(kv, (0, 0, 0, 0, 0, layout.groups - n // w)), closed)
    if settings.mean:
        number = torch.arange(layout.groups, device=v.device) + settings.start
        seen = seen / number.clamp(min=1)[:, None, None]
    y = layout.take(weights @ v / settings.divide + read(far_q, seen))
    return gate * y, kv.sum(1) if closed is None else kv.sum(1) + closed


def rotated(t: Float[Tensor, "*b n k"], cos: Float[Tensor, "n r"], sin: Float[Tensor, "n r"]) -> Float[Tensor, "..."]:
    turned, rest = t[..., : cos.shape[1]], t[..., cos.shape[1] :]
    return torch.cat((turned * cos + turned.roll(cos.shape[1] // 2, -1) * sin, rest), -1)
