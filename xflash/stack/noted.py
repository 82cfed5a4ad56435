"""`Noted`: what a call keeps of its layers beside their output, where it is asked to."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from ..base.checks import check_switches
from ..base.registry import blocks
from ..base.shapes import Float, Tensor
from ..base.state import AttentionMap
from ..flags.flag import flags_of
from ..layers.blocks.block import Block
from .door import Plan, unpack, unpack_columns, unpack_rows

__all__ = ["Noted", "check_noted", "loss_flags", "noting"]

# How the names of flags end that give a block a loss.
LOSS = "_loss"


class Noted(NamedTuple):
    """Lists that a call fills, None for what is not asked for.

    maps: the matrices of the layers that have one.  hiddens: the stream as the first layer gets it, as each layer
    leaves it, and as the stack gives it.  losses: the sums of which the layers' own losses are made.  shown: what
    blocks show of themselves of what they are `asked`, each with its block and its name.
    """

    maps: list[AttentionMap] | None = None
    hiddens: list[Tensor] | None = None
    losses: list[Tensor] | None = None
    shown: list[tuple[Block, str, Any]] | None = None
    asked: tuple[str, ...] = ()

    def unpack(self, plan: Plan | None, memory: int, before: int | None = None) -> None:
        """Everything back to where the caller's tokens stand, `memory` tokens in front left out.

        before: how many memory tokens a state has seen, whose other tokens nobody knows a place of: those are what the
        columns of a matrix begin with then, in their order.  None: there is no state.
        """
        if self.maps is not None:
            self.maps[:] = [unpacked_map(found, plan, memory, before) for found in self.maps]
        if self.hiddens is not None:
            self.hiddens[:] = [unpacked(x, plan, memory) for x in self.hiddens]
        if self.shown is not None:
            self.shown[:] = [
                (block, kind, unpacked_map(t, plan, memory, before).weights)
                if isinstance(t, AttentionMap)
                else (block, kind, unpacked(t, plan, memory))
                for block, kind, t in self.shown
            ]

    def join(self, pieces: "list[Noted]") -> None:
        """What pieces of the tokens have noted, put together."""
        if self.hiddens is not None:
            found = zip(*(piece.hiddens or () for piece in pieces), strict=True)
            self.hiddens.extend(torch.cat(parts, 1) for parts in found)
        if self.losses is not None:
            found = zip(*(piece.losses or () for piece in pieces), strict=True)
            self.losses.extend(torch.stack(parts).sum(0) for parts in found)
        if self.shown is not None:
            found = zip(*(piece.shown or () for piece in pieces), strict=True)
            self.shown.extend((*parts[0][:2], torch.cat([t for *_, t in parts], 1)) for parts in found)

    def alike(self) -> "Noted":
        """Empty lists where this has lists, for a piece of the tokens."""
        return Noted(*(None if kept is None else [] for kept in self[:-1]), self.asked)

    def given(self, column: Iterable[Block] = ()) -> tuple[Any, ...]:
        """What the caller is given of it: matrices, then streams, then the loss of the layers of the column."""
        maps = () if self.maps is None else ([found.weights for found in self.maps],)
        hiddens = () if self.hiddens is None else (self.hiddens,)
        return (*maps, *hiddens) if self.losses is None else (*maps, *hiddens, weighed(column, self.losses))


def noting(hiddens: bool, loss: bool = False, mapped: Iterable[Block] | None = None) -> Noted | None:
    """Where a call is to note what it is asked for; None where that is nothing.

    mapped: the blocks whose matrices are asked for.  ValueError with the reason when one of them cannot give its own.
    """
    check_switches(return_hiddens=hiddens, return_auxiliary_loss=loss)
    for block in mapped or ():
        if block.refuses_maps():
            raise ValueError(f"attention matrices are asked for, but {block.refuses_maps()}")
    if mapped is None and not hiddens and not loss:
        return None
    return Noted(None if mapped is None else [], [] if hiddens else None, [] if loss else None)


def weighed(column: Iterable[Block], losses: list[Tensor]) -> Float[Tensor, ""]:
    """The mean over the layers that have a loss of a call of what it is; ValueError where none has."""
    able = [block for block in column if block.weighs()]
    if not able:
        ways = " or ".join(f"{name}_{block.weighed_by}" for name, block in blocks.items() if block.weighed_by)
        raise ValueError(
            f"return_auxiliary_loss=True, but no layer has a loss of a call ({ways} gives one); auxiliary_loss(state) "
            "gives what states hold"
        )
    return torch.stack([block.weigh(sums) for block, sums in zip(able, losses, strict=True)]).mean()


def loss_flags(column: Iterable[Block]) -> list[str]:
    """The flags by which layers have a loss of a call, with what they are set to."""
    losing = [(blocks.name_of(type(block)), block.config) for block in column if block.weighs()]
    set_here = [(kind, f, getattr(config, f)) for kind, config in losing for f in flags_of(type(config)) if LOSS in f]
    return list(dict.fromkeys(f"{kind}_{name}={value}" for kind, name, value in set_here if value))


def check_noted(noted: Noted, layout: str) -> None:
    """ValueError when matrices were asked for and no layer has one."""
    if noted.maps is not None and not noted.maps:
        able = ", ".join(name for name, block in blocks.items() if block.has_matrix)
        raise ValueError(f"no block of the layout {layout!r} has an attention matrix (have one: {able})")


def unpacked(t: Float[Tensor, "b n *_"], plan: Plan | None, memory: int) -> Float[Tensor, "b n *_"]:
    """What there is of each token back where the caller's tokens stand."""
    t = t[:, memory:] if memory else t
    return t if plan is None else unpack(t.flatten(2) if t.dim() > 2 else t[..., None], plan).view_as(t)


def unpacked_map(found: AttentionMap, plan: Plan | None, memory: int, before: int | None) -> AttentionMap:
    """A map with its rows, and its columns if they are the tokens of this call, where the caller's tokens stand."""
    weights = found.weights[..., memory:, :]
    if found.over_tokens:
        weights = unpack_columns(weights[..., memory:], plan) if before is None else weights[..., before:]
    return AttentionMap(unpack_rows(weights, plan), found.over_tokens)
