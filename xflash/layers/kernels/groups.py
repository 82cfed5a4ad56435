"""How the tokens of FLASH are laid out in groups of w slots: padded, each in a slot of its own, or by document."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...base.looks import has_values, is_exporting, within
from ...base.shapes import Bool, Float, Int, Tensor
from ...base.state import document_starts

__all__ = ["Documents", "Padded", "Scattered", "document_groups", "group_count", "join_groups", "part_groups", "place"]


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
        if self.offset and head is not None:
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
        canvas = t.new_zeros(t.shape[0], self.groups * self.w, t.shape[2])
        if head is not None:
            canvas[:, : self.w] = head
        return canvas.scatter(1, self.slot[..., None].expand_as(t), t).unflatten(1, (-1, self.w))

    def take(self, y: Float[Tensor, "b g w _"]) -> Float[Tensor, "b n _"]:
        flat = y.flatten(1, 2)
        return flat.gather(1, self.slot[..., None].expand(-1, -1, flat.shape[2]))


def group_count(n: int, w: int) -> int:
    """How many groups hold n slots; in an exported graph one to spare."""
    if torch.compiler.is_compiling():
        # One graph for a single group and one for more; an exported graph is only one, so it never has a single group.
        if is_exporting():
            return (n + 2 * w - 1) // w
        return 1 if n <= w else (n + w - 1) // w
    return -(-n // w)


def join_groups(t: Float[Tensor, "b g *_"]) -> Float[Tensor, "bg *_"]:
    """The groups of all rows in one axis, for what looks at each alone."""
    # Of b rows with an unknown number of groups an exported graph could not tell b from b g.
    return (t.transpose(0, 1) if is_exporting() else t).flatten(0, 1)


def part_groups(t: Float[Tensor, "bg *_"], b: int, g: int) -> Float[Tensor, "b g *_"]:
    """What `join_groups` joined."""
    return t.unflatten(0, (g, b)).transpose(0, 1) if is_exporting() else t.unflatten(0, (b, g))


def place(n: int, w: int, fill: int | Int[Tensor, " b"]) -> Padded | Scattered:
    """The layout of n new tokens behind the `fill` that the open group of every row (or each row) has already."""
    if isinstance(fill, int):
        return Padded(group_count(fill + n, w), w, n, fill)
    slot = fill[:, None] + torch.arange(n, device=fill.device)
    return Scattered(group_count(n + w - 1, w), w, slot)


class Documents(NamedTuple):
    """Packed documents in groups of their own: the layout, the slots they fill, whose each group is (-1: none)."""

    layout: Scattered
    filled: Bool[Tensor, "b g w"]
    owner: Int[Tensor, "b g"]

    def mix(self, causal: bool, alone: bool) -> Bool[Tensor, "b g g"]:
        """Which groups (last axis) the far part of each group sums over.

        Those of its document, closed ones if causal; with `alone` each group only itself.
        """
        if alone:
            return torch.diag_embed(self.owner >= 0)
        same = (self.owner[:, :, None] == self.owner[:, None]) & (self.owner >= 0)[:, None]
        return same.tril(-1) if causal else same


def document_groups(
    doc_ids: Int[Tensor, "b n"], real: Bool[Tensor, "b n"] | None, w: int, most: int | None
) -> Documents:
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
    number = first.cumsum(1)
    if most is not None:
        number = within(number, 1, most, "a row of doc_ids has {most} documents, but flash_max_documents={high}")
        # Read by what follows: a graph would put tokens into groups that are not there before it looks.
        group = torch.where(number > 0, group, 0)
    groups = canvas_size(group, n // w, most)
    layout = Scattered(groups, w, group * w + position % w)
    exists = torch.ones_like(first) if real is None else real
    owner = torch.full((b, groups), -1, device=doc_ids.device).scatter(1, group, number)
    return Documents(layout, layout.put(exists[..., None])[..., 0], owner)


def canvas_size(group: Int[Tensor, "b n"], whole: int, most: int | None) -> int:
    """How many groups the fullest row takes, or a bound on it from the number of documents."""
    if most is None:
        if not has_values(group):
            raise ValueError(
                "doc_ids in a compiled or transformed flash layer need flash_max_documents, the most documents in a row"
            )
        return int(group[:, -1].max()) + 1 if group.shape[0] else 1
    return whole + most
