"""The dimension letters, used alike in annotations, einops patterns and einsums, and `typed`, which checks them.

The stack, its blocks and the heads of models (`logits`) are `typed`. Wrappers and calls of a stack check what they are
given one by one, in sentences of their own; what they hand on is checked there.

| letter | what it counts | letter | what it counts |
|---|---|---|---|
| b | batch | k | query/key width |
| n | tokens in this call | e | value width |
| m | tokens seen (past and this call) | g | groups |
| c | context tokens | w | tokens in a group |
| d | model width | s | state vectors |
| h | heads | t | memory tokens |
| | | v | vocabulary |
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from beartype import beartype
from jaxtyping import Bool, Float, Int, jaxtyped
from torch import Tensor

__all__ = ["CHECKING", "Bool", "Float", "Int", "Tensor", "typed"]

CHECKING = os.environ.get("XFLASH_TYPECHECK", "1").lower() not in ("0", "false", "")


def typed(fn: Callable) -> Callable:
    """Checks the tensor shapes in the annotations of `fn` at every call; steps aside while torch compiles.

    `XFLASH_TYPECHECK=0` in the environment (read at import) makes it the identity.
    """
    if not CHECKING:
        return fn
    checked = jaxtyped(fn, typechecker=beartype)

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        if torch.compiler.is_compiling():
            return fn(*args, **kwargs)
        return checked(*args, **kwargs)

    # Dynamo counts recompilations per code object: one shared by all wrapped functions would use up its limit.
    inner: Any = wrapper
    inner.__code__ = inner.__code__.replace(co_name=getattr(fn, "__qualname__", "typed"))
    return wrapper
