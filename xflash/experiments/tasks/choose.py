"""Which task data are: bytes, a path, ids, pairs, images, a probe, or a model and a loss of one's own."""

import os
from pathlib import Path
from typing import Any

import torch

from ... import probes
from ...base.checks import describe, is_integral
from ...base.shapes import Tensor
from ...datasets import sequences
from ...datasets.images import Images, digits
from ..settings import Settings
from .language import Language
from .masked import Masked
from .own import Own
from .pairs import Halves, Pairs
from .pictures import Pictures
from .probed import Probe, Probed
from .rows import Rows
from .task import Task

__all__ = ["choose", "is_own"]

KINDS: dict[str, type[Rows]] = {"causal": Language, "masked": Masked, "encoder-decoder": Halves}
# The longest path that is looked for.
LONGEST = 1000
POSSIBLE = (
    "possible are bytes, the path of a text, ids (n,), a pair of ids (sources, targets), images of xflash.datasets or "
    "'digits', a probe, (make_model, loss_fn), and None for the text that xflash.datasets finds"
)


def choose(data: Any, settings: Settings) -> Task:
    """The task that the data are; TypeError or ValueError for what is none."""
    if isinstance(data, Task):
        return data
    if isinstance(data, str) and data == "digits" and not Path(data).exists():
        data = digits(say=ignored)
    if isinstance(data, Images):
        return Pictures(settings, data)
    if isinstance(data, tuple) and len(data) == 2:
        return of_two(data, settings)
    if data is None or isinstance(data, (bytes, bytearray, str, os.PathLike, sequences.Text)):
        return of_text(data, settings)
    if is_integral(data):
        return of_ids(data, settings)
    if isinstance(data, Probe):
        return Probed(settings, data)
    if any(data is getattr(probes, name) for name in probes.__all__):
        raise TypeError(f"data is probes.{data.__name__} itself, which makes a probe when it is called")
    raise TypeError(f"data is {describe(data)}; {POSSIBLE}")


def is_own(data: Any) -> bool:
    """Whether data are a model and a loss of one's own, whose arguments may have any name."""
    return isinstance(data, tuple) and len(data) == 2 and callable(data[0]) and callable(data[1])


def ignored(line: str) -> None:
    """Takes the lines about where data come from, which the table says."""


def of_two(data: tuple[Any, Any], settings: Settings) -> Task:
    if all(is_integral(part) and part.dim() == 2 for part in data):
        return Pairs(settings, "pairs", *data)
    if is_own(data):
        return Own(settings, *data)
    raise TypeError(f"data is a pair of {describe(data[0])} and {describe(data[1])}; {POSSIBLE}")


def check_path(data: str) -> None:
    """ValueError for what cannot be the path of a text, with what it is."""
    if "\n" in data or len(data) > LONGEST:
        raise ValueError("data is a text itself, where the path of one is asked for: give text.encode()")
    if data in probes.__all__ and not Path(data).exists():
        raise ValueError(f"{data!r} is a probe: give xflash.probes.{data}(), in Python")


def of_text(data: Any, settings: Settings) -> Task:
    if isinstance(data, str):
        check_path(data)
    if isinstance(data, (bytes, bytearray)):
        text = sequences.Text(f"{len(data):,} bytes", "", "", bytes(data))
    else:
        text = data if isinstance(data, sequences.Text) else sequences.text(data, say=ignored)
    parts = sequences.splits(text)
    return KINDS[settings.kind](settings, text.name, (sequences.to_ids(parts.train), sequences.to_ids(parts.valid)))


def of_ids(ids: Tensor, settings: Settings) -> Task:
    if ids.dim() != 1 or not len(ids):
        raise ValueError(f"ids must be one row of tokens (n,), not {tuple(ids.shape)}")
    low, high = int(ids.min()), int(ids.max())
    count = settings.num_tokens or high + 1
    if low < 0 or high >= count:
        raise ValueError(f"ids go from {low} to {high}, which are not among num_tokens={count}")
    ids = ids.cpu() if ids.dtype != torch.bool else ids.cpu().long()
    cut = len(ids) * 9 // 10
    return KINDS[settings.kind](settings, f"{len(ids):,} ids", (ids[:cut], ids[cut:]), count)
