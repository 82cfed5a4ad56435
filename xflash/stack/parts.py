"""What a stack is put together from, and what it does with a state or a map, apart from the way of a tensor."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F

from ..base.registry import blocks as registered
from ..base.registry import excerpt, joins, norms, reads, scales
from ..base.shapes import Bool, Float, Tensor
from ..base.state import StackState
from ..layers.apart import Apart
from ..layers.blocks.block import Block
from ..layers.blocks.parallel import Parallel
from ..layers.branch import BEFORE, BEHIND, SUMMED, Branch
from ..layers.clamped import Clamped
from ..layers.norms import Norm
from ..layers.shift import TokenShift
from ..layers.site import Site
from .around import Chosen
from .layers import Layer
from .order import places_of
from .resolve import Resolved

__all__ = ["auxiliary_loss", "make_branch", "make_last", "make_norm", "publishing", "renewed", "sites_of"]


def publishing(blocks: Sequence[Block], order: Sequence[int], layout: str) -> int | None:
    """After how many tokens layers with state vectors may be read anew by others; None: none are.

    ValueError for one that no layer reads, and for one that is to be read and is not there.
    """
    places = [block for i in order for block, _ in blocks[i].members() if block.publishes]
    wanted = {number for holder in blocks for block, _ in holder.members() for number in block.reads_states()}
    for number, block in enumerate(places, 1):
        if number not in wanted and not block.reads_own:
            raise ValueError(
                f"no layer of the layout {excerpt(layout)} reads the state vectors of its "
                f"{registered.name_of(type(block))} layer {number}"
            )
    if not wanted:
        return None
    if max(wanted) > len(places):
        able = " or ".join(name for name, block in registered.items() if block.publishes)
        raise ValueError(
            f"the state vectors of {able} layer {max(wanted)} are to be read, but the layout {excerpt(layout)} has "
            f"{len(places)}"
        )
    widths = {places[number - 1].publishes_every() for number in wanted}
    if len(widths) > 1:
        raise ValueError(f"layers that others read must publish after equally many tokens, not after {sorted(widths)}")
    return widths.pop()


def renewed(state: Any, rows: Bool[Tensor, " b"], fresh: Any, bound: int) -> Any:
    """`state`, of at most `bound` tokens, with the named rows as in `fresh`, zeros where that is None."""
    if hasattr(state, "renewed"):
        return state.renewed(rows, fresh, bound)
    if isinstance(state, torch.Tensor):
        chosen = rows.view(-1, *[1] * (state.dim() - 1))
        return state.masked_fill(chosen, 0) if fresh is None else torch.where(chosen, sized(fresh, state), state)
    if isinstance(state, tuple):
        # A state that has seen more may hold more parts.
        parts = [
            renewed(part, rows, fresh[i] if fresh is not None and i < len(fresh) else None, bound)
            for i, part in enumerate(state)
        ]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def auxiliary_loss(
    blocks: Sequence[Block], order: Sequence[int], layout: str, state: StackState, since: StackState | None
) -> Float[Tensor, ""]:
    """The mean over tokens read between two states, and over layers, of what blocks lose beside the model's loss."""
    sums = []
    for place, i in enumerate(order):
        before = None if since is None else since.branches[place].block
        pairs = zip(blocks[i].members(state.branches[place].block), blocks[i].members(before), strict=True)
        for (block, held), (_, earlier) in pairs:
            total = block.auxiliary(held)
            known = None if since is None else block.auxiliary(earlier)
            if total is not None:
                sums.append(total if known is None else total - known)
    if not sums:
        able = " or ".join(f"{name}_{block.auxiliary_by}" for name, block in registered.items() if block.auxiliary_by)
        raise ValueError(
            f"no block of the layout {excerpt(layout)} has a loss that its state holds ({able} gives one); "
            "return_auxiliary_loss=True gives those of a call"
        )
    rows = sums[0].shape[0]
    read = [s.bound * rows if s.length is None else s.length.sum() for s in (state, since) if s is not None]
    tokens = read[0] - read[1] if len(read) > 1 else read[0]
    tokens = tokens.clamp(min=1) if isinstance(tokens, torch.Tensor) else max(tokens, 1)
    return torch.stack(sums).sum(1).mean() / tokens


