"""Variants as they are written, and what they are built of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..base.checks import describe, number
from .misspelt import as_setting
from .tasks.task import Task

__all__ = ["Variant", "read_rates", "read_variants"]


@dataclass
class Variant:
    """A name, all its flags, and the rates it is trained with. `said`: the flags it was given itself."""

    name: str
    flags: dict[str, Any]
    rates: tuple[float, ...]
    said: Mapping[str, Any]

    def built(self, task: Task, device: str | torch.device = "cpu", **other: Any) -> Any:
        """The module that is trained, fresh; TypeError or ValueError that names the variant."""
        try:
            with torch.device(device):
                return task.build({**self.flags, **other})
        except (TypeError, ValueError) as error:
            raise type(error)(f"variant {self.name!r}: {as_setting(error)}") from None


def read_rates(lr: Any, what: str = "lr") -> tuple[float, ...]:
    """One rate or several, each once; TypeError or ValueError for others."""
    given = lr if isinstance(lr, (tuple, list)) else (lr,)
    rates = tuple(dict.fromkeys(number(what, rate, above=0) for rate in given))
    if not rates:
        raise ValueError(f"{what} is empty: give one rate or several, such as (1e-3, 3e-3)")
    return rates


def read_variants(given: Any, shared: Mapping[str, Any], rates: tuple[float, ...], task: Task) -> list[Variant]:
    """The variants: layouts, or flags by name; each is built once on meta, so that what is wrong is said at once."""
    named = as_mapping(given)
    if not named:
        raise ValueError("there are no variants: give flags by name, such as {'softmax': dict(layers='attn ff')}")
    variants = []
    for name, said in named.items():
        flags = {"layers": said} if isinstance(said, str) else said
        if not isinstance(name, str) or not isinstance(flags, Mapping):
            raise TypeError(f"variant {name!r} must be a layout or flags by name, not {describe(said)}")
        own = dict(flags)
        of_its_own = read_rates(own.pop("lr"), f"lr of variant {name!r}") if "lr" in own else rates
        variants.append(Variant(name, completed(name, {**shared, **own}, task), of_its_own, own))
    check_shared(variants, shared)
    if task.on_meta:
        for variant in variants:
            variant.built(task, "meta")
    return variants


def check_shared(variants: list[Variant], shared: Mapping[str, Any]) -> None:
    """ValueError for a flag of all variants that each of them says itself."""
    for flag, value in shared.items():
        if all(flag in variant.said for variant in variants):
            raise ValueError(f"{flag}={value!r} is of all variants, but each has {flag} of its own: leave it out")


def completed(name: str, flags: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """All flags of a variant; errors of its layout name it."""
    try:
        return task.completed(flags)
    except (TypeError, ValueError) as error:
        raise type(error)(f"variant {name!r}: {error}") from None


def as_mapping(given: Any) -> Mapping[str, Any]:
    """Variants by name; those of a list are layouts, and their own names."""
    if isinstance(given, Mapping):
        return given
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"variants must be flags by name, or a list of layouts, not {describe(given)}")
    for layout in given:
        if not isinstance(layout, str):
            raise TypeError(f"in a list, variants are layouts such as 'attn ff', not {describe(layout)}")
    return {layout: layout for layout in given}
