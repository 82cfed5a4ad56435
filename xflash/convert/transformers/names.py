"""Which of our weights each name of another library means: read from a table of two columns."""

import fnmatch
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ...base.registry import blocks
from .places import Place

__all__ = ["places_of"]


def places_of(table: str | Mapping[str, str], model: nn.Module) -> dict[str, list[Place]]:
    """The places in `model` of each name of a table, those that a model of these flags has.

    Of several models in one there is a table each, by where that model is in it.

    A line is `their.name  our.name[words]`. `{i}` is a layer there, `{e}` an expert. Our names begin with the block
    whose branch it is (`attn.block.to_out.weight`), or with a module of the model; `*` is what the flags say. A name
    may stand in two lines.
    """
    if not isinstance(table, str):
        within = {root: places_of(lines, model.get_submodule(root)) for root, lines in table.items()}
        return {
            name: [place._replace(name=f"{root}.{place.name}".lstrip(".")) for place in places]
            for root, found in within.items()
            for name, places in found.items()
        }
    ours = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, list[Place]] = {}
    for line in filter(str.strip, table.split("\n")):
        theirs, _, rest = line.strip().partition(" ")
        name, words = re.fullmatch(r"\s*([\w.*]+)(?:\[([\w ]+)\])?", rest).groups(default="")  # ty: ignore
        for layer, branches in enumerate(branches_of(model)) if "{i}" in theirs else [(0, {})]:
            for own in fnmatch.filter(ours, spelled(name, branches)):
                for expert in range(len(ours[own])) if "{e}" in theirs else [None]:
                    place = Place(own, tuple(words.split()), expert)
                    found.setdefault(theirs.format(i=layer, e=expert), []).append(place)
    return found


def spelled(name: str, branches: dict[str, tuple[str, str]]) -> str:
    """The whole name of a weight that is said by its block; '' where the layer has no such block."""
    if not branches:
        return name
    kind, _, rest = name.partition(".")
    if kind not in branches:
        return ""
    branch, block = branches[kind]
    return f"{block}.{rest.removeprefix('block.')}" if rest.startswith("block.") else f"{branch}.{rest}"


def branches_of(model: nn.Module) -> Iterator[dict[str, tuple[str, str]]]:
    """For each layer of another library, by the names of its blocks, the branch that each is here and the block in it.

    Blocks in parallel are one branch.
    """
    column: Any = model.get_submodule("attn_layers.branches")
    found = []
    for at, branch in enumerate(column):
        place = f"attn_layers.branches.{at}"
        members = getattr(branch.block, "blocks", None)
        named = {"block": branch.block} if members is None else {f"block.blocks.{j}": b for j, b in enumerate(members)}
        found.append({blocks.name_of(type(block)): (place, f"{place}.{name}") for name, block in named.items()})
    step = len(found) // sum("attn" in branch for branch in found)
    for first in range(0, len(found), step):
        yield {kind: names for branch in found[first : first + step] for kind, names in branch.items()}
