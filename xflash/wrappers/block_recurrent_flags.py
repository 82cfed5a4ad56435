"""The arguments of block-recurrent-transformer-pytorch as the flags of a stack."""

import math
from collections.abc import Mapping
from typing import Any

from ..base.checks import number, shown
from ..layers.blocks.block import MOST, SLACK

__all__ = ["FF_MULT", "columns", "gated_width", "stack_flags"]

FF_MULT = 4


def columns(
    depth: int,
    recurrent_layers: tuple[int, ...] | None,
    read_recurrent_layers: tuple[int, ...] | None,
    all_cosine: bool,
) -> tuple[Any, ...]:
    """The column of attention and feed-forward layers; layers are counted from 1. ValueError for what cannot be."""
    writers = layer_numbers("recurrent_layers", recurrent_layers, (depth // 2 or 1,), depth)
    readers = layer_numbers("read_recurrent_layers", read_recurrent_layers, writers, depth)
    if len(set(writers)) != len(writers):
        raise ValueError(f"recurrent_layers names a layer twice: {writers}")
    if len(readers) != len(writers):
        raise ValueError(f"read_recurrent_layers has {len(readers)} entries, but recurrent_layers {len(writers)}")
    pairs = list(zip(readers, writers, strict=True))
    for reader, writer in pairs:
        if reader > writer:
            raise ValueError(
                f"read_recurrent_layers={readers}: layer {writer} cannot be read above itself, at {reader}"
            )
    numbers = {writer: number for number, writer in enumerate(sorted(writers), 1)}
    column: list[Any] = []
    for layer in range(1, depth + 1):
        others = tuple(numbers[w] for r, w in pairs if r == layer != w)
        flags: dict[str, Any] = {"read_from": others} if others else {}
        if layer in writers:
            column.append(("recurrent", flags if (layer, layer) in pairs else {"reads": False, **flags}))
        else:
            column.append(("block_attn", {"cosine": True, **flags} if all_cosine else flags))
        column.append(("ff", {}))
    return tuple(column)


def layer_numbers(name: str, given: Any, default: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Layers counted from 1; TypeError or ValueError for others."""
    if given is not None and not isinstance(given, (tuple, list)):
        raise TypeError(f"{name} must be whole numbers, layers counted from 1, not {shown(given)}")
    layers = default if given is None else tuple(given)
    for layer in layers:
        if not isinstance(layer, int) or isinstance(layer, bool):
            raise TypeError(f"{name} must be whole numbers, layers counted from 1, not {shown(layer)}")
        if not 1 <= layer <= depth:
            raise ValueError(f"{name} are counted from 1 to the depth {depth}, not {shown(layer)}")
    return layers


def gated_width(dim: int, ff_mult: float, flags: Mapping[str, Any]) -> int:
    """The inner width of the feed-forward layers; ValueError when ff_mult and ff_dim are both given."""
    ff_mult = number("ff_mult", ff_mult, above=0)
    if flags.get("ff_dim") is None:
        return math.floor(dim * number("ff_mult", ff_mult, above=0, at_most=MOST) * 2 / 3 + SLACK)
    if ff_mult != FF_MULT:
        raise ValueError(f"ff_mult={ff_mult} and ff_dim={flags['ff_dim']} both say how wide the layers are; give one")
    return flags["ff_dim"]


def stack_flags(
    column: tuple[Any, ...],
    *,
    dim_head: int,
    block_width: int,
    num_state_vectors: int | None,
    fused: bool,
    compress_factor: int | None,
) -> dict[str, Any]:
    """The flags of the blocks of `column`; compress_factor: None where memories are not compressed."""
    shared: dict[str, Any] = {"block_width": block_width, "dim_head": dim_head, "kv_heads": 1, "flash": fused}
    if compress_factor is not None:
        shared |= {"compress": "conv", "compress_factor": compress_factor}
        shared["compress_blocks"] = max(compress_factor // 2, 1)
    used = {name for name, _ in column} - {"ff"}
    flags = {f"{block}_{name}": value for block in used for name, value in shared.items()}
    if "recurrent" in used:
        flags["recurrent_num_state_vectors"] = block_width if num_state_vectors is None else num_state_vectors
    fixed = {"custom_layers": column, "pos": "rotary", "rotary_xpos": True, "ff_glu": True, "ff_no_bias": True}
    return {**fixed, **flags}
