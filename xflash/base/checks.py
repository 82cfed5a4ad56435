"""Checks of arguments: each says what was given and what is possible."""

import math
import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from .looks import within
from .shapes import Bool, Float, Int, Tensor

__all__ = [
    "LARGEST",
    "as_attn_mask",
    "as_binary",
    "as_doc_ids",
    "as_mask",
    "as_order",
    "as_rows",
    "check_bounds",
    "check_call",
    "check_count",
    "check_dtype",
    "check_generator",
    "check_stream",
    "check_switch",
    "check_switches",
    "describe",
    "given",
    "integer",
    "is_integral",
    "main_weight",
    "number",
    "shown",
    "widened",
]

# The largest number that an argument can be: what sizes a tensor can have, and what 32 bits hold.
LARGEST = 2**31 - 1
RANGE = {"above": operator.gt, "at_least": operator.ge, "below": operator.lt, "at_most": operator.le}
# Letters of a value that an error message shows.
SHOWN = 80
# Of these torch has little more than the names: they are neither compared, nor gathered, nor filled.
NARROW = frozenset({torch.uint16, torch.uint32, torch.uint64})


def given(value: Any) -> str:
    """What an argument is, in a word or two."""
    return str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__


def widened(ids: Tensor) -> Int[Tensor, "..."]:
    """Integers in a dtype that torch computes with, as they are unless they are unsigned and wider than a byte."""
    return ids.long() if ids.dtype in NARROW else ids


def shown(value: Any) -> str:
    """A value in one short line, as an error message shows it: tensors by dtype and shape, modules by their class."""
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    if isinstance(value, str) and len(value) > SHOWN:
        return repr(f"{value[:SHOWN]}...")
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def describe(value: Any) -> str:
    """`shown`, and the type of what is no tensor."""
    return (
        shown(value)
        if isinstance(value, (torch.Tensor, nn.Module))
        else f"{shown(value)} of type {type(value).__name__}"
    )


def check_bounds(name: str, value: float, bounds: Mapping[str, float]) -> None:
    """ValueError unless a number is finite and within bounds: above, at_least (-LARGEST), below, at_most (LARGEST)."""
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, not {value}")
    for bound, limit in {"at_least": -LARGEST, "at_most": LARGEST, **bounds}.items():
        if not RANGE[bound](value, limit):
            raise ValueError(f"{name} must be {bound.replace('_', ' ')} {limit}, not {shown(value)}")


def number(name: str, value: Any, **bounds: float) -> float:
    """`value` as a finite float within bounds, those of `check_bounds`; TypeError or ValueError, naming it, if not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {describe(value)}")
    check_bounds(name, value, bounds)
    return float(value)


def integer(name: str, value: Any, low: int, high: int = LARGEST) -> int:
    """`value` as an int from `low` to `high`; TypeError or ValueError, naming it, if it is not."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {describe(value)}")
    check_bounds(name, value, {"at_least": low, "at_most": high})
    return value


def check_count(name: str, value: Any) -> None:
    """TypeError or ValueError unless `value` is a whole number of 1 or more."""
    integer(name, value, 1)


def check_dtype(what: str, name: str, found: torch.dtype, model: torch.dtype) -> None:
    """TypeError for a tensor called `name` of another dtype than the model's; `what` begins the sentence."""
    if found != model:
        raise TypeError(f"{what} {found}, but the model is {model}; give {name}.to({model})")


def main_weight(module: nn.Module) -> Tensor | None:
    """A floating-point parameter whose dtype and device are the model's: a matrix if there is one; None without any.

    Which module holds it does not matter: a projection may be quantised, or have another one inside.
    """
    weights = [p for p in module.parameters() if p.is_floating_point()]
    return next((p for p in weights if p.dim() > 1), weights[0] if weights else None)


def check_switch(name: str, value: Any) -> None:
    """TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {shown(value)}")


def check_switches(**switches: Any) -> None:
    """`check_switch` of each."""
    for name, value in switches.items():
        check_switch(name, value)


def check_generator(generator: Any) -> torch.Generator | None:
    """`generator`; TypeError unless it is a torch.Generator or None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, not {describe(generator)}")
    return generator


def check_call(name: str, value: Any) -> None:
    """TypeError unless it can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be something to call, such as print, not {describe(value)}")


def check_stream(name: str, x: Any) -> Float[Tensor, "b n d"]:
    """`x` when it is a floating-point tensor of three axes; TypeError or ValueError otherwise."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor (batch, tokens, width), not {given(x)}")
    if x.dim() != 3:
        raise ValueError(f"{name} must be (batch, tokens, width), not {tuple(x.shape)}")
    return x


def is_integral(value: Any, booleans: bool = False) -> bool:
    """Whether it is a tensor of integers (or of booleans)."""
    if not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex():
        return False
    return booleans or value.dtype != torch.bool


def as_rows(name: str, rows: Any, batch: int | None) -> Bool[Tensor, " b"]:
    """`rows` as booleans, one a row of the batch, from booleans or 0/1 integers; TypeError or ValueError otherwise."""
    wanted = "b" if batch is None else batch
    if not is_integral(rows, booleans=True):
        raise TypeError(f"{name} must be a boolean tensor of shape ({wanted},), not {given(rows)}")
    # Not `in`: traced, it does not compare sizes that are symbols.
    if rows.dim() != 1 or (batch is not None and rows.shape[0] != batch):
        raise ValueError(f"{name} must be of shape ({wanted},), one entry a row, not {tuple(rows.shape)}")
    return as_binary(name, rows)


