"""What is done with the state of a column between two calls, as functions on both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import torch

from ..base.checks import as_rows, check_count
from ..base.shapes import Bool, Float, Tensor
from ..base.state import TAKEN, BranchState, Ctx, Lease, StackState, row_count, tensors
from ..layers.blocks.block import Block
from ..layers.embeddings import MemoryTokens
from ..saving.migrate import same_maker
from .parts import auxiliary_loss, renewed

if TYPE_CHECKING:
    from .column import Column

__all__ = ["check_state", "check_steppable", "closed", "opened", "refused_step", "reset", "shorten", "weighed"]


def check_state(column: Any, state: StackState, batch: int | None = None) -> None:
    """TypeError or ValueError when `state` is not of this column (or stack), or has another batch size (None: any)."""
    if not isinstance(state, StackState):
        raise TypeError(f"state must be what step() gave, a StackState, not {type(state).__name__}")
    # Traced, a state goes on by the names of today only.
    alike = state.maker == column.maker or (not torch.compiler.is_compiling() and same_maker(state.maker, column.maker))
    if not alike or len(state.branches) != len(column.order):
        raise ValueError(f"the state was made by another stack: {state.maker}; this one is {column.maker}")
    # Not `in`: traced, it does not compare sizes that are symbols.
    if batch is not None and (rows := row_count(state)) is not None and rows != batch:
        raise ValueError(f"the state has {rows} rows, but x has {batch}")


def refused_step(stack: Any) -> str:
    """Why the stack cannot be stepped, or ''."""
    if not stack.causal:
        return f"a bidirectional stack ({type(stack).__name__}) has no state and no step: call it on whole sequences"
    why = next((why for block in stack.blocks() if (why := block.refuses_step())), "")
    return f"this stack cannot be stepped: {why}" if why else ""


def check_steppable(stack: Any, state: Any = None) -> None:
    """ValueError with the reason when the stack cannot be stepped; the one that made the state can."""
    if getattr(state, "maker", None) != stack.maker and (why := refused_step(stack)):
        raise ValueError(why)


def opened(column: Column, state: StackState | None, n: int) -> tuple[StackState | None, bool]:
    """The state with room for n more slots, and whether this call may write into its buffers.

    Only without grad, and only for the newest state of the buffers: a step from an older one copies them, and
    not what newer ones have written.
    """
    if state is None:
        return None, False
    if state.lease is TAKEN:
        return state, not torch.is_grad_enabled()
    # `is_compiling` is true in all threads while one compiles.
    compiling, recording = torch.compiler.is_dynamo_compiling(), torch.is_grad_enabled()
    if not compiling and not torch.is_inference_mode_enabled() and of_inference(state):
        state = state.map(torch.clone)
    if not recording and state.lease is None:
        state = state.detach()
    # A graph claims nothing: what it is told is so each time that it runs, in other threads too.
    in_place, lease = not recording and not compiling, state.lease
    if in_place:
        copy = lease is None or not lease.claim(state.bound)
    else:
        copy = not compiling and lease is not None and lease.fill != state.bound
    lease = (Lease(state.bound) if copy else lease) if in_place else None
    return state._replace(branches=reserved(column, state, n, copy), lease=lease), in_place


def reserved(column: Column, state: StackState, n: int, copy: bool) -> tuple[BranchState, ...]:
    """The states of the branches with room for n more slots; `copy`: in buffers of their own."""
    need, distinct, branches = state.bound + n, column.blocks(), []
    for i, branch in zip(column.order, state.branches, strict=True):
        held = distinct[i].reserve(branch.block, state.bound, need, copy, state.length)
        branches.append(branch if held is branch.block else BranchState(branch.shift, held))
    return tuple(branches)


def closed(
    column: Column, branches: list, ctx: Ctx, n: int, lease: Lease | None, carried: tuple[tuple[str, Tensor], ...]
) -> StackState:
    """The state behind a call of n tokens; `lease`: that of the state it went on from; `carried`: its side inputs."""
    bound = ctx.past + n
    # Buffers made or written with grad are part of a graph: nobody may write into them.
    if torch.is_grad_enabled():
        lease = None
    elif lease is None:
        lease = Lease(bound)
    elif lease is not TAKEN:
        lease.release(bound)
    return StackState(column.maker, bound, ctx.ends(n), lease, tuple(branches), carried)


def reset(
    column: Column, state: StackState, rows: Bool[Tensor, " b"], memory_tokens: MemoryTokens | None
) -> StackState:
    """`state` with the named rows as fresh as before their first token; a context they attend to stays theirs."""
    check_state(column, state)
    rows = as_rows("rows", rows, row_count(state))
    distinct = column.blocks()
    kept = [distinct[i].kept_on_reset(b.block) for i, b in zip(column.order, state.branches, strict=True)]
    start, fresh = 0, None
    if memory_tokens is not None:
        x = memory_tokens.tokens[None].expand(rows.shape[0], -1, -1)
        begun = StackState(column.maker, 0, None, None, tuple(BranchState(None, held) for held in kept))
        behind = cast(StackState, column.run(x, begun, None, {}, keep_state=True)[1])
        fresh, start = behind.branches, behind.bound
    branches = tuple(
        renewed(b, rows, fresh and fresh[i], state.bound)
        if held is None
        else BranchState(
            renewed(b.shift, rows, fresh and fresh[i].shift, state.bound),
            kept_or_renewed(distinct[column.order[i]], b.block, held, rows, fresh and fresh[i].block, state.bound),
        )
        for i, (b, held) in enumerate(zip(state.branches, kept, strict=True))
    )
    before = torch.full_like(rows, state.bound, dtype=torch.long) if state.length is None else state.length
    length = torch.where(rows, torch.full_like(before, start), before)
    return state._replace(length=length, lease=None, branches=branches)


def kept_or_renewed(block: Block, state: Any, kept: Any, rows: Tensor, fresh: Any, bound: int) -> Any:
    """A block's state with the named rows as in `fresh`, but for what it keeps of them: all, or in parallel some."""
    parts = zip(block.members(state), block.members(kept), block.members(fresh), strict=True)
    found = [renewed(s, rows, f, bound) if held is None else held for (_, s), (_, held), (_, f) in parts]
    return tuple(found) if len(found) > 1 else found[0]