def sized(t: Tensor, like: Tensor) -> Tensor:
    """`t` padded with zeros (or cut) to the shape of `like`."""
    for axis in range(1, t.dim()):
        t = t.narrow(axis, 0, min(t.shape[axis], like.shape[axis]))
        t = F.pad(t, [0, 0] * (t.dim() - 1 - axis) + [0, like.shape[axis] - t.shape[axis]])
    return t


def sites_of(plan: Resolved) -> list[Site]:
    """Where what stands at no place of its own stands, and then where each distinct branch of the column does."""
    stack = plan.config
    whole = Site(
        stack.dim,
        stack.heads,
        stack.causal,
        sum(len(layer.members) for layer in plan.layers),
        period=plan.period,
        layers=tuple(layer.name for layer in plan.layers),
        dim_condition=stack.dim_condition,
        start=stack.branch_start,
    )
    return [whole, *(replace(whole, places=places) for places in places_of(plan.order))]


def make_norm(chosen: Chosen | None, site: Site) -> Norm | None:
    """A norm, where there is one."""
    return None if chosen is None else norms[chosen[0]](chosen[1], site)


def make_last(plan: Resolved, site: Site) -> Norm | Clamped | None:
    """What stands behind the last layer."""
    norm, stack = make_norm(plan.norm, site), plan.config
    return Clamped(norm, stack.softclamp_output_value) if stack.softclamp_output else norm


def make_block(layer: Layer, site: Site) -> Block:
    """The block of a layer, or those in parallel."""
    made = []
    for i, member in enumerate(layer.members):
        own = replace(site, parts=member.held, member=i, pos=member.pos)
        made.append(registered[member.name](member.config, own))
    return made[0] if len(made) == 1 else Parallel(made, site)


def norm_before(layer: Layer, site: Site) -> Norm | Apart | None:
    """What norms the stream for the block; for each of several, where some have a norm of their own."""
    if layer.norm_place not in BEFORE:
        return None
    own = {i: cast(Norm, make_norm(member.norm, site)) for i, member in enumerate(layer.members) if member.norm}
    shared = make_norm(layer.norm, site) if len(own) < len(layer.members) else None
    return Apart(shared, own, len(layer.members)) if own else shared


def norm_behind(layer: Layer, site: Site) -> Norm | None:
    """The norm of the update, small at the start.

    It makes every update as large as the stream: started small, their sum keeps its size.
    """
    found = make_norm(layer.norm, site) if layer.norm_place in BEHIND else None
    return found and found.start_at(site.branches**-0.5, layer.norm_place)


def make_branch(plan: Resolved, site: Site) -> Branch:
    """The layer of the column that is built at `site`, with its norms, shift and residual slots."""
    layer, stack = plan.layers[site.places[0]], plan.config
    alone = len(layer.members) == 1
    site = replace(site, views=registered[layer.name].views if alone else 1)
    block, join = make_block(layer, site), layer.join
    shift = TokenShift.Config(amount=layer.shift, style=stack.shift_style) if layer.shift else None
    return Branch(
        block,
        joins[join[0]](join[1], site),
        reads={n: reads[n](c, site) for n, c in plan.reads.items() if reads[n].stands(c, site)},
        scale={n: scales[n](c, site) for n, c in layer.scale.items()},
        before=norm_before(layer, site),
        after=norm_behind(layer, site),
        final=make_norm(layer.norm, site) if layer.norm_place in SUMMED else None,
        shift=TokenShift(shift, site) if shift else None,
        dropout=layer.dropout,
        grad_checkpoint=stack.grad_checkpoint,
    )
