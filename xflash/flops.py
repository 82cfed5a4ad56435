"""What the operators of our own count for in PyTorch's FlopCounterMode: the products they stand for.

As PyTorch counts its own attention, a causal one counts like a whole one though kernels leave out most of what nobody
sees, and a backward counts the scores that it makes again.
"""

import importlib.util
import sys
from math import prod
from typing import Any

from .base.shapes import Tensor
from .layers.blocks.recurrence import counted, renew_all
from .layers.kernels.chunked_losses import chunked_losses, chunked_losses_backward
from .layers.kernels.fused_groups import flash_groups, flash_groups_backward
from .layers.kernels.tiled import gated_tiles, gated_tiles_backward

__all__ = ["register"]

COUNTER = "torch.utils.flop_counter"


def attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, out_val: Any = None) -> int:
    """Scores, and the values summed with them."""
    return products(q, k, v, 1, 1)


def attention_backward(dy: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, out_val: Any = None) -> int:
    return products(q, k, v, 3, 2)


def products(q: Tensor, k: Tensor, v: Tensor, wide_keys: int, wide_values: int) -> int:
    """So many products of n x m along the width of keys, and of values."""
    return 2 * prod(q.shape[:3]) * k.shape[2] * (wide_keys * q.shape[3] + wide_values * v.shape[3])


def groups(hidden: Tensor, gamma: Tensor, *rest: Any, out_val: Any = None) -> int:
    """In each group as attention; across groups a product to make the sum of a full one, and one to read."""
    return in_groups(hidden, gamma, rest[6], 1, 1, 1)


def groups_backward(dout: Tensor, _: Any, hidden: Tensor, gamma: Tensor, *rest: Any, out_val: Any = None) -> int:
    return in_groups(hidden, gamma, rest[7], 3, 2, 2)


def in_groups(hidden: Tensor, gamma: Tensor, w: int, wide_keys: int, wide_values: int, times: int) -> int:
    (b, n, c), k = hidden.shape, gamma.shape[1]
    (full, left), e = divmod(n, w), (c - k) // 2
    near = (full * w * w + left * left) * (wide_keys * k + wide_values * e)
    return 2 * b * (near + times * (n + full * w) * k * e)


def loss(y: Tensor, weight: Tensor, *_: Any, out_val: Any = None) -> int:
    """The logits."""
    return 2 * y.shape[0] * prod(weight.shape)


def loss_backward(grad: Tensor, y: Tensor, weight: Tensor, *rest: Any, out_val: Any = None) -> int:
    """The logits again, and a product for each gradient that is wanted."""
    return (1 + sum(rest[-2:])) * 2 * y.shape[0] * prod(weight.shape)


def renewal(*given: Any, out_val: Any = None) -> int:
    """What a layer's own operations count for."""
    return counted(*given)


def register(counter: Any) -> None:
    """Makes the operators known to `torch.utils.flop_counter`."""
    formulas: dict[Any, Any] = {
        gated_tiles: attention,
        gated_tiles_backward: attention_backward,
        flash_groups: groups,
        flash_groups_backward: groups_backward,
        chunked_losses: loss,
        chunked_losses_backward: loss_backward,
        renew_all: renewal,
    }
    for operator, formula in formulas.items():
        counter.register_flop_formula(operator._opoverload.overloadpacket, get_raw=True)(formula)


class Waiting:
    """Registers the formulas once the counter is imported, with which not everybody should have to wait for Triton."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def run_and_register(module: Any) -> None:
            run(module)
            register(module)

        spec.loader.exec_module = run_and_register
        return spec


if COUNTER in sys.modules:
    register(sys.modules[COUNTER])
else:
    sys.meta_path.insert(0, Waiting())
