"""What a stack is put together from, and what it does with a state or a map, apart from the way of a tensor."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from ..base.registry import blocks as registered
from ..base.registry import excerpt, joins, norms, reads, scales
from ..base.shapes import Bool, Float, Tensor
from ..base.state import StackState
from ..layers.blocks.block import Block, Site
from ..layers.branch import Branch
from ..layers.shift import TokenShift
from .config import Resolved

__all__ = ["auxiliary_loss", "make_branch", "publishing", "renewed"]


def publishing(blocks: Sequence[Block], order: Sequence[int], layout: str) -> tuple[list[int], int | None]:
    """The places of layers with state vectors, and after how many tokens others may read them anew (None: none do)."""
    places = [place for place, i in enumerate(order) if blocks[i].publishes]
    wanted = {number for block in blocks for number in block.reads_states()}
    for number, place in enumerate(places, 1):
        if number not in wanted and not blocks[order[place]].reads_own:
            raise ValueError(
                f"no layer of the layout {excerpt(layout)} reads the state vectors of its "
                f"{registered.name_of(type(blocks[order[place]]))} layer {number}"
            )
    if not wanted:
        return places, None
    if max(wanted) > len(places):
        able = " or ".join(name for name, block in registered.items() if block.publishes)
        raise ValueError(
            f"the state vectors of {able} layer {max(wanted)} are to be read, but the layout {excerpt(layout)} has "
            f"{len(places)}"
        )
    widths = {blocks[order[places[number - 1]]].publishes_every() for number in wanted}
    if len(widths) > 1:
        raise ValueError(f"layers that others read must publish after equally many tokens, not after {sorted(widths)}")
    return places, widths.pop()


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
        total = blocks[i].auxiliary(state.branches[place].block)
        known = None if since is None else blocks[i].auxiliary(since.branches[place].block)
        if total is not None:
            sums.append(total if known is None else total - known)
    if not sums:
        able = " or ".join(f"{name}_{block.auxiliary_by}" for name, block in registered.items() if block.auxiliary_by)
        raise ValueError(f"no block of the layout {excerpt(layout)} has a loss of its own ({able} gives one)")
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
    stack, count = plan.config, len(plan.layers)
    distinct = plan.period if stack.weight_tie_layers else count
    whole = Site(
        stack.dim,
        stack.heads,
        stack.causal,
        count,
        period=plan.period,
        layers=tuple(name for name, _ in plan.layers),
        dim_condition=stack.dim_condition,
    )
    return [whole, *(replace(whole, places=tuple(range(i, count, distinct))) for i in range(distinct))]


def make_branch(plan: Resolved, i: int, site: Site) -> Branch:
    """Layer i of the column with its norms, shift and residual slots."""
    name, config = plan.layers[i]
    stack, shift = plan.config, plan.shifts[i]
    site = replace(site, views=registered[name].views)

    def norm(wanted: bool):
        return norms[stack.norm](plan.norm, site) if wanted else None

    after = norm(stack.norm_place == "sandwich")
    return Branch(
        registered[name](config, replace(site, parts=plan.held[i])),
        joins[stack.join](plan.join, site),
        reads={n: reads[n](c, site) for n, c in plan.reads.items() if reads[n].stands(c, site)},
        scale={n: scales[n](c, site) for n, c in plan.scale.items()},
        before=norm(stack.norm_place != "post"),
        # A norm behind each block makes every update as large as the stream: started small, their sum keeps its size.
        after=after and after.start_at(site.branches**-0.5),
        final=norm(stack.norm_place == "post"),
        shift=TokenShift(TokenShift.Config(amount=shift, style=stack.shift_style), site) if shift else None,
        dropout=plan.dropouts[i],
        grad_checkpoint=stack.grad_checkpoint,
    )
