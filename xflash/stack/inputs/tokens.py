"""What is said about the tokens among each other: documents, a mask, a prefix."""

from collections.abc import Mapping
from typing import Any

import torch

from ...base.checks import as_attn_mask, as_doc_ids, given, is_integral, shown, widened
from ...base.looks import within
from ...base.registry import side_inputs
from ...base.state import document_starts
from ..door import pack_mask
from .side_input import Call, Door, SideInput

__all__ = ["AttnMask", "DocIds", "PrefixLength"]


def check_whole(name: str, call: Call) -> None:
    """ValueError where a state is kept: what says which tokens see each other ends with a call."""
    if call.keeps:
        raise ValueError(f"{name} cannot be given to a step: it says nothing of tokens before and behind its own")


@side_inputs.register("doc_ids")
class DocIds(SideInput):
    """(b, n) integers, each run of equal ones a document of its own."""

    must = "all"

    def check(self, value: Any, call: Call) -> Any:
        check_whole(self.name, call)
        if call.stack.memory_tokens is not None:
            raise ValueError(
                "doc_ids and num_memory_tokens exclude each other: memory tokens would belong to the first "
                "document only"
            )
        return as_doc_ids(value, call.shape)

    def pack(self, value: Any, door: Door) -> Mapping[str, Any]:
        if door.plan is not None:
            value = value.gather(1, door.plan.order)
        # A number that comes again names another document: blocks that compare numbers and blocks that look for
        # borders must see the same.
        return {self.name: document_starts(value).cumsum(1)}


@side_inputs.register("attn_mask")
class AttnMask(SideInput):
    """(n, n) or (1 | b, 1 | h, n, n), True = may attend."""

    per = "call"
    must = "all"

    def check(self, value: Any, call: Call) -> Any:
        check_whole(self.name, call)
        blocks = call.stack.blocks()
        mask = as_attn_mask(value, *call.shape, {block.bias_heads() for block in blocks} - {None})
        if not any(block.mixes_tokens for block in blocks):
            raise ValueError(
                f"attn_mask is given, but in the layout {call.stack.layout!r} tokens never attend to each other"
            )
        return mask

    def pack(self, value: Any, door: Door) -> Mapping[str, Any]:
        return {self.name: pack_mask(value, door.plan, door.memory)}

    def one_for_all(self, value: torch.Tensor) -> bool:
        return value.dim() == 2 or value.shape[0] == 1


@side_inputs.register("prefix_attn_len")
class PrefixLength(SideInput):
    """A number or (b,): how many of the row's first tokens see each other."""

    per = "row"
    must = ""

    def check(self, value: Any, call: Call) -> Any:
        batch, n = call.shape
        if not call.stack.takes_prefix:
            kind = type(call.stack).__name__
            raise ValueError(f"prefix_attn_len is given, but {kind} has no prefix; use PrefixDecoder")
        if call.stepping:
            raise ValueError("a prefix is how a sequence begins: give prefix_attn_len in the first call only")
        if "doc_ids" in call.given:
            raise ValueError("doc_ids and prefix_attn_len exclude each other: which document's prefix would it be?")
        if isinstance(value, torch.Tensor):
            if not is_integral(value):
                raise TypeError(f"prefix_attn_len must be a number or ({batch},) integers, not {given(value)}")
            if tuple(value.shape) != (batch,):
                raise ValueError(f"prefix_attn_len must be a number or ({batch},), not {tuple(value.shape)}")
            sentence = "prefix_attn_len must be from 0 to the {high} tokens of the call, not {wrong}"
            return within(widened(value), 0, n, sentence)
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"prefix_attn_len must be a number or ({batch},) integers, not {given(value)}")
        if not 0 <= value <= n:
            raise ValueError(f"prefix_attn_len must be from 0 to the {n} tokens of the call, not {shown(value)}")
        return value

    def pack(self, value: Any, door: Door) -> Mapping[str, Any]:
        """(1 | b,) the slots of each row's prefix, memory tokens included: no more than it has real tokens."""
        # `full`, for a tensor made of the number itself would tie a compiled graph to it.
        prefix = (
            value.to(door.device, torch.long)
            if isinstance(value, torch.Tensor)
            else torch.full((1,), value, device=door.device)
        )
        if door.plan is not None:
            prefix = torch.minimum(prefix, door.plan.new)
        return {self.name: torch.where(prefix > 0, prefix + door.memory, 0)}
