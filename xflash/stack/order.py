"""Which layers a column runs one after the other, each the module of its own or of another place."""

from collections.abc import Sequence
from typing import Any

from ..base.registry import blocks, excerpt
from ..flags.layout import LayerSpec, layout_text

__all__ = ["order_of", "places_of", "sandwiched"]


def alone(spec: LayerSpec) -> bool:
    """Whether a layer works on each token alone."""
    return all(blocks[member.name].works_alone() for member in spec.members)


def sandwiched(specs: Sequence[LayerSpec], depth: int, coef: int, tied: bool) -> tuple[LayerSpec, ...]:
    """The layout repeated, in front of it its first layer that mixes tokens, behind it its last one that does not.

    ValueError where it has no such layers, or fewer repetitions than are to be taken apart (1911.03864).
    """
    text = excerpt(layout_text(specs))
    if coef > depth:
        raise ValueError(f"sandwich_coef={coef} takes repetitions of the layout apart, but depth={depth} has fewer")
    if tied:
        raise ValueError(
            f"sandwich_coef={coef} makes a column without repetitions, which weight_tie_layers=True would tie"
        )
    mixing = [spec for spec in specs if any(blocks[member.name].mixes_tokens for member in spec.members)]
    others = [spec for spec in specs if alone(spec)]
    if not mixing or not others:
        raise ValueError(
            f"sandwich_coef={coef} puts a layer that mixes tokens in front and one that works on each alone behind, "
            f"but the layout {text} has not both"
        )
    return (*mixing[:1] * coef, *tuple(specs) * (depth - coef), *others[-1:] * coef)


def order_of(stack: Any, count: int, period: int) -> tuple[int, ...]:
    """For each place of the column which of its distinct layers runs there; of `count` layers `period` are one layout.

    ValueError for nothing to tie, and for an order that names a layer that there is not or leaves one out.
    """
    order = stack.layers_execute_order
    if stack.weight_tie_layers and count == period:
        raise ValueError(
            "weight_tie_layers=True ties the repetitions of the layout, but it is there only once (depth=1)"
        )
    if order is None:
        distinct = period if stack.weight_tie_layers else count
        return tuple(i % distinct for i in range(count))
    if stack.weight_tie_layers:
        raise ValueError("layers_execute_order says which layers are run again, so weight_tie_layers cannot")
    wrong = next((i for i in order if not 0 <= i < count), None)
    if wrong is not None:
        raise ValueError(f"layers_execute_order names layer {wrong}, but the stack's are numbered 0 to {count - 1}")
    if left := sorted(set(range(count)).difference(order)):
        raise ValueError(f"layers_execute_order leaves out layer {left[0]}, which would never be trained")
    return tuple(order)


def places_of(order: Sequence[int]) -> list[tuple[int, ...]]:
    """The places of each distinct layer."""
    found: list[list[int]] = [[] for _ in range(max(order) + 1)]
    for place, i in enumerate(order):
        found[i].append(place)
    return [tuple(places) for places in found]
