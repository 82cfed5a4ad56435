"""Causal FLASH in Triton: what launches the kernels, in the place of the bodies of `fused_groups`' two operators.

Kept for the backward are the same tensors as there, so that either can go on from what the other has done. A step of
training is eleven launches, none of which depends on the length.
"""

import math
from typing import Any, NamedTuple

import torch
import triton

from ...base.shapes import Tensor
from .fused_pieces import Settings
from .fused_results import empty, empty_gradients
from .tiled import add_diagonals
from .triton_backward import base_back, carry_back, far_back, near_back, scores_back, values_back
from .triton_forward import carry, gated, queries, weights

__all__ = ["KERNELS", "Cut", "Shape", "Tiles", "backward", "forward", "grid_of", "tiles_for"]


class Shape(NamedTuple):
    """b rows of n tokens, e channels of values, k of queries, groups of w tokens."""

    b: int
    n: int
    e: int
    k: int
    w: int

    @property
    def groups(self) -> int:
        return triton.cdiv(self.n, self.w)


class Tiles(NamedTuple):
    """Tokens, channels of queries and of values that a program works on, and what it goes through in a step."""

    T: int = 128
    WIDTH: int = 128
    CHANNELS: int = 128
    STEP: int = 64
    num_warps: int = 8
    num_stages: int = 3


class Cut(NamedTuple):
    """How a kernel is cut into programs: the axes of its grid, as in `grid_of`, and its tiles."""

    grid: str
    tiles: Tiles = Tiles()


# What compiles for Hopper without spilling registers; nobody has timed others yet.
KERNELS = {
    queries: Cut("blocks widths", Tiles(T=16, num_warps=4)),
    weights: Cut("groups slots slots"),
    carry: Cut("rows widths channels", Tiles(CHANNELS=64)),
    gated: Cut("groups slots channels"),
    carry_back: Cut("rows widths channels", Tiles(CHANNELS=64)),
    scores_back: Cut("groups slots slots"),
    far_back: Cut("groups slots sides"),
    values_back: Cut("groups slots channels"),
    near_back: Cut("groups slots widths"),
    base_back: Cut("blocks widths", Tiles(T=16, num_warps=4)),
}
# Programs of a kernel that goes through whole rows below which its tiles are made narrower: a GPU has some 100 places
# for them, and one row of 2,048 channels would fill 32. Tensor cores multiply tiles of 16 at the least.
PROGRAMS, NARROW, LEAST = 128, 32, 16


def tiles_for(kernel: Any, s: Shape) -> Tiles:
    """The kernel's tiles, none larger than what there is, narrower where programs would be few."""
    cut = KERNELS[kernel]
    slots = cut.tiles.T if cut.grid.startswith("blocks") else s.w
    sizes = zip(cut.tiles[:4], (slots, s.k, s.e, max(s.e, s.k)), strict=True)
    tiles = Tiles(*(max(LEAST, min(most, triton.next_power_of_2(size))) for most, size in sizes), *cut.tiles[4:])
    while cut.grid.startswith("rows") and tiles.WIDTH > NARROW and math.prod(grid_of(kernel, s, tiles)) < PROGRAMS:
        tiles = tiles._replace(WIDTH=tiles.WIDTH // 2)
    return tiles


def grid_of(kernel: Any, s: Shape, tiles: Tiles) -> tuple[int, ...]:
    """How many programs along each axis of the kernel's grid."""
    widths = triton.cdiv(s.k, tiles.WIDTH)
    counts = {
        "blocks": triton.cdiv(s.b * s.n, tiles.T),
        "rows": s.b,
        "groups": s.b * s.groups,
        "slots": triton.cdiv(s.w, tiles.T),
        "widths": widths,
        "sides": 2 * widths,  # of queries and of keys
        "channels": triton.cdiv(s.e, tiles.CHANNELS),
    }
    return tuple(counts[axis] for axis in KERNELS[kernel].grid.split())


def launch(kernel: Any, s: Shape, given: dict[str, Any]) -> None:
    """Runs a kernel, whose arguments are taken from `given` by their names."""
    tiles = tiles_for(kernel, s)
    given = given | tiles._asdict()
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages, "enable_fp_fusion": True}
    kernel[grid_of(kernel, s, tiles)](**{name: given[name] for name in kernel.arg_names}, **options)


