"""How tokens are laid out in groups of w slots, and what is carried on from the groups to the next call."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...shapes import Bool, Float, Int, Tensor
from ...state import document_starts

__all__ = ["Documents", "FlashState", "Padded", "Scattered", "append", "carry", "document_groups", "group_count", "place"]

# Older than torch 2.6: no graph can be told from an exported one.
EXPORTING = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


class FlashState(NamedTuple):
    """What causal FLASH carries, of constant size; a fresh row is all zeros, and so are the slots not filled yet.

    closed: sum of far_k v^T over the closed groups, float32 at least.  open: the same of the open group.
    keys, values: the open group's.
    """

    closed: Float[Tensor, "b k e"]
    open: Float[Tensor, "b k e"]
    keys: Float[Tensor, "b w k"]
    values: Float[Tensor, "b w e"]


class Padded(NamedTuple):
    """Token j of every row in slot `offset` + j, zeros elsewhere; `head` is what stands in front of it."""

    groups: int
    w: int
    n: int
    offset: int = 0

    def put(self, t: Float[Tensor, "b n _"], head: Float[Tensor, "b w _"] | None = None) -> Float[Tensor, "b g w _"]:
        behind = self.groups * self.w - self.offset - self.n
        # A padding of nothing would still copy; a graph must not ask.
        exact = not torch.compiler.is_compiling() and self.offset + behind == 0
        padded = t if exact else F.pad(t, (0, 0, self.offset, behind))
        if head is not None:
            padded[:, : self.offset] = head[:, : self.offset]
        return padded.unflatten(1, (-1, self.w))

    def take(self, y: Float[Tensor, "b g w _"]) -> Float[Tensor, "b n _"]:
        flat = y.flatten(1, 2)
        if not torch.compiler.is_compiling():
            return flat[:, self.offset : self.offset + self.n]
        # The bound of a slice would be a guard on the length, which keeps a dynamic one from being exported.
        return F.pad(flat, (0, 0, -self.offset, self.offset + self.n - self.groups * self.w))


class Scattered(NamedTuple):
    """Token j of row b in slot `slot[b, j]`, zeros elsewhere; `head` is what stands in the first group already."""

    groups: int
    w: int
    slot: Int[Tensor, "b n"]

    def put(self, t: Float[Tensor, "b n _"], head: Float[Tensor, "b w _"] | None = None) -> Float[Tensor, "b g w _"]:
        b, _, width = t.shape
        canvas = t.new_zeros(b, self.groups * self.w, width)
        if head is not None:
            canvas[:, : self.w] = head
        return canvas.scatter(1, self.slot[..., None].expand_as(t), t).unflatten(1, (-1, self.w))

    def take(self, y: Float[Tensor, "b g w _"]) -> Float[Tensor, "b n _"]:
        flat = y.flatten(1, 2)
        return flat.gather(1, self.slot[..., None].expand(-1, -1, flat.shape[2]))


def group_count(n: int, w: int) -> int:
    """How many groups hold n slots; in an exported graph one to spare."""
    if torch.compiler.is_compiling():
        # A graph for 1 group and one for more; an exported graph cannot tell them apart, so it never has only 1.
        if EXPORTING():
            return (n + 2 * w - 1) // w
        return 1 if n <= w else (n + w - 1) // w
    return -(-n // w)


def place(n: int, w: int, fill: int | Int[Tensor, " b"]) -> Padded | Scattered:
    """The layout of n new tokens behind the `fill` that the open group of every row (or each row) has already."""
    if isinstance(fill, int):
        return Padded(group_count(fill + n, w), w, n, fill)
    slot = fill[:, None] + torch.arange(n, device=fill.device)
    return Scattered(group_count(n + w - 1, w), w, slot)


class Documents(NamedTuple):
    """Packed documents, each in groups of its own: where the tokens go, and which document a group belongs to (-1: none)."""

    layout: Scattered
    owner: Int[Tensor, "b g"]

    def mix(self, causal: bool) -> Bool[Tensor, "b g g"]:
        """Which groups (last axis) the far part of each group sums over: those of its document, closed ones if causal."""
        same = (self.owner[:, :, None] == self.owner[:, None]) & (self.owner >= 0)[:, None]
        return same.tril(-1) if causal else same

    def alone(self) -> Bool[Tensor, "b g g"]:
        """As `mix`, with every group summing over itself only."""
        return torch.diag_embed(self.owner >= 0)


def document_groups(doc_ids: Int[Tensor, "b n"], real: Bool[Tensor, "b n"] | None, w: int, most: int | None) -> Documents:
    """Gives every document groups of its own, so that it is computed as if it stood alone.

    `most` documents a row size the canvas without a look at the data; None looks, which cannot be compiled.
    Raises ValueError when a row has more, or when `most` is missing while torch compiles.
    """
    b, n = doc_ids.shape
    first = document_starts(doc_ids)
    if real is not None:
        # What stands behind a row's last token belongs to its last document, lest it take groups of its own.
        first = first & real
        first[:, 0] = True
    index = torch.arange(n, device=doc_ids.device)
    position = index - torch.where(first, index, 0).cummax(1).values
    group = (position % w == 0).cumsum(1) - 1
    if most is None:
        if torch.compiler.is_compiling():
            raise ValueError("doc_ids in a compiled flash layer need flash_max_documents, the most documents in a row")
        groups = int(group[:, -1].max()) + 1
    else:
        groups = n // w + most
        if not torch.compiler.is_compiling() and doc_ids.device.type == "cpu" and int(group[:, -1].max()) >= groups:
            found = int(first.sum(1).max())
            raise ValueError(f"a row has {found} documents, but flash_max_documents={most}")
    owner = torch.full((b, groups), -1, device=doc_ids.device).scatter(1, group, first.cumsum(1))
    return Documents(Scattered(groups, w, group * w + position % w), owner)


def append(buffer: Float[Tensor, "b w _"], t: Float[Tensor, "b n _"], at: int, in_place: bool) -> Float[Tensor, "b w _"]:
    """The buffer with t in slots at .. at + n - 1."""
    if in_place:
        buffer[:, at : at + t.shape[1]] = t
        return buffer
    return torch.cat((buffer[:, :at], t.to(buffer.dtype), buffer[:, at + t.shape[1] :]), 1)


def pick(t: Float[Tensor, "b g x y"], group: Int[Tensor, " b"]) -> Float[Tensor, "b x y"]:
    """The group that each row names; zeros for a row that names the one past the last."""
    chosen = t[torch.arange(t.shape[0], device=t.device), group.clamp(max=t.shape[1] - 1)]
    return chosen.masked_fill((group == t.shape[1])[:, None, None], 0)


def carry(
    closed: Float[Tensor, "b k e"] | None,
    kv: Float[Tensor, "b g k e"],
    keys: Float[Tensor, "b g w k"],
    values: Float[Tensor, "b g w e"],
    full: Int[Tensor, " b"],
) -> FlashState:
    """The state after groups of which each row has filled the first `full`; groups are committed when full, never before."""
    done = torch.arange(kv.shape[1], device=kv.device) < full[:, None]
    total = torch.where(done[..., None, None], kv, 0).sum(1)
    return FlashState(total if closed is None else closed + total, pick(kv, full), pick(keys, full), pick(values, full))
