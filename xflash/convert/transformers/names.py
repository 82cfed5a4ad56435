"""Which of our weights each name of another library means: read from a table of two columns."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from ...base.registry import blocks
from .places import Place

__all__ = ["places_of"]


def places_of(table: str, model: nn.Module) -> dict[str, list[Place]]:
    """The places in `model` of each name of a table, those that a model of these flags has.

    A line is `their.name  our.name[words]`. `{i}` is a layer there, `{e}` an expert. Our names begin with the block
    whose branch it is (`attn.block.to_out.weight`), or with a module of the model. A name may stand in two lines.
    """
    ours = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, list[Place]] = {}
    for line in table.split("\n"):
        if not line.split():
            continue
        theirs, _, rest = line.strip().partition(" ")
        name, words = re.fullmatch(r"\s*([\w.]+)(?:\[([\w ]+)\])?", rest).groups(default="")  # ty: ignore
        for layer, branches in enumerate(branches_of(model)) if "{i}" in theirs else [(0, {})]:
            own = spelled(name, branches)
            if own in ours:
                for expert in range(len(ours[own])) if "{e}" in theirs else [None]:
                    place = Place(own, tuple(words.split()), expert)
                    found.setdefault(theirs.format(i=layer, e=expert), []).append(place)
    return found


def spelled(name: str, branches: dict[str, str]) -> str:
    """The whole name of a weight that is said by its block; '' where the layer has no such block."""
    if not branches:
        return name
    kind, _, rest = name.partition(".")
    return f"{branches[kind]}.{rest}" if kind in branches else ""


def branches_of(model: nn.Module) -> Iterator[dict[str, str]]:
    """For each layer of another library the branches that it is here, by the names of their blocks."""
    column: Any = model.get_submodule("attn_layers.branches")
    held = [blocks.name_of(type(branch.block)) for branch in column]
    count = held.count("attn")
    step = len(held) // count
    for first in range(0, len(held), step):
        yield {held[at]: f"attn_layers.branches.{at}" for at in range(first, first + step)}
