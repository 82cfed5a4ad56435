"""What a model on token ids asks of the stack that it is given."""

from ..base.registry import blocks as registered
from ..stack.face import AttentionLayers
from ..stack.memory import keep_reads
from ..stack.stepping import check_gap

__all__ = ["memory_length", "memory_shift"]


def memory_length(max_mem_len: int | None, stack: AttentionLayers) -> int | None:
    """`max_mem_len`, None for 0; ValueError where it cannot be one of the stack."""
    if not max_mem_len:
        return None
    if not stack.causal:
        raise ValueError(f"max_mem_len={max_mem_len}: a bidirectional stack carries nothing on; use a Decoder")
    if not any(block.keeps_tokens for block in stack.blocks()):
        able = ", ".join(name for name in registered if registered[name].keeps_tokens)
        raise ValueError(
            f"max_mem_len={max_mem_len}, but the state of the layout {stack.layout!r} is bounded anyway (blocks that "
            f"keep every token: {able})"
        )
    check_gap(stack.blocks(), 0 if stack.memory_tokens is None else len(stack.memory_tokens))
    return max_mem_len


def memory_shift(down: int, max_mem_len: int | None, stack: AttentionLayers) -> int:
    """`shift_mem_down`, for which the stack is made to keep what its layers read; ValueError where it cannot be."""
    if down and max_mem_len is None:
        raise ValueError(f"shift_mem_down={down} is set, but there is no memory; give max_mem_len, how long it is")
    if down:
        keep_reads(stack, down)
    return down
