"""Forgetful causal masking: while a model is trained, some of the tokens that it has seen are hidden from it."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ..base.checks import as_attn_mask
from ..base.frozen import frozen
from ..base.registry import blocks
from ..base.shapes import Bool, Int, Tensor
from ..flags.flag import flag
from .hiding import SLACK, random_subset
from .targets import next_tokens

__all__ = ["Forgetful", "check_can_forget", "forgetful"]


@frozen
class Forgetful:
    """What of a row is hidden from the tokens behind it."""

    mask_prob: float = flag(
        0.0, "share of each row's tokens that later ones do not see, drawn anew in each call while training",
        at_least=0, below=1, paper="https://arxiv.org/abs/2210.13432", tried=(0.3,),
    )  # fmt: skip


def check_can_forget(net: Any, mask_prob: float) -> None:
    """TypeError or ValueError for a share above 0 and a net that cannot hide single tokens from later ones."""
    if not mask_prob:
        return
    hides = f"mask_prob={mask_prob} hides tokens by attn_mask"
    if "attn_mask" not in inspect.signature(net.forward).parameters:
        raise TypeError(f"{hides}, which {type(net).__name__}.forward does not take")
    stack = getattr(net, "attn_layers", None)
    for block in () if stack is None else stack.blocks():
        if "attn_mask" not in block.honours:
            able = ", ".join(name for name in blocks if "attn_mask" in blocks[name].honours)
            raise ValueError(f"{hides}, which {type(block).__name__} cannot honour; blocks that can: {able}")


def forgetful(
    x: Int[Tensor, "b n"],
    mask: Bool[Tensor, "b n"] | None,
    doc_ids: Int[Tensor, "b n"] | None,
    beside: Mapping[str, Any],
    mask_prob: float,
) -> Bool[Tensor, "b h m m"]:
    """The attn_mask of a call with `beside` in which a random `mask_prob` of each row's tokens is hidden.

    No token is hidden from itself, nor the first of a row or a document, nor what stands in front of the tokens. The
    chance comes from torch's own generator. Where an attn_mask is given, both hold.
    """
    (b, n), front = x.shape, beside.get("prepend_embeds")
    p = front.shape[1] if isinstance(front, torch.Tensor) and front.dim() == 3 else 0
    # What follows a token of its document is not the first of one; the first place stands for what follows nothing.
    places = torch.arange(n, device=x.device).expand(b, n)
    following = next_tokens(places, mask, doc_ids, 0)
    allowed = torch.zeros(b, n, dtype=torch.bool, device=x.device).scatter(1, following, True)
    allowed[:, 0] = False
    real = torch.full((b,), n, device=x.device) if mask is None else mask.sum(1)
    hidden = random_subset(allowed, (real * mask_prob + SLACK).floor().long())
    seen = F.pad(~hidden, (p, 0), value=True)[:, None, None]
    seen = seen | torch.eye(p + n, dtype=torch.bool, device=x.device)
    given = beside.get("attn_mask")
    if given is None:
        return seen
    heads = {given.shape[1]} if isinstance(given, torch.Tensor) and given.dim() == 4 else {1}
    return seen & as_attn_mask(given, b, p + n, heads)
