"""Checks of arguments: each says what was given and what is possible."""

from typing import Any

import torch

from .shapes import Bool, Int, Tensor

__all__ = ["as_doc_ids", "as_rows", "check_count", "check_share", "check_switch"]


def given(value: Any) -> str:
    """What an argument is, in a word or two."""
    return str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__


def check_count(name: str, value: Any) -> None:
    """TypeError or ValueError unless `value` is a whole number of 1 or more."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def check_share(name: str, value: Any) -> None:
    """TypeError or ValueError unless `value` is a number from 0 to below 1."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, not {value}")


def check_switch(name: str, value: Any) -> None:
    """TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")


def as_rows(name: str, rows: Any, batch: int) -> Bool[Tensor, " b"]:
    """`rows` as booleans, one a row of the batch."""
    if not isinstance(rows, torch.Tensor) or rows.is_floating_point():
        raise TypeError(f"{name} must be a boolean tensor of shape ({batch},), not {given(rows)}")
    if tuple(rows.shape) != (batch,):
        raise ValueError(f"{name} must be of shape ({batch},), one entry a row, not {tuple(rows.shape)}")
    return rows.bool()


def as_doc_ids(doc_ids: Any, shape: tuple[int, int]) -> Int[Tensor, "b n"]:
    """`doc_ids` when it is an integer tensor of that shape."""
    if not isinstance(doc_ids, torch.Tensor) or doc_ids.is_floating_point() or doc_ids.dtype == torch.bool:
        raise TypeError(f"doc_ids must be an integer tensor of shape {tuple(shape)}, not {given(doc_ids)}")
    if tuple(doc_ids.shape) != tuple(shape):
        raise ValueError(f"doc_ids has shape {tuple(doc_ids.shape)}, but the tokens have {tuple(shape)}")
    return doc_ids
