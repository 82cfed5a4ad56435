"""Checks of arguments: each says what was given and what is possible."""

from collections.abc import Collection
from typing import Any

import torch

from .shapes import Bool, Int, Tensor

__all__ = [
    "as_doc_ids",
    "as_order",
    "as_rows",
    "check_attn_mask",
    "check_binary",
    "check_count",
    "check_counts",
    "check_dtype",
    "check_share",
    "check_switch",
    "check_switches",
    "given",
]


def given(value: Any) -> str:
    """What an argument is, in a word or two."""
    return str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__


def check_count(name: str, value: Any) -> None:
    """TypeError or ValueError unless `value` is a whole number of 1 or more."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def check_counts(**counts: Any) -> None:
    """`check_count` of each that is not None."""
    for name, value in counts.items():
        if value is not None:
            check_count(name, value)


def check_dtype(what: str, name: str, found: torch.dtype, model: torch.dtype) -> None:
    """TypeError for a tensor called `name` of another dtype than the model's; `what` begins the sentence."""
    if found != model:
        raise TypeError(f"{what} {found}, but the model is {model}; give {name}.to({model})")


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


def check_switches(**switches: Any) -> None:
    """`check_switch` of each."""
    for name, value in switches.items():
        check_switch(name, value)


def as_rows(name: str, rows: Any, batch: int | None) -> Bool[Tensor, " b"]:
    """`rows` as booleans, one a row of the batch (None: nobody knows how many there are)."""
    shape = "(rows,)" if batch is None else f"({batch},)"
    if not isinstance(rows, torch.Tensor) or rows.is_floating_point():
        raise TypeError(f"{name} must be a boolean tensor of shape {shape}, not {given(rows)}")
    if rows.dim() != 1 or (batch is not None and rows.shape[0] != batch):
        raise ValueError(f"{name} must be of shape {shape}, one entry a row, not {tuple(rows.shape)}")
    return rows.bool()


def as_doc_ids(doc_ids: Any, shape: tuple[int, int]) -> Int[Tensor, "b n"]:
    """`doc_ids` when it is an integer tensor of that shape."""
    if not isinstance(doc_ids, torch.Tensor) or doc_ids.is_floating_point() or doc_ids.dtype == torch.bool:
        raise TypeError(f"doc_ids must be an integer tensor of shape {tuple(shape)}, not {given(doc_ids)}")
    if tuple(doc_ids.shape) != tuple(shape):
        raise ValueError(f"doc_ids has shape {tuple(doc_ids.shape)}, but the tokens have {tuple(shape)}")
    return doc_ids


def as_order(index: Any, rows: int | None) -> Int[Tensor, " b"]:
    """`index` when it names rows, each below `rows` (looked at on the CPU only; None: nobody knows)."""
    if not isinstance(index, torch.Tensor) or index.is_floating_point() or index.dtype == torch.bool:
        raise TypeError(f"index must be an integer tensor of rows such as torch.tensor([2, 0, 0]), not {given(index)}")
    if index.dim() != 1:
        raise ValueError(f"index must be of shape (rows,), one entry for each row wanted, not {tuple(index.shape)}")
    if rows is None or index.device.type != "cpu" or torch.compiler.is_compiling() or not index.numel():
        return index.long()
    low, high = index.min().item(), index.max().item()
    if low < 0 or high >= rows:
        wrong = low if low < 0 else high
        raise ValueError(f"index names row {wrong}, but the state has {rows} rows (0 to {rows - 1})")
    return index.long()


def check_binary(name: str, mask: Tensor) -> None:
    """ValueError for integers other than 0 and 1; looked at on the CPU only, for it would make a GPU wait."""
    if mask.dtype == torch.bool or mask.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError(f"{name} must be boolean or 0/1 integers, but it goes from {mask.min()} to {mask.max()}")


def check_attn_mask(attn_mask: Any, b: int, n: int, heads: Collection[int]) -> None:
    """TypeError or ValueError unless `attn_mask` is a boolean (n, n) or (1 | b, 1 | h, n, n) for each of `heads`."""
    if not isinstance(attn_mask, torch.Tensor) or attn_mask.is_floating_point():
        raise TypeError(f"attn_mask must be a boolean tensor (True = may attend), not {given(attn_mask)}")
    check_binary("attn_mask", attn_mask)
    shape = tuple(attn_mask.shape)
    if shape == (n, n) or (len(shape) == 4 and shape[0] in (1, b) and shape[2:] == (n, n)):
        if len(shape) == 2 or shape[1] == 1 or set(heads) == {shape[1]}:
            return
        raise ValueError(
            f"attn_mask is for {shape[1]} heads, but the blocks have {sorted(heads)}; give 1 for all heads"
        )
    raise ValueError(
        f"attn_mask must be ({n}, {n}) or (1 or {b}, 1 or heads, {n}, {n}), not {shape}; three axes would be ambiguous"
    )
