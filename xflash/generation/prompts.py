"""Token ids as callers give them: prompts of any lengths as one tensor, and whether what is to follow them fits."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from ..base.checks import LARGEST, as_mask, describe, integer, is_integral, widened
from ..base.looks import within
from ..base.shapes import Bool, Int, Tensor

__all__ = [
    "Prompts",
    "Rows",
    "check_seq_len",
    "lengths_to_mask",
    "prefix_of",
    "read_prompts",
    "row_lengths",
    "token_ids",
    "window",
]

# Token ids in one tensor, or row by row.
Rows = Int[Tensor, "*b n"] | Sequence[Int[Tensor, " _"]]


class Prompts(NamedTuple):
    """Prompts that all end in the last column; `mask` is None when they are equally long, `lead` the batch shape."""

    ids: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"] | None
    lead: tuple[int, ...]


def token_ids(name: str, ids: Any, what: str = "integer token ids") -> Int[Tensor, "..."]:
    """`ids` as int64; TypeError unless it is a tensor of integers."""
    if not isinstance(ids, torch.Tensor):
        raise TypeError(f"{name} must be a tensor of {what}, not {describe(ids)}")
    if not is_integral(ids):
        raise TypeError(f"{name} must hold {what}, not {ids.dtype}")
    return ids.long()


def row_lengths(name: str, lens: Any, ids: Int[Tensor, "b n"]) -> Int[Tensor, " b"]:
    """One length a row of `ids`, each within [0, n] (looked at on the CPU only); TypeError or ValueError otherwise."""
    b, n = ids.shape
    if not isinstance(lens, (torch.Tensor, list, tuple)):
        raise TypeError(f"{name} must be a tensor or a list of {b} lengths, not {describe(lens)}")
    if not isinstance(lens, torch.Tensor):
        # A boolean among numbers would count as one of them.
        lens = torch.tensor([integer(f"{name}[{i}]", length, -LARGEST) for i, length in enumerate(lens)]).long()
    lens = token_ids(name, lens, "integers")
    if lens.shape != (b,):
        raise ValueError(f"{name} has shape {tuple(lens.shape)}, but there are {b} rows")
    sentence = "{name} must be from 0 to {high}, the width of the tensor, not {wrong}"
    return within(lens, 0, n, sentence, name).to(ids.device)


def lengths_to_mask(lens: Int[Tensor, " b"], n: int) -> Bool[Tensor, "b n"]:
    """True at the first `lens` places of each row."""
    return torch.arange(n, device=lens.device) < lens[:, None]


def read_prompts(prompts: Any, prompt_lens: Any = None, mask: Any = None) -> Prompts:
    """Prompts as one tensor (..., n), alone or with lengths or a mask, or as a list of (n,) tensors of any lengths.

    Rows may be padded anywhere: real tokens keep their order. TypeError for what is no prompt, ValueError for an
    empty one and for lengths or masks that don't fit.
    """
    if prompt_lens is not None and mask is not None:
        raise ValueError("prompt_lens and mask both say which tokens of the prompts are real: give one of them")
    if isinstance(prompts, (list, tuple)):
        if prompt_lens is not None or mask is not None:
            raise ValueError("prompt_lens and mask belong to prompts in one tensor: in a list each has its own length")
        ids, prompt_lens = stack_prompts(prompts)
    else:
        ids = token_ids("prompts", prompts)
        if ids.ndim == 0:
            raise ValueError("prompts has no dimension: give (n,) for one prompt or (b, n) for several")
    if ids.numel() == 0:
        missing = "give at least one prompt" if ids.shape[-1] else "a prompt needs at least one token"
        raise ValueError(f"prompts of shape {tuple(ids.shape)} are empty: {missing}")
    lead, rows = tuple(ids.shape[:-1]), ids.reshape(-1, ids.shape[-1])
    if mask is not None:
        mask = mask.reshape(rows.shape) if getattr(mask, "shape", None) == ids.shape else mask
        mask = as_mask(mask, (rows.shape[0], rows.shape[1]))
    elif prompt_lens is not None:
        mask = lengths_to_mask(row_lengths("prompt_lens", prompt_lens, rows), rows.shape[1])
    return Prompts(*align_right(rows, mask), lead)


def stack_prompts(prompts: Sequence[Any]) -> tuple[Int[Tensor, "b n"], list[int]]:
    """Prompts of any lengths in one tensor, padded behind, and their lengths."""
    if not prompts:
        raise ValueError("prompts is an empty list: give at least one prompt")
    rows = [token_ids(f"prompts[{i}]", row) for i, row in enumerate(prompts)]
    for i, row in enumerate(rows):
        if row.ndim != 1:
            raise ValueError(f"prompts[{i}] has shape {tuple(row.shape)}: in a list each prompt is 1-D")
    return pad_sequence(rows, batch_first=True), [len(row) for row in rows]


def align_right(ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None) -> tuple[Tensor, Tensor | None]:
    """Each row's real tokens moved to its end, in order, columns without any cut off; ValueError for an empty row."""
    if mask is None:
        return ids, None
    lens = mask.sum(1).tolist()
    if min(lens) == 0:
        raise ValueError(f"the prompt in row {lens.index(0)} is empty: a prompt needs at least one token")
    order = mask.byte().argsort(dim=1, stable=True)[:, -max(lens) :]
    mask = mask.gather(1, order)
    # What stands at a masked place need not be an id of the vocabulary.
    ids = ids.gather(1, order).masked_fill(~mask, 0)
    return ids, None if min(lens) == max(lens) else mask


def window(net: Any, prompts: Prompts, seq_len: int, restrict: bool) -> int | None:
    """How many of the last tokens the model can be given, None if all; ValueError if too few unless `restrict`."""
    # A model with relative positions may have a max_seq_len that limits nothing: its length_limit says so.
    n, limit = prompts.ids.shape[1], getattr(net, "length_limit", getattr(net, "max_seq_len", None))
    need = n + seq_len - 1  # the last token is not read
    if limit is None or need <= limit:
        return None
    if not restrict:
        fits = f"at most seq_len={limit - n + 1} fits" if n <= limit else f"the prompt must be cut to {limit} first"
        raise ValueError(
            f"a prompt of {n} tokens and seq_len={seq_len} need {need} positions, but the model has "
            f"max_seq_len={limit}: {fits}. restrict_to_max_seq_len=True "
            f"shows it the last {limit} tokens only, read anew for every token (slow)"
        )
    return limit


def check_seq_len(seq_len: Any) -> int:
    """The number of tokens to make; TypeError or ValueError unless it is an integer of at least 1."""
    return integer("seq_len", seq_len, 1)


def prefix_of(beside: Mapping[str, Any], b: int) -> int | Int[Tensor, " b"] | None:
    """The prefix that a call of b rows is given; None where it has none that a model would take."""
    prefix: Any = beside.get("prefix_attn_len")
    if is_integral(prefix) and prefix.shape == (b,):
        return widened(prefix)
    return prefix if isinstance(prefix, int) and 0 <= prefix <= LARGEST else None
