"""MXFP4: weights of four bits, 32 of which share a scale (https://arxiv.org/abs/2310.10537)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...base.shapes import Integer, Tensor
from .front import Made, read
from .settings import Settings

__all__ = ["check_packed", "unpacked"]

BLOCKS, SCALES = "_blocks", "_scales"
# A sign, two bits of exponent and one of mantissa.
HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BIAS = 127


def check_packed(settings: Settings) -> None:
    """ValueError for weights that are quantised otherwise."""
    said = settings("quantization_config", {})
    if said and said.get("quant_method") != "mxfp4":
        raise settings.error("quant_method", said.get("quant_method"), "only 'mxfp4' has")


def unpacked(weights: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """All weights, those that are stored as blocks and scales as the matrices of all experts that they are.

    ValueError for blocks without scales, or with others.
    """
    found = {name: weight for name, weight in weights.items() if not name.endswith((BLOCKS, SCALES))}
    for name in weights:
        if name.endswith(BLOCKS):
            whole = name.removesuffix(BLOCKS)
            found[whole] = packed(name, weights[name], whole + SCALES, weights.get(whole + SCALES))
        elif name.endswith(SCALES) and name.removesuffix(SCALES) + BLOCKS not in weights:
            raise ValueError(f"there is a weight {name!r}, but none {name.removesuffix(SCALES) + BLOCKS!r}")
    return found


def packed(name: str, blocks: Any, other: str, scales: Any) -> Made:
    """Blocks (experts, rows, groups, bytes) and their scales (experts, rows, groups) as (experts, columns, rows)."""
    if scales is None:
        raise ValueError(f"there is a weight {name!r}, but none {other!r}")
    for which, weight in ((name, blocks), (other, scales)):
        if weight.dtype != torch.uint8:
            raise ValueError(f"the weight {which!r} is {weight.dtype}, not torch.uint8, as mxfp4 is stored")
    if len(blocks.shape) != 4 or tuple(scales.shape) != tuple(blocks.shape[:3]):
        raise ValueError(
            f"the weights {name!r} and {other!r} are of shapes {tuple(blocks.shape)} and {tuple(scales.shape)}, "
            "not (experts, rows, groups, bytes) and (experts, rows, groups)"
        )
    experts, rows, groups, count = blocks.shape
    shape = (experts, groups * count * 2, rows)
    return Made(shape, torch.bfloat16, lambda: dequantised(read(blocks), read(scales)).transpose(1, 2))


def dequantised(blocks: Integer[Tensor, "e r g c"], scales: Integer[Tensor, "e r g"]) -> Tensor:
    """The numbers (e, r, columns) in bfloat16, which holds them exactly; the lower half of a byte comes first."""
    values = torch.tensor([*HALF, *(-value for value in HALF)])
    experts, rows, groups, count = blocks.shape
    out = torch.empty(experts, rows, groups, count, 2, dtype=torch.bfloat16)
    for expert in range(experts):
        # One after the other: indices take eight bytes a number.
        halves = torch.stack((blocks[expert] & 15, blocks[expert] >> 4), -1).int()
        size = torch.exp2(scales[expert].float() - BIAS)
        out[expert] = values[halves] * size[..., None, None]
    return out.view(experts, rows, groups * count * 2)
