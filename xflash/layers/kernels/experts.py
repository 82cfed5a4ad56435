"""Several linear maps, each for the rows that chose it: what a mixture of experts is made of."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...base.looks import is_exporting, transformed_further
from ...base.shapes import Float, Int, Tensor, typed

__all__ = ["Sorted", "grouped_linear", "grouped_linear_slow", "mixed", "mixed_slow", "sorted_by_expert"]

# Rows of one expert that are multiplied together where nobody may look at how many there are.
TILE = 64

Experts = Callable[["Sorted"], Tensor]


class Sorted(NamedTuple):
    """Rows in the order of their experts.

    x: (s, d) the rows, s = tokens times experts a token.  expert: (s,) whose each is.  counts: (e,) how many each has.
    """

    x: Float[Tensor, "s d"]
    expert: Int[Tensor, " s"]
    counts: Int[Tensor, " e"]


def sorted_by_expert(
    x: Float[Tensor, "t d"], chosen: Int[Tensor, "t k"], experts: int
) -> tuple[Sorted, Int[Tensor, " s"]]:
    """Each token once for each of its experts, and where it came to lie: (t * k,), token by token."""
    flat = chosen.flatten()
    expert, order = flat.sort(stable=True)
    # Not in place, so that each row can be a call of its own (vmap).
    back = torch.empty_like(order).scatter(0, order, torch.arange(order.shape[0], device=order.device))
    counts = torch.zeros(experts, dtype=torch.long, device=x.device).index_add(0, flat, torch.ones_like(flat))
    return Sorted(x.index_select(0, order // chosen.shape[1]), expert, counts), back


@typed
def mixed(
    x: Float[Tensor, "t d"],
    weights: Float[Tensor, "t k"],
    chosen: Int[Tensor, "t k"],
    experts: int,
    run: Experts,
) -> Float[Tensor, "t e"]:
    """The sum of what each token's k experts make of it, weighted; no token is left out, however many chose one.

    run: what the experts make of rows sorted by them.
    """
    rows, back = sorted_by_expert(x, chosen, experts)
    y = run(rows).index_select(0, back).unflatten(0, chosen.shape)
    return (y * weights.to(y.dtype)[..., None]).sum(1)


@typed
def grouped_linear(
    rows: Sorted, weight: Float[Tensor, "e o d"], bias: Float[Tensor, "e o"] | None = None
) -> Float[Tensor, "s o"]:
    """`F.linear` of each row with its expert's weight and bias; no device waits to learn how many they are."""
    if rows.x.is_meta:
        # Only shapes matter, and how much there is to multiply, which no expert changes.
        y = F.linear(rows.x, weight[0])
        return y if bias is None else y + bias[0]
    if torch.compiler.is_compiling() or rows.x.device.type != "cpu" or transformed_further():
        y = by_kernel(rows, weight) if kernel_takes(rows.x, weight) else by_tiles(rows, weight)
        return y if bias is None else y + bias.to(y.dtype)[rows.expert]
    return by_expert(rows, weight, bias)


def grouped_linear_slow(
    rows: Sorted, weight: Float[Tensor, "e o d"], bias: Float[Tensor, "e o"] | None = None
) -> Float[Tensor, "s o"]:
    """`grouped_linear` by its definition: each row's matrix by itself."""
    y = torch.einsum("sd,sod->so", rows.x, weight[rows.expert])
    return y if bias is None else y + bias[rows.expert]


def mixed_slow(
    x: Float[Tensor, "t d"],
    weights: Float[Tensor, "t k"],
    chosen: Int[Tensor, "t k"],
    experts: int,
    run: Experts,
) -> Float[Tensor, "t e"]:
    """`mixed` by its definition: every expert reads every token, and those that were not chosen count nothing."""
    parts = []
    for expert in range(experts):
        everyone = torch.full((x.shape[0],), expert, device=x.device)
        y = run(Sorted(x, everyone, torch.eye(experts, dtype=torch.long, device=x.device)[expert] * x.shape[0]))
        parts.append(y * (weights * (chosen == expert)).sum(1, keepdim=True))
    return torch.stack(parts).sum(0)


def by_expert(rows: Sorted, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One product for each expert that has rows: where looking at the counts costs nothing."""
    # Each of these is undone by one stack in the backward pass; slices would fill a whole gradient each.
    matrices, biases = weight.unbind(), bias.unbind() if bias is not None else [None] * len(weight)
    parts = rows.x.split(rows.counts.tolist())
    return torch.cat([F.linear(x, w, b) for x, w, b in zip(parts, matrices, biases, strict=True)])


def kernel_takes(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch's grouped product takes these: bfloat16 on CUDA, rows of whole 16 bytes."""
    if x.device.type != "cuda" or not hasattr(F, "grouped_mm"):
        return False
    whole = all(width % 8 == 0 for width in weight.shape[1:])
    return x.dtype == weight.dtype == torch.bfloat16 and whole and torch.cuda.get_device_capability(x.device) >= (8, 0)


def by_kernel(rows: Sorted, weight: Tensor) -> Tensor:
    """PyTorch's grouped product, which reads the ends of the groups on the device."""
    return F.grouped_mm(rows.x, weight.mT, offs=rows.counts.cumsum(0).to(torch.int32))


def by_tiles(rows: Sorted, weight: Tensor) -> Tensor:
    """Products of tiles, each of one expert's rows: as many as there can be at most, whatever the counts."""
    s, experts = rows.x.shape[0], weight.shape[0]
    # With few rows each is a tile, so that no matrix is read that nobody chose; an exported graph is for any number.
    width, tiles = (1, s) if not is_exporting() and s <= 4 * experts else (TILE, s // TILE + experts)
    used = (rows.counts + width - 1) // width
    ends = used.cumsum(0)
    first = (ends - used) * width - (rows.counts.cumsum(0) - rows.counts)
    slots = torch.arange(s, device=rows.x.device) + first[rows.expert]
    whose = (ends <= torch.arange(tiles, device=ends.device)[:, None]).sum(1).clamp(max=experts - 1)
    where = slots // width, slots % width
    x = rows.x.new_zeros(tiles, width, rows.x.shape[1]).index_put(where, rows.x)
    return (x @ weight[whose].mT)[where]