def arguments(hidden: Tensor, gamma: Tensor, settings: Settings, **tensors: Tensor | None) -> tuple[Shape, dict]:
    """The sizes of a call, and what its kernels may ask for."""
    (b, n, c), k = hidden.shape, gamma.shape[1]
    s = Shape(b, n, (c - k) // 2, k, settings.w)
    given = {"H": hidden, "GAMMA": gamma, **tensors}
    given = {name: None if t is None else t.contiguous() for name, t in given.items()}
    turned = 0 if tensors["COS"] is None else tensors["COS"].shape[1]
    sizes = {**s._asdict(), "total": b * n, "turned": turned, "start": settings.start}
    constants = {"MEAN": settings.mean, "RELU2": settings.attn_fn == "relu2"}
    return s, given | sizes | constants | {"scale": settings.scale, "divide": settings.divide}


def forward(
    hidden, gamma, beta, vector, cos, sin, closed, new, settings: Settings, paired: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the operator `flash_groups`."""
    tensors = {"BETA": beta, "VECTOR": vector, "COS": cos, "SIN": sin, "CLOSED": closed, "NEW": new}
    s, given = arguments(hidden, gamma, settings, **tensors)
    out, y, sums, after = empty(hidden, gamma, s.w, keep)
    read = sums if keep else hidden.new_empty(s.b, s.groups * s.k, s.e)
    given |= {"OUT": out, "Y": y if keep else None, "SUMS": read, "AFTER": after, "paired": paired}
    given |= {"FOUR": hidden.new_empty(4, s.b * s.n, s.k), "F": hidden.new_empty(s.b * s.groups, s.w, s.w)}
    # Kernels run on the current device, whatever their tensors' is.
    with torch.cuda.device_of(hidden):
        for kernel in (queries, weights, carry, gated):
            launch(kernel, s, given)
    return out, y, sums, after


def backward(
    dout, dafter, hidden, gamma, beta, vector, cos, sin, new, y, sums, settings: Settings, paired: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the operator `flash_groups_backward`."""
    tensors = {"BETA": beta, "VECTOR": vector, "COS": cos, "SIN": sin, "NEW": new}
    s, given = arguments(hidden, gamma, settings, **tensors, DOUT=dout, DAFTER=dafter, Y=y, SUMS=sums)
    found = dhidden, dgamma, dbeta, dvector, dclosed = empty_gradients(hidden, gamma, beta, vector)
    four, f = hidden.new_empty(4, s.b * s.n, s.k), hidden.new_empty(s.b * s.groups, s.w, s.w)
    # The bias sums over whole matrices, also what nobody sees.
    ds = torch.empty_like(f) if vector is None else torch.zeros_like(f)
    blocks, _ = grid_of(base_back, s, tiles_for(base_back, s))
    parts = hidden.new_empty(blocks, 2, 4, s.k, dtype=torch.float32)
    given |= {"FOUR": four, "F": f, "DS": ds, "DFOUR": torch.empty_like(four), "PARTS": parts, "paired": paired}
    given |= {"DH": dhidden, "DY": torch.empty_like(y), "DKV": torch.empty_like(sums), "DCLOSED": dclosed}
    with torch.cuda.device_of(hidden):
        for kernel in (queries, carry_back, scores_back, far_back, values_back, near_back, base_back):
            launch(kernel, s, given)
    of_gains, of_offsets = parts.sum(0)
    dgamma.copy_(of_gains)
    if beta is not None:
        dbeta.copy_(of_offsets)
    if vector is not None:
        diagonals = torch.zeros_like(dvector, dtype=torch.float32)
        add_diagonals(diagonals, ds[:, None], 0)
        dvector.copy_(diagonals)
    return found
