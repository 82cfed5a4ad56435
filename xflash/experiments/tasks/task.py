"""What a comparison asks of its data."""

import ctypes
import hashlib
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ...base.shapes import Tensor
from ...flags.layout import parse_layout
from ..settings import Settings

__all__ = ["Task", "device_of", "digest", "moved", "split_flags", "weighted"]


class Task:
    """Data, and what a variant's flags become on it: a module to train, its loss and its held-out score.

    `flags` are what every variant has that does not say otherwise; where their names begin with `prefixes`, a side of
    the model has its own. `unit` is what speed is counted in.
    """

    flags: Mapping[str, Any] = {"dim": 128, "heads": 4}
    prefixes: tuple[str, ...] = ("",)
    unit = "token"
    score_name = "loss"
    better = "less"
    # Settings that have no effect on data of this kind, with the reason.
    unused: Mapping[str, str] = {}
    # Whether its batches and models can be on the meta device, where FLOPs are counted.
    on_meta = True

    def __init__(self, settings: Settings, name: str):
        self.settings, self.name = settings, name

    @property
    def row_tokens(self) -> int:
        """How many tokens a row has."""
        return self.settings.seq_len

    @property
    def units(self) -> int:
        """How many units a step has."""
        return self.settings.batch * self.row_tokens

    def describe(self) -> dict[str, Any] | None:
        """All that decides what is drawn, as JSON can hold it; None where nobody can tell."""
        raise NotImplementedError

    def build(self, flags: Mapping[str, Any]) -> nn.Module:
        """The module that is trained, of all flags of a variant."""
        raise NotImplementedError

    def batch(self, generator: torch.Generator) -> tuple[Any, ...]:
        """What a step is made of: tensors on the CPU, and plain values."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: tuple[Any, ...]) -> Tensor:
        """The mean loss of a batch, in nats."""
        raise NotImplementedError

    def score(self, model: nn.Module, look: bool) -> float:
        """The held-out score; `look`: a small part of it, on the way."""
        raise NotImplementedError

    def net(self, model: nn.Module) -> nn.Module | None:
        """What decodes token after token, if anything does."""
        return None

    def completed(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        """A variant's flags with those that the task has for all, and a depth for its layout."""
        known = {**self.flags, **flags}
        for prefix in self.prefixes:
            if f"{prefix}depth" not in known and f"{prefix}custom_layers" not in known:
                known[f"{prefix}depth"] = self.depth(known.get(f"{prefix}layers"), prefix)
        return known

    def depth(self, layers: Any, prefix: str) -> int:
        """How often a layout is repeated that does not say so."""
        usual = "attn cross_attn ff" if prefix == "dec_" else "attn ff"
        return max(1, round(self.settings.num_layers / len(parse_layout(layers or usual))))


def weighted(parts: Iterator[tuple[Tensor, Any]]) -> float:
    """The mean of sums over counts, in double precision; infinite where it is not a number."""
    total, count = 0.0, 0
    for part, counted in parts:
        total, count = total + float(part), count + int(counted)
    mean = total / max(1, count)
    return mean if math.isfinite(mean) else math.inf


def split_flags(flags: Mapping[str, Any], wrapper: type, given: tuple[str, ...]) -> tuple[dict, dict]:
    """The arguments of the wrapper among the flags, and the stack's; ValueError for one that the data decides."""
    for name in given:
        if name in flags:
            raise ValueError(f"{name}={flags[name]!r} is the data's to say: leave it out")
    if "max_mem_len" in flags:
        raise ValueError("max_mem_len is of texts in segments, but rows of a comparison know nothing of each other")
    known = inspect.signature(wrapper).parameters
    outer = {name: value for name, value in flags.items() if name in known}
    return outer, {name: value for name, value in flags.items() if name not in known}


def digest(values: Tensor | bytes) -> str:
    """A fingerprint of a tensor's or a text's content."""
    if isinstance(values, torch.Tensor):
        held = values.contiguous().cpu()
        values = f"{held.dtype}{tuple(held.shape)}".encode() + ctypes.string_at(held.data_ptr(), held.nbytes)
    return hashlib.sha256(values).hexdigest()[:16]


def moved(batch: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    """A batch with its tensors on the device."""
    return tuple(part.to(device) if isinstance(part, torch.Tensor) else part for part in batch)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
