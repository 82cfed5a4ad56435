"""FLASH's groups as kernels of their own, written in Triton, would do them: bytes and FLOPs by a model, not counted.

A few kernels each direction, each reading and writing every tensor once: queries and keys, the weights inside the
groups, the sums across them, the gated result; backward the same in turn. Only what lies below the diagonal of the
weights is touched, in tiles. The rate of their products is ASSUMED (`Machine.triton`).
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from roofline_costs import Kernel, seconds_of
from torch._library.custom_ops import OPDEFS

__all__ = ["FLASH_KERNELS"]

TILE = 128
FORWARD, BACKWARD = "xflash::flash_groups", "xflash::flash_groups_backward"
# What stands around the kernels of a backward: sums of partial sums, and casts.
SMALL = 13


class Sizes(NamedTuple):
    """Bytes of tensors, and FLOPs of products."""

    values: float
    narrow: float
    weights: float
    sums: float
    state: float
    near: float
    far: float
    scores: float


def sizes_of(given: dict[str, Any]) -> Sizes:
    hidden, k, w = given["hidden"], given["gamma"].shape[1], given["w"]
    (b, n, c), size = hidden.shape, hidden.element_size()
    tokens, groups, e, tiles = b * n, b * -(-n // w), (c - k) // 2, max(1, w // TILE)
    touched = (tiles + 1) / (2 * tiles)
    return Sizes(
        values=tokens * e * size, narrow=tokens * k * size, weights=groups * w * w * size * touched,
        sums=groups * k * e * size, state=b * k * e * 4.0, near=2.0 * tokens * w * e * touched,
        far=2.0 * tokens * k * e, scores=2.0 * tokens * w * k * touched,
    )  # fmt: skip


def forward(s: Sizes) -> dict[str, tuple[float, float]]:
    return {
        "queries": (5 * s.narrow, 0),
        "weights": (2 * s.narrow + s.weights, s.scores),
        "carry": (s.narrow + s.values + s.sums + s.state, s.far),
        "gated": (s.weights + s.narrow + s.sums + 4 * s.values, s.near + s.far),
    }


def backward(s: Sizes) -> dict[str, tuple[float, float]]:
    return {
        "queries again": (5 * s.narrow, 0),
        "carry back": (5 * s.values + s.narrow + s.sums + 2 * s.state, s.far),
        "scores back": (2 * s.values + 2 * s.narrow + 2 * s.weights, s.near + s.scores),
        "far back": (2 * s.values + 2 * s.sums + 2 * s.narrow, 2 * s.far),
        "values back": (s.weights + 3 * s.values + s.narrow + s.sums, s.near + s.far),
        "near back": (s.weights + 4 * s.narrow, 2 * s.scores),
        "base back": (6 * s.narrow, 0),
    }


def modelled(name: str, kernels: Callable[[Sizes], dict[str, tuple[float, float]]], small: int) -> Callable[..., Any]:
    """In place of an operator's body: its results by shape, its kernels by the model."""

    def body(run: Any, *args: Any, **kwargs: Any) -> Any:
        operator = OPDEFS[name]
        given = inspect.signature(operator._init_fn).bind(*args, **kwargs).arguments
        machine = run.machine
        for kernel, (moved, flops) in kernels(sizes_of(given)).items():
            seconds = seconds_of(machine, 1, moved, flops, machine.triton)
            run.add(Kernel(f"FLASH's {kernel}", 1, moved, flops, *seconds))
        if small:
            run.add(Kernel("FLASH's sums", small, 0.0, 0.0, small * machine.least, "least"))
        with run:
            return operator._abstract_fn(*args, **kwargs)

    return body


FLASH_KERNELS = {FORWARD: modelled(FORWARD, forward, 0), BACKWARD: modelled(BACKWARD, backward, SMALL)}
