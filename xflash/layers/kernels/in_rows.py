"""Causal FLASH over packed documents where they lie: sizes that depend on the data are nowhere, so nobody has to look.

A document's groups begin where it begins, so that a group lies in two neighbouring blocks of w tokens at most: inside
groups, each block looks at itself and the one before. Across groups, only full ones are summed, and of these a row has
n // w at most, however many documents it has. `packed` with a look at the data gives the same.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...base.looks import transformed
from ...base.shapes import Bool, Float, Int, Tensor
from ...base.state import document_starts
from .groups import place
from .mixed_chunk import WEIGHTS, Heads, Spec, outer, product, read
from .relative import distances

__all__ = ["Runs", "in_rows", "runs", "stays_in_rows"]


def stays_in_rows(doc_ids: Int[Tensor, "b n"]) -> bool:
    """Whether documents are left where they lie: where a look at their lengths would make the host wait."""
    return doc_ids.device.type != "cpu" and not (torch.compiler.is_compiling() or transformed())


class Runs(NamedTuple):
    """Where tokens stand in their groups, and the full groups of each row in order.

    slot: each token's place in its group.  before: the full group in front of the token's own in its document, `f`
    where there is none.  end: the last token of each full group, n where a row has no more.  closed: how many groups
    of its document end there.  owner: the number of that document.
    """

    slot: Int[Tensor, "b n"]
    before: Int[Tensor, "b n"]
    end: Int[Tensor, "b f"]
    closed: Int[Tensor, "b f"]
    owner: Int[Tensor, "b f"]


def runs(doc_ids: Int[Tensor, "b n"], real: Bool[Tensor, "b n"] | None, w: int) -> Runs:
    """The groups of packed documents; what stands behind a row's last token belongs to its last document."""
    n = doc_ids.shape[1]
    first = document_starts(doc_ids) if real is None else document_starts(doc_ids) & real
    index = torch.arange(n, device=doc_ids.device)
    position = index - torch.where(first, index, 0).cummax(1).values
    slot = position % w
    ends = slot == w - 1
    count = ends.cumsum(1)
    most = n // w
    end = torch.searchsorted(count, torch.arange(1, most + 1, device=count.device).expand(len(count), -1).contiguous())
    before = torch.where(position >= w, count - ends.long() - 1, most)
    last = end.clamp(max=n - 1)
    return Runs(slot, before, end, (position.gather(1, last) + 1) // w, first.cumsum(1).gather(1, last))


def in_rows(t: Heads, spec: Spec, where: Runs) -> Float[Tensor, "b n e"]:
    """Rows of packed documents, each of which sees nothing of the others."""
    y = near(t, spec, where.slot)
    return y + across(t, spec, where) if where.end.shape[1] else y


def near(t: Heads, spec: Spec, slot: Int[Tensor, "b n"]) -> Float[Tensor, "b n e"]:
    """What tokens read inside their groups."""
    w, layout = spec.w, place(t.v.shape[1], spec.w, 0)
    q, k, v = (layout.put(part) for part in (t.q, t.k, t.v))
    # Behind the last token there is nothing to see, and nobody sees.
    inside = layout.put(slot[..., None])[..., 0]
    back = torch.arange(w, device=slot.device)[:, None] + w - torch.arange(2 * w, device=slot.device)
    bias = None
    if spec.bias is not None:
        bias = spec.bias(distances(w, w, slot.device))[0][(w - 1 - back).clamp(0, w - 1)].to(q.dtype)
    scores = product(bias, q, both(k).mT, spec.scale)
    scores = scores.masked_fill((back < 0) | (back > inside[..., None]), -math.inf)
    weights = WEIGHTS[spec.fn](scores)
    if spec.dropout:
        weights = F.dropout(weights, spec.dropout)
    return layout.take(product(None, weights.to(v.dtype), both(v), 1 / spec.divide))


def both(t: Float[Tensor, "b g w _"]) -> Float[Tensor, "b g 2w _"]:
    """Each block behind the one before it."""
    return torch.cat((F.pad(t, (0, 0, 0, 0, 1, -1)), t), 2)


def across(t: Heads, spec: Spec, where: Runs) -> Float[Tensor, "b n e"]:
    """What tokens read of the full groups of their documents that were closed before their own."""
    w, n, most = spec.w, t.v.shape[1], where.end.shape[1]
    tokens = (where.end[..., None] - torch.arange(w - 1, -1, -1, device=where.end.device)).clamp(max=n - 1).flatten(1)
    far_k, v = (picked(part, tokens).unflatten(1, (most, w)) for part in (t.far_k, t.v))
    kv = outer(far_k, v, w)
    alike = (where.owner[:, :, None] == where.owner[:, None]) & (where.end < n)[:, None]
    mix = alike.tril().to(kv.dtype)
    if spec.normaliser == "mean":
        mix = mix / where.closed[..., None]
    sums = (mix @ kv.flatten(2)).view_as(kv)
    at = (where.before * w + where.slot)[..., None]
    # Tokens with no group to read go behind the last one, where nobody reads.
    queries = t.far_q.new_zeros(len(at), (most + 1) * w, t.far_q.shape[2])
    queries = queries.scatter(1, at.expand_as(t.far_q), t.far_q)[:, : most * w]
    far = read(queries.unflatten(1, (most, w)), sums).flatten(1, 2)
    return torch.where((where.before < most)[..., None], picked(far, at[..., 0].clamp(max=most * w - 1)), 0)


def picked(t: Float[Tensor, "b n _"], index: Int[Tensor, "b m"]) -> Float[Tensor, "b m _"]:
    """The tokens that are named, row by row."""
    return t.gather(1, index[..., None].expand(-1, -1, t.shape[2]))