def as_doc_ids(doc_ids: Any, shape: tuple[int, int]) -> Int[Tensor, "b n"]:
    """`doc_ids` when it is an integer tensor of that shape, in a dtype that can be computed with."""
    if not is_integral(doc_ids):
        raise TypeError(f"doc_ids must be an integer tensor of shape {tuple(shape)}, not {given(doc_ids)}")
    if tuple(doc_ids.shape) != tuple(shape):
        raise ValueError(f"doc_ids has shape {tuple(doc_ids.shape)}, but the tokens have {tuple(shape)}")
    return widened(doc_ids)


def as_order(index: Any, rows: int | None, name: str = "index", whole: str = "the state") -> Int[Tensor, " b"]:
    """`index` when it names rows, each below `rows` (looked at on the CPU only; None: nobody knows)."""
    if not is_integral(index):
        raise TypeError(f"{name} must be an integer tensor of rows such as torch.tensor([2, 0, 0]), not {given(index)}")
    if index.dim() != 1:
        raise ValueError(f"{name} must be of shape (rows,), one entry for each row wanted, not {tuple(index.shape)}")
    index = index.long()
    if rows is None:
        return index
    return within(
        index, 0, rows - 1, f"{{name}} names row {{wrong}}, but {whole} has {{count}} rows (0 to {{high}})", name
    )


def as_binary(name: str, mask: Tensor) -> Bool[Tensor, "..."]:
    """`mask` as booleans; ValueError for integers other than 0 and 1, looked at as `within` does."""
    if mask.dtype == torch.bool:
        return mask
    sentence = "{name} must be boolean or 0/1 integers, but it goes from {least} to {most}"
    return within(widened(mask), 0, 1, sentence, name).bool()


def as_attn_mask(attn_mask: Any, b: int, n: int, heads: Collection[int]) -> Bool[Tensor, "*_ n n"]:
    """`attn_mask` if it is a boolean (n, n) or (1 | b, 1 | h, n, n) for each of `heads`; TypeError or ValueError."""
    if not is_integral(attn_mask, booleans=True):
        instead = booleans(attn_mask, "attn_mask")
        raise TypeError(f"attn_mask must be a boolean tensor (True = may attend), not {given(attn_mask)}{instead}")
    attn_mask = as_binary("attn_mask", attn_mask)
    shape = tuple(attn_mask.shape)
    if shape == (n, n) or (len(shape) == 4 and shape[0] in (1, b) and shape[2:] == (n, n)):
        if len(shape) == 2 or shape[1] == 1 or set(heads) == {shape[1]}:
            return attn_mask
        raise ValueError(
            f"attn_mask is for {shape[1]} heads, but the blocks have {sorted(heads)}; give 1 for all heads"
        )
    wanted = f"attn_mask must be ({n}, {n}) or (1 or {b}, 1 or heads, {n}, {n}), not {shape}"
    raise ValueError(f"{wanted}{instead_of_attn_mask(shape, b, n)}")


def as_mask(mask: Tensor, shape: tuple[int, ...], name: str = "mask") -> Bool[Tensor, "b n"]:
    """A (b, n) boolean mask from booleans or 0/1 integers, True for real tokens; TypeError or ValueError otherwise."""
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"{name} must be a tensor of shape {tuple(shape)}, not {type(mask).__name__}")
    if mask.is_floating_point() or mask.is_complex():
        instead = booleans(mask, name)
        raise TypeError(f"{name} must be boolean (True = real token) or 0/1 integers, not {mask.dtype}{instead}")
    if tuple(mask.shape) != tuple(shape):
        instead = instead_of_mask(tuple(mask.shape), tuple(shape), name)
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)}, but the tokens it stands for have {tuple(shape)}{instead}"
        )
    return as_binary(name, mask)


def booleans(mask: Any, name: str) -> str:
    """What makes booleans of a mask of floats."""
    if not isinstance(mask, torch.Tensor) or not mask.is_floating_point():
        return ""
    return f"; give {name}.bool() of ones and zeros, or {name} == 0 of what is added to scores"


def instead_of_mask(found: tuple[int, ...], shape: tuple[int, ...], name: str) -> str:
    """What to give in the place of a mask of another shape, or ''."""
    b, n = shape if len(shape) == 2 else (None, None)
    if n is None:
        return ""
    if found in ((n,), (1, n)):
        return f"; give {name}.expand({b}, -1), one row for each"
    if found == (n, b):
        return f"; {name}.T has that shape"
    if found == (b, 1, 1, n):
        return f"; give {name}[:, 0, 0]"
    if name == "mask" and found[-2:] == (n, n) and found[:-2] in ((), (b,), (1,), (b, 1), (1, 1)):
        seen = {2: "mask", 3: "mask[:, None]", 4: "mask"}[len(found)]
        return f"; which tokens each may attend to is said by attn_mask={seen}"
    return ""


def instead_of_attn_mask(found: tuple[int, ...], b: int, n: int) -> str:
    """What to give in the place of an attn_mask of another shape, or ''."""
    if len(found) == 3 and found[1:] == (n, n):
        return "; three axes would be ambiguous: give attn_mask[:, None] for rows, attn_mask[None] for heads"
    if found == (b, n):
        return "; which tokens are real is said by mask"
    if found == (b, 1, 1, n):
        return "; which tokens are real is said by mask=attn_mask[:, 0, 0]"
    return ""
