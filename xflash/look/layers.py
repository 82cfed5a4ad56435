"""The stacks inside a model, and what their layers are called in tables and pictures."""

from typing import Any, NamedTuple, cast

from torch import nn

from ..base.checks import given
from ..base.registry import blocks
from ..layers.blocks.block import Block
from ..layers.branch import Branch
from ..stack.face import AttentionLayers

__all__ = ["Layer", "block_name", "layers_of", "stacks_of"]


# What wrappers call what they hold, which says nothing where there is one of it.
HOLDERS = ("net", "transformer", "attn_layers", "stack")


class Layer(NamedTuple):
    """A block where a tensor meets it: its stack's name, the place of its layer counted from 0, and what it is called.

    label: such as `3 attn`, layers counted from 1; `3.2 attn` where blocks in parallel are of one kind, and with the
    stack's name in front where the model has several.  whole: the layer that it is in, such as `3 attn+ff`.
    """

    stack: str
    place: int
    label: str
    whole: str
    block: Block


def stacks_of(model: Any) -> dict[str, AttentionLayers]:
    """The stacks of a model by the names that they have there, '' for its one; an error where none is."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a stack or a model or trainer with one inside, not {given(model)}")
    found = {name: module for name, module in model.named_modules() if isinstance(module, AttentionLayers)}
    brief = [".".join(part for part in name.split(".") if part not in HOLDERS) for name in found]
    found = dict(zip(brief if len({*brief}) == len(brief) else found, found.values(), strict=True))
    if not found:
        raise ValueError(f"there is no stack in this {type(model).__name__}: give a Decoder, or a model that has one")
    return found


def block_name(block: Block) -> str:
    """As the layout calls it."""
    return blocks.name_of(type(block))


def layers_of(stack: AttentionLayers, name: str = "", several: bool = False) -> list[Layer]:
    """The blocks of a stack as a tensor meets them, tied ones as often as they run."""
    found, front = [], f"{name} " if several and name else ""
    for place, index in enumerate(stack.order):
        branch, number = cast(Branch, stack.branches[index]), f"{front}{place + 1}"
        kinds = branch.kinds()
        for i, (block, _) in enumerate(branch.block.members()):
            own = f"{number}.{i + 1}" if kinds.count(kinds[i]) > 1 else number
            found.append(Layer(name, place, f"{own} {kinds[i]}", f"{number} {'+'.join(kinds)}", block))
    return found
