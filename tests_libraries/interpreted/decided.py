"""What benchmarks/on_gpu.py does with the kernels where there is a GPU, with interpreted ones in their place."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from groups import cut_into

from xflash.layers.kernels import fused_groups as fused
from xflash.layers.kernels import triton_groups
from xflash.layers.kernels.triton_choice import triton_asked

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import on_gpu_kernel

SMALL = on_gpu_kernel.Groups(2, 20, 32, 16, 16, turned=8, dtype=torch.float16)


@pytest.fixture(autouse=True)
def served(monkeypatch):
    """As on a GPU: half precision goes to the kernels, if they are asked for."""

    def chosen(hidden, gamma, w):
        return triton_groups if triton_asked() and hidden.dtype == torch.float16 else None

    cut_into(monkeypatch)
    for module in (fused, on_gpu_kernel):
        monkeypatch.setattr(module, "triton_groups_for", chosen)
    yield
    assert not triton_asked()


OPTIONS = SimpleNamespace(device="cpu", each=0.01)


@pytest.mark.parametrize("changed", [{"ragged": True, "mean": False}, {"b": 1, "closed": True}], ids=str)
def test_right(changed):
    (row,) = on_gpu_kernel.right(SMALL._replace(**changed), OPTIONS)
    assert row["failed"] == {} and 0 < row["off"] < 5e-3 and 0 < row["plain_off"] < 5e-3


def test_what_is_wrong_is_found(monkeypatch):
    calls, forward = [], triton_groups.forward

    def wrong(*given):
        calls.append(1)
        out, *others = forward(*given)
        return (out + 0.1 * len(calls), *others)

    monkeypatch.setattr(triton_groups, "forward", wrong)
    (row,) = on_gpu_kernel.right(SMALL._replace(n=16), OPTIONS)
    assert set(row["failed"]) == {"out", "again"}
    assert row["failed"]["out"].startswith("off by ")


def test_fast():
    (row,) = on_gpu_kernel.fast(SMALL._replace(b=1, n=16), OPTIONS)
    assert row["ms"] > 0 and row["plain_ms"] > 0 and row["faster"] == row["plain_ms"] / row["ms"]
