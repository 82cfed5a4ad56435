"""What a caller may give a stack beside x and its mask, checked in one place."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..base.checks import as_attn_mask, as_doc_ids, as_mask, given, is_integral, shown, widened
from ..base.looks import within
from ..base.registry import blocks as registered
from ..base.registry import positions
from ..base.shapes import Int, Tensor
from ..base.state import document_starts
from ..layers.positions.position import Position
from .door import Plan, pack_mask

__all__ = ["SideInputs", "check_prefix"]


@dataclass(frozen=True)
class SideInputs:
    """The optional inputs of a call; `check` refuses what the stack cannot honour, `fields` gives them to the Ctx.

    attn_mask: (n, n) or (1 | b, 1 | h, n, n), True = may attend.  doc_ids: (b, n) integers, each run of equal ones a
    document of its own.  context: (b, c, its width), context_mask: (b, c), True = real token,
    context_pos: (c,) or (b, c) integers, where its tokens stand (rotary positions then count for them too).
    prefix_attn_len: a number or (b,), how many of the row's first tokens see each other.
    """

    attn_mask: Tensor | None = None
    doc_ids: Tensor | None = None
    context: Tensor | None = None
    context_mask: Tensor | None = None
    context_pos: Tensor | None = None
    prefix_attn_len: int | Tensor | None = None

    @property
    def bare(self) -> bool:
        """Whether nothing is given."""
        masks = self.attn_mask is None and self.context_mask is None and self.prefix_attn_len is None
        return masks and self.doc_ids is None and self.context is None and self.context_pos is None

    def check(self, stack: Any, x: Tensor, stepping: bool) -> "SideInputs":
        """The same with masks as booleans; TypeError or ValueError for what no stack, or not this one, can take.

        `stepping`: the call continues a state, which holds the context.
        """
        if stepping and self.bare:
            return self
        (batch, n), checked = x.shape[:2], self
        if self.doc_ids is not None:
            if stack.memory_tokens is not None:
                raise ValueError(
                    "doc_ids and num_memory_tokens exclude each other: memory tokens would belong to the first "
                    "document only"
                )
            as_doc_ids(self.doc_ids, (batch, n))
        blocks = stack.blocks()
        if self.attn_mask is not None:
            heads = {block.bias_heads() for block in blocks} - {None}
            checked = replace(checked, attn_mask=as_attn_mask(self.attn_mask, batch, n, heads))
            if not any(block.mixes_tokens for block in blocks):
                raise ValueError(
                    f"attn_mask is given, but in the layout {stack.layout!r} tokens never attend to each other"
                )
        for name in ("attn_mask", "doc_ids"):
            for block in blocks if getattr(self, name) is not None else ():
                if name not in block.honours:
                    able = ", ".join(b for b in registered if name in registered[b].honours)
                    raise ValueError(f"{type(block).__name__} cannot honour {name}; blocks that can: {able}")
        if self.prefix_attn_len is not None:
            checked = checked.check_prefix(stack, batch, n, stepping)
        return checked.check_context(stack, batch, stepping)

    def check_prefix(self, stack: Any, batch: int, n: int, stepping: bool) -> "SideInputs":
        prefix = self.prefix_attn_len
        if not stack.takes_prefix:
            raise ValueError(f"prefix_attn_len is given, but {type(stack).__name__} has no prefix; use PrefixDecoder")
        if stepping:
            raise ValueError("a prefix is how a sequence begins: give prefix_attn_len in the first call only")
        if self.doc_ids is not None:
            raise ValueError("doc_ids and prefix_attn_len exclude each other: which document's prefix would it be?")
        if isinstance(prefix, torch.Tensor):
            if not is_integral(prefix):
                raise TypeError(f"prefix_attn_len must be a number or ({batch},) integers, not {given(prefix)}")
            if tuple(prefix.shape) != (batch,):
                raise ValueError(f"prefix_attn_len must be a number or ({batch},), not {tuple(prefix.shape)}")
            sentence = "prefix_attn_len must be from 0 to the {high} tokens of the call, not {wrong}"
            return replace(self, prefix_attn_len=within(widened(prefix), 0, n, sentence))
        if not isinstance(prefix, int) or isinstance(prefix, bool):
            raise TypeError(f"prefix_attn_len must be a number or ({batch},) integers, not {given(prefix)}")
        if not 0 <= prefix <= n:
            raise ValueError(f"prefix_attn_len must be from 0 to the {n} tokens of the call, not {shown(prefix)}")
        return self

    def check_context(self, stack: Any, batch: int, stepping: bool) -> "SideInputs":
        takers = [block for block in stack.blocks() if block.takes_context]
        if self.context is None:
            for name in ("context_mask", "context_pos"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is given without context")
            if takers and not stepping:
                raise ValueError(
                    f"the layout {stack.layout!r} attends to a context: give context=, of width "
                    f"{takers[0].context_width()}"
                )
            return self
        if not takers:
            able = ", ".join(name for name in registered if registered[name].takes_context)
            raise ValueError(
                f"context is given, but no block of the layout {stack.layout!r} attends to one (blocks that do: "
                f"{able}; cross_attend=True puts one into the default layout)"
            )
        if stepping:
            raise ValueError("the state holds the context already: give context in the first call only")
        context = self.context
        if not isinstance(context, torch.Tensor) or not context.is_floating_point():
            raise TypeError(f"context must be a floating-point tensor (batch, tokens, width), not {given(context)}")
        for block in takers:
            block.check_context(context, batch)
        mask = self.context_mask
        if mask is not None:
            mask = as_mask(mask, tuple(context.shape[:2]), "context_mask")
            # What stands at masked places may be anything, and zero times NaN is NaN.
            context = context.masked_fill(~mask[..., None], 0)
        where = self.placed(stack, batch, context.shape[1])
        return replace(self, context=context, context_mask=mask, context_pos=where)

    def placed(self, stack: Any, batch: int, c: int) -> Tensor | None:
        """`context_pos` as (1 | b, c)."""
        where = self.context_pos
        if where is None:
            if idle := unplaced(stack):
                raise ValueError(
                    f"pos={idle!r} has nothing to turn in the layout {stack.layout!r} unless the context's tokens have "
                    "positions: give context_pos"
                )
            return None
        if not any(p.places_context for p in stack.positions.values()):
            able = " or ".join(name for name in positions if positions[name].places_context)
            raise ValueError(f"context_pos is for {able} positions, and this stack has none")
        for p in stack.positions.values():
            if refused := p.refuses_ahead():
                raise ValueError(f"context_pos and {refused[0]} exclude each other: {refused[1]} without bound")
        if not is_integral(where):
            raise TypeError(f"context_pos must be an integer tensor ({c},) or ({batch}, {c}), not {given(where)}")
        if tuple(where.shape) not in ((c,), (1, c), (batch, c)):
            raise ValueError(f"context_pos must be ({c},) or ({batch}, {c}), not {tuple(where.shape)}")
        return where.long() if where.dim() == 2 else where[None].long()

    def fields(self, plan: Plan | None, memory: int, device: torch.device) -> dict[str, Any]:
        """What goes into the Ctx, behind the door."""
        if self.bare:
            return {}
        doc_ids, attn_mask = self.doc_ids, self.attn_mask
        if doc_ids is not None and plan is not None:
            doc_ids = widened(doc_ids).gather(1, plan.order)
        if doc_ids is not None:
            # A number that comes again names another document: blocks that compare numbers and blocks that look for
            # borders must see the same.
            doc_ids = document_starts(doc_ids).cumsum(1)
        where = self.context_pos
        return {
            "doc_ids": doc_ids,
            "attn_mask": None if attn_mask is None else pack_mask(attn_mask, plan, memory),
            "context": self.context,
            "context_mask": self.context_mask,
            # Tokens stand behind the memory tokens, so that the context's have to move as far.
            "context_pos": where if where is None or not memory else where + memory,
            "prefix": self.slots(plan, memory, device),
        }

    def slots(self, plan: Plan | None, memory: int, device: torch.device) -> Int[Tensor, " _"] | None:
        """(1 | b,) the slots of each row's prefix, memory tokens included: no more than it has real tokens."""
        if self.prefix_attn_len is None:
            return None
        prefix = self.prefix_attn_len
        # `full`, for a tensor made of the number itself would tie a compiled graph to it.
        prefix = (
            prefix.to(device, torch.long)
            if isinstance(prefix, torch.Tensor)
            else torch.full((1,), prefix, device=device)
        )
        if plan is not None:
            prefix = torch.minimum(prefix, plan.new)
        return torch.where(prefix > 0, prefix + memory, 0)


def unplaced(stack: Any) -> str:
    """A position of the stack that has only a context's tokens to place, and is not told where they stand; or ''."""
    for name, position in stack.positions.items():
        users = [block for block in stack.blocks() if position.fits(type(block))]
        if position.places_context and all(block.takes_context for block in users):
            return name
    return ""


def check_prefix(blocks: Iterable[Any], here: Iterable[Position]) -> None:
    """ValueError for a block or a position that cannot honour a prefix."""
    able = ", ".join(name for name in registered if "prefix" in registered[name].honours)
    for block in blocks:
        if "prefix" not in block.honours:
            raise ValueError(
                f"{type(block).__name__} cannot honour the prefix of a PrefixDecoder; blocks that can: {able}"
            )
    for position in here:
        if refused := position.refuses_ahead():
            raise ValueError(f"{refused[0]} in a PrefixDecoder: {refused[1]}")
