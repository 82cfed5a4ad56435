"""Widths at which variants are as large, or as much work, as the first of them."""

from collections.abc import Callable
from typing import Any

from ..base.checks import shown
from .facts import flops_of, size_of
from .tasks.task import Task
from .variants import Variant

__all__ = ["match_widths"]

CLOSE, STEPS, WIDEST, AIMS = 0.02, (8, 4, 2, 1), 16_384, 12


def match_widths(variants: list[Variant], by: Any, task: Task) -> list[str]:
    """Changes `dim` until each variant is within 2 % of the first one's 'params' or 'flops'; says what it changed.

    ValueError for a variant that fixes its own width, and where no width comes close enough.
    """
    if by is None:
        return []
    if by not in ("params", "flops"):
        raise ValueError(f"match is {shown(by)}; possible are 'params', 'flops' and None")
    if not task.on_meta:
        raise ValueError(f"match={by!r} changes dim, but models of one's own are made as make_model says: match=None")
    measure = measures(by, task)
    goal = measure(variants[0], variants[0].flags["dim"])
    return [changed(variant, goal, measure, by) for variant in variants[1:]]


def measures(by: str, task: Task) -> Callable[[Variant, int], float]:
    """What is to be equal, of a variant at a width."""
    if by == "params":
        return lambda variant, dim: size_of(variant.built(task, "meta", dim=dim))
    return lambda variant, dim: flops_of(variant, task, dim=dim)[0]


def changed(variant: Variant, goal: float, measure: Callable[[Variant, int], float], by: str) -> str:
    """A line about the width that a variant now has."""
    before = variant.flags["dim"]
    if abs(measure(variant, before) / goal - 1) > CLOSE:
        if "dim" in variant.said:
            raise ValueError(
                f"variant {variant.name!r} fixes dim={before}, which match={by!r} would have to change: leave it out"
            )
        variant.flags["dim"] = fitting(variant, goal, measure, by)
    found = measure(variant, variant.flags["dim"])
    what = "parameters" if by == "params" else "FLOPs a unit"
    return f"{variant.name}: dim {before} -> {variant.flags['dim']}, {found:,.0f} {what} ({found / goal - 1:+.1%})"


def fitting(variant: Variant, goal: float, measure: Callable[[Variant, int], float], by: str) -> int:
    """The width that comes close, in the largest steps in which one does; those that the stack refuses are left out."""
    sizes: dict[int, float] = {}
    center = aimed(variant, goal, measure)
    for step in STEPS:
        for dim in {max(step, center // step * step), (center // step + 1) * step} - set(sizes):
            if (size := size_at(variant, dim, measure)) is not None:
                sizes[dim] = size
        best = min(sizes, key=lambda dim: abs(sizes[dim] / goal - 1), default=None)
        if best is not None and abs(sizes[best] / goal - 1) <= CLOSE:
            return best
    said = "none can be built" if best is None else f"dim={best} has {sizes[best] / goal - 1:+.0%}"
    raise ValueError(
        f"variant {variant.name!r} comes within {CLOSE:.0%} of the first one's {by} at no width ({said}): "
        "give it another depth"
    )


def aimed(variant: Variant, goal: float, measure: Callable[[Variant, int], float]) -> int:
    """About where the goal lies: size grows between the width and its square, so that each aim is nearer."""
    dim = variant.flags["dim"]
    for _ in range(AIMS):
        size = size_at(variant, dim, measure)
        aim = max(1, min(WIDEST, round(dim * (goal / size) ** 0.5 if size else dim + 1)))
        if aim == dim:
            break
        dim = aim
    return dim


def size_at(variant: Variant, dim: int, measure: Callable[[Variant, int], float]) -> float | None:
    """The size at a width, None where the stack cannot be that wide."""
    try:
        return measure(variant, dim)
    except ValueError:
        return None
