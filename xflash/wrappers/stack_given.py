"""What a model on token ids asks of the stack that it is given."""

from typing import Any

from ..base.checks import count_or_none
from ..base.registry import blocks as registered
from ..stack.face import AttentionLayers

__all__ = ["check_stack", "memory_length"]


def memory_length(max_mem_len: int | None, stack: AttentionLayers) -> int | None:
    """`max_mem_len`, None for 0; TypeError or ValueError where it cannot be one of the stack."""
    max_mem_len = count_or_none("max_mem_len", max_mem_len)
    if max_mem_len is None:
        return None
    if not stack.causal:
        raise ValueError(f"max_mem_len={max_mem_len}: a bidirectional stack carries nothing on; use a Decoder")
    if not any(block.keeps_tokens for block in stack.blocks()):
        able = ", ".join(name for name in registered if registered[name].keeps_tokens)
        raise ValueError(
            f"max_mem_len={max_mem_len}, but the state of the layout {stack.layout!r} is bounded anyway (blocks that "
            f"keep every token: {able})"
        )
    return max_mem_len


def check_stack(attn_layers: Any) -> None:
    """TypeError unless it is a stack."""
    if not isinstance(attn_layers, AttentionLayers):
        raise TypeError(
            f"attn_layers must be a stack such as Encoder(...) or Decoder(...), not {type(attn_layers).__name__}"
        )
