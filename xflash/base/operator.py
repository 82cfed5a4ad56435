"""`operator`: a function as one operation of PyTorch's own."""

from collections.abc import Callable

import torch

__all__ = ["operator"]


def operator(name: str) -> Callable[[Callable], torch.library.CustomOpDef]:
    """The operator `xflash::name`, which changes none of its arguments.

    All are made here, since for each file that makes one PyTorch goes through all modules there are.
    """

    def made(fn: Callable) -> torch.library.CustomOpDef:
        return torch.library.custom_op(f"xflash::{name}", fn, mutates_args=())

    return made
