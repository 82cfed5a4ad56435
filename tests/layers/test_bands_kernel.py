"""Attention in a window, block by block, against one matrix of all queries and keys: outputs and gradients."""

import pytest
import torch

from xflash.layers.kernels import bands
from xflash.layers.kernels.bands import Band, Front, attend_band, band_biases, band_masks, seen_in_band
from xflash.layers.kernels.relative import distances, toeplitz_slow
from xflash.layers.kernels.softmax import attend_slow

B, H, K, E, N = 2, 6, 5, 7, 61
CASES = {
    "causal": {"window": 5, "causal": True},
    "of itself": {"window": 1, "causal": True},
    "both ways": {"window": 5, "causal": False},
    "longer than a block": {"window": 20, "causal": True},
    "both ways, longer": {"window": 11, "causal": False},
    "behind some": {"window": 7, "causal": True, "m": N + 3},
    "behind many": {"window": 7, "causal": True, "m": N + 20},
    "sinks": {"window": 5, "causal": True, "sinks": 3},
    "sinks both ways": {"window": 5, "causal": False, "sinks": 3},
    "sinks behind many": {"window": 5, "causal": True, "sinks": 3, "m": N + 20},
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bands, "LEAST", 3)


def inputs(band: Band, g: int):
    chance = torch.Generator().manual_seed(band.m)
    shapes = ((B, H, band.n, K), (B, g, band.m, K), (B, g, band.m, E), (H, 2 * band.m), (B, g, 2, K), (B, g, 2, E))
    return [torch.randn(*shape, generator=chance, dtype=torch.float64).requires_grad_() for shape in shapes]


def slow(q, k, v, band, labels, vector, front):
    r = q.shape[1] // k.shape[1]
    mask, bias = seen_in_band(band, labels, q.device), None
    if vector is not None:
        gaps = distances(band.n, band.m, q.device)
        bias = toeplitz_slow(vector[:, gaps + band.m], band.n, band.m)[None]
    if front is not None:
        k, v = torch.cat((front.k, k), 2), torch.cat((front.v, v), 2)
        mask = torch.nn.functional.pad(mask, (2, 0), value=True)
        bias = torch.zeros(1, q.shape[1], band.n, band.m) if bias is None else bias
        extra = torch.zeros(1, 1, 1, 2) if front.bias is None else front.bias
        bias = torch.cat((extra.expand(1, q.shape[1], band.n, 2), bias), -1)
    k, v = (t.repeat_interleave(r, 1) for t in (k, v))
    return attend_slow(q, k, v, mask, bias, scale=0.3)[0]


def beside(case: dict) -> list[str]:
    """What may stand beside a case: rows with tokens before them have no labels, and sinks no bias."""
    found = ["nothing", "front", *(["labels"] if "m" not in case else []), *(["bias"] if "sinks" not in case else [])]
    return [*found, "all"] if len(found) == 4 else found


@pytest.mark.parametrize(
    ("case", "beside"),
    [pytest.param(case, more, id=f"{name}, {more}") for name, case in CASES.items() for more in beside(case)],
)
def test_blocks_are_the_matrix(case, beside):
    band = Band(**{"n": N, "m": N, **case})
    every = beside == "all"
    q, k, v, vector, front_k, front_v = given = inputs(band, 2 if every or beside == "labels" else 6)
    labels = torch.tensor([[4] * 20 + [2] * 3 + [7] * 38, [1] * 61]) if every or beside == "labels" else None
    vector = vector if every or beside == "bias" else None
    scores = torch.tensor([0.3, -1.0]).expand(1, H, 1, 2).double() if every else None
    front = Front(front_k, front_v, scores) if every or beside == "front" else None
    assert band.fits
    biases = None if vector is None else band_biases(band, lambda gap: vector[:, gap + band.m], q.device)
    masks = band_masks(band, labels, q.device)
    y = attend_band(q, k, v, band, masks, biases, front, scale=0.3)
    outputs = y, slow(q, k, v, band, labels, vector, front)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    ours, expected = (torch.autograd.grad(t.square().sum(), given, allow_unused=True) for t in outputs)
    torch.testing.assert_close(
        [t for t in ours if t is not None], [t for t in expected if t is not None], rtol=0, atol=1e-11
    )