def shorten(column: Column, state: StackState, tokens: int, front: int) -> StackState:
    """`state` with the keys and values of each row's first `front` and last `tokens` tokens only.

    Blocks whose state is bounded keep it.
    """
    check_state(column, state)
    check_count("tokens", tokens)
    distinct = column.blocks()
    check_gap(distinct, front)
    branches = tuple(
        b._replace(block=distinct[i].shorten(b.block, tokens, front, state.bound, state.length))
        for i, b in zip(column.order, state.branches, strict=True)
    )
    # Blocks that keep all they have still share it with the state before.
    return state._replace(lease=None, branches=branches)


def check_gap(blocks: Iterable[Block], front: int) -> None:
    """ValueError for blocks that cannot give up what stands behind the `front` tokens which they keep."""
    why = next((why for block in blocks if (why := block.refuses_gap())), "")
    if front and why:
        raise ValueError(
            f"{why}, but of a state that is shortened the memory tokens stay and what stands behind them is given up: "
            "leave out one of them"
        )


def weighed(column: Column, state: StackState, since: StackState | None) -> Float[Tensor, ""]:
    """The loss that the layers have beside the model's own, a mean over tokens and layers; ValueError without any."""
    check_state(column, state)
    if since is not None:
        check_state(column, since, row_count(state))
    return auxiliary_loss(column.blocks(), column.order, column.layout, state, since)


def of_inference(state: StackState) -> bool:
    """Whether a tensor of the state was made in inference mode: nobody may write into it, or save it for gradients."""
    lease = state.lease
    return (lease is None or lease.inference) and any(t.is_inference() for t in tensors(state))
