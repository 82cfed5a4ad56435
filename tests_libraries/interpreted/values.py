"""The kernels in Triton, interpreted, give what the definition gives, with all gradients."""

import math

import pytest
import torch
from groups import COARSE, FINE, Case, cut_into

from xflash.layers.kernels import fused_groups as fused
from xflash.layers.kernels import triton_groups
from xflash.layers.kernels.fused_again import plain_groups

CASES = [
    (Case(n=20), FINE),
    (Case(attn_fn="laplace", turned=6, interleaved=True, mean=False), COARSE),
    (Case(n=51, turned=8, bias=False, divide=17.0), COARSE),
    (Case(b=1, n=53, w=37, k=32, e=23, attn_fn="laplace", beta=False, closed=False, turned=32), FINE),
    (Case(n=1, turned=18, interleaved=True), FINE),
    (Case(b=3, n=29, w=64, bias=False, mean=False, turned=4), COARSE),
    (Case(b=3, new=(37, 18, 0), turned=6, closed=False), COARSE),
    (Case(b=3, n=40, w=16, new=(5, 40, 33), attn_fn="laplace", bias=False, beta=False, divide=16.0), COARSE),
]


def results(case, dtype, run):
    """Results and gradients."""
    leaves, turn = case.leaves(dtype), case.turn(dtype)
    new = None if case.new is None else torch.tensor(case.new)
    found = run(case, leaves, turn, new)
    grads = torch.autograd.grad(found, [t for t in leaves if t is not None], case.weights(dtype))
    return [t.detach().double() for t in (*found, *grads)]


def operator(case, leaves, turn, new):
    hidden, gamma, beta, vector, closed = leaves
    return fused.fused_groups(hidden, gamma, beta, case.settings, vector=vector, turn=turn, closed=closed, new=new)


def definition(case, leaves, turn, new):
    """All weights at once; channels are put apart, where pairs are neighbours, as the operator's caller does it."""
    hidden, gamma, beta, vector, closed = leaves
    if turn is None or not case.interleaved:
        cos, sin = (None, None) if turn is None else turn[:2]
        return plain_groups(hidden, gamma, beta, vector, closed, cos, sin, new, case.settings, 0)
    order = torch.arange(case.k)
    order = torch.cat((order[: case.turned : 2], order[1 : case.turned : 2], order[case.turned :]))
    gamma, beta, closed = (
        None if t is None else t.index_select(dim, order) for t, dim in ((gamma, 1), (beta, 1), (closed, 1))
    )
    tables = (torch.cat((t[:, ::2], t[:, 1::2]), 1) for t in turn[:2])
    out, after = plain_groups(hidden, gamma, beta, vector, closed, *tables, new, case.settings, case.turned)
    return out, after[:, order.argsort()]


def off(found, right, order=2.0):
    """By how much each result is wrong, relative to its norm of that order; none of those that are nothing."""
    norm = torch.linalg.vector_norm
    return [float(norm(a - b, order) / norm(b, order)) for a, b in zip(found, right, strict=True) if b.any()]


@pytest.fixture
def launched(monkeypatch):
    """The names of what is launched; all but float64 is served."""
    names, launch = [], triton_groups.launch

    def noted(kernel, *given):
        names.append(kernel.__name__)
        launch(kernel, *given)

    monkeypatch.setattr(triton_groups, "launch", noted)
    monkeypatch.setattr(fused, "triton_groups_for", lambda t, *_: None if t.dtype == torch.float64 else triton_groups)
    return names


@pytest.mark.parametrize(("case", "tiles"), CASES, ids=str)
def test_outputs_and_gradients(case, tiles, launched, monkeypatch):
    cut_into(monkeypatch, tiles)
    found, right = results(case, torch.float32, operator), results(case, torch.float64, definition)
    assert len(launched) == len(triton_groups.KERNELS) + 1
    assert max(off(found, right)) < 1e-6 and max(off(found, right, math.inf)) < 2e-6
    # What the plain operator gives is as far from it.
    assert max(off(results(case, torch.float64, operator), right)) < 1e-10


def test_as_they_are_launched(launched, monkeypatch):
    """The tiles of a GPU, in half precision: no further off than the plain operator is."""
    case = Case(b=1, n=300, w=256, k=128, e=160, turned=32, closed=False)
    right = results(case, torch.float64, operator)
    found = results(case, torch.float16, operator)
    assert launched
    monkeypatch.setattr(fused, "triton_groups_for", lambda *_: None)
    plain = results(case, torch.float16, operator)
    assert all(a < 1.1 * b for a, b in zip(off(found, right), off(plain, right), strict=True))


def test_few_rows_are_cut_into_narrow_programs():
    for b, width in ((8, 128), (4, 128), (3, 64), (1, 32)):
        s = triton_groups.Shape(b, 2048, 2048, 128, 256)
        for kernel in (triton_groups.carry, triton_groups.carry_back):
            tiles = triton_groups.tiles_for(kernel, s)
            assert width == tiles.WIDTH
            assert triton_groups.grid_of(kernel, s, tiles) == (b, 128 // width, 32)


def test_narrow_programs_give_the_same(launched, monkeypatch):
    case = Case(b=1, n=50, k=64, e=80, w=16, turned=16)
    right = results(case, torch.float64, definition)
    for least in (1, 128):
        monkeypatch.setattr(triton_groups, "PROGRAMS", least)
        assert max(off(results(case, torch.float32, operator), right)) < 1e-6


def test_kernels_run_where_their_tensors_are(launched, monkeypatch):
    asked, inside = [], []

    class Device:
        def __init__(self, t):
            asked.append(t.shape)

        def __enter__(self):
            inside.append(len(launched))

        def __exit__(self, *_):
            inside.append(len(launched))

    monkeypatch.setattr(torch.cuda, "device_of", Device)
    case = Case(n=16, w=16, k=16, e=16)
    results(case, torch.float32, operator)
    assert asked == [(2, 16, 48)] * 2 and inside == [0, 4, 4, 11]
