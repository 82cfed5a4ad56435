"""Rows through the linear maps they chose: every fast path against each row's own product."""

from functools import partial

import pytest
import torch
from torch import Tensor

from xflash.layers.kernels.experts import (
    Sorted,
    by_tiles,
    grouped_linear,
    grouped_linear_slow,
    mixed,
    mixed_slow,
    sorted_by_expert,
)

# tokens, experts a token, experts, width in, width out; the third has rows enough for several tiles of an expert.
SIZES = [(37, 2, 5, 7, 11), (3, 1, 4, 5, 3), (307, 3, 7, 5, 13), (1, 2, 8, 3, 4), (2, 3, 3, 2, 5)]


def in_tiles(rows: Sorted, weight: Tensor, bias: Tensor) -> Tensor:
    return by_tiles(rows, weight) + bias[rows.expert]


def drawn(tokens: int, k: int, experts: int, d: int, o: int) -> tuple[list[Tensor], Tensor]:
    """x, weights of the sum, matrices and biases in double, and a choice in which nobody chose the last expert."""
    draw = torch.Generator().manual_seed(tokens)
    shapes = [(tokens, d), (tokens, k), (experts, o, d), (experts, o)]
    given = [torch.randn(*s, dtype=torch.float64, generator=draw).requires_grad_() for s in shapes]
    among = max(k, experts - 1)
    return given, torch.rand(tokens, among, generator=draw).topk(k, 1).indices


@pytest.mark.parametrize("linear", [grouped_linear, in_tiles, torch.compile(grouped_linear, backend="aot_eager")])
@pytest.mark.parametrize("sizes", SIZES)
def test_outputs_and_gradients_are_those_of_the_definition(linear, sizes: tuple[int, ...]):
    given, chosen = drawn(*sizes)
    x, weights, matrices, biases = given
    found = []
    for mix, product in ((mixed_slow, grouped_linear_slow), (mixed, linear)):
        y = mix(x, weights, chosen, sizes[2], partial(product, weight=matrices, bias=biases))
        found.append((y, *torch.autograd.grad(y.tanh().square().sum(), given)))
    for slow, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-10)


def test_nobody_is_left_out_however_many_chose_one_expert():
    x = torch.randn(101, 3)
    rows, back = sorted_by_expert(x, torch.full((101, 1), 2), 5)
    assert rows.counts.tolist() == [0, 0, 101, 0, 0] and torch.equal(rows.x[back], x)


def test_a_token_does_not_see_who_else_chose_its_expert():
    given, chosen = drawn(37, 2, 5, 7, 11)
    x, weights, matrices, biases = (t.detach() for t in given)

    def run(rows: Sorted) -> Tensor:
        return grouped_linear(rows, matrices, biases)

    alone = torch.cat([mixed(x[i : i + 1], weights[i : i + 1], chosen[i : i + 1], 5, run) for i in range(37)])
    torch.testing.assert_close(mixed(x, weights, chosen, 5, run), alone)
