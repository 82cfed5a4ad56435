"""When the operators of the fused FLASH kernel go by Triton, told by tensors that only say where they are."""

from types import SimpleNamespace

import pytest
import torch

from xflash.layers.kernels import fused_groups, triton_choice
from xflash.layers.kernels.triton_choice import triton_asked, triton_groups_for

KERNELS = object()
SERVED = {"b": 3, "n": 37, "e": 48, "k": 32, "w": 64, "dtype": torch.bfloat16, "device": "cuda:1"}


@pytest.fixture
def asked(monkeypatch):
    """XFLASH_TRITON=1 where triton and a GPU are, whose capability can be set."""
    imported = []
    monkeypatch.setenv("XFLASH_TRITON", "1")
    monkeypatch.setattr(triton_choice, "triton_there", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0) if device.index == 1 else (7, 5))
    monkeypatch.setattr(
        triton_choice.importlib, "import_module", lambda *name: imported.append("".join(reversed(name))) or KERNELS
    )
    return imported


def chosen(**changed):
    """What is given for a call with these sizes."""
    given = SimpleNamespace(**SERVED | changed)
    shape = torch.Size((given.b, given.n, 2 * given.e + given.k))
    hidden = SimpleNamespace(shape=shape, device=torch.device(given.device), dtype=given.dtype)
    return triton_groups_for(hidden, torch.empty(4, given.k), given.w)


@pytest.mark.parametrize("changed", [{}, {"dtype": torch.float16}, {"w": 1024}, {"n": 1}], ids=str)
def test_what_is_served(asked, changed):
    assert chosen(**changed) is KERNELS
    assert asked == ["xflash.layers.kernels.triton_groups"]


@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": torch.float32},
        {"dtype": torch.float64},
        {"device": "cpu"},
        {"device": "cuda:0"},
        {"b": 0},
        {"n": 0},
        {"w": 1040},
        {"w": 67},
        {"k": 19},
        {"e": 41},
    ],
    ids=str,
)
def test_what_is_left_to_the_plain_operator(asked, changed):
    assert chosen(**changed) is None
    assert not asked


def test_other_makers(asked, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert chosen() is None


@pytest.mark.parametrize(
    ("value", "expected"), [(None, None), ("0", None), ("false", None), ("", None), ("1", KERNELS)]
)
def test_it_is_asked_for(asked, monkeypatch, value, expected):
    if value is None:
        monkeypatch.delenv("XFLASH_TRITON")
    else:
        monkeypatch.setenv("XFLASH_TRITON", value)
    assert chosen() is expected


def test_a_compiled_caller_may_ask(monkeypatch):
    monkeypatch.setenv("XFLASH_TRITON", "1")
    torch._dynamo.reset()
    call = torch.compile(lambda x: x + 1 if triton_asked() else x - 1, fullgraph=True, backend="eager")
    assert call(torch.zeros(3)).tolist() == [1, 1, 1]


def test_triton_is_missing(asked, monkeypatch):
    monkeypatch.setattr(triton_choice, "triton_there", lambda: False)
    with pytest.raises(ImportError, match=r"XFLASH_TRITON=1 asks for kernels in Triton: pip install triton, or leave"):
        chosen()
    assert chosen(device="cpu") is None


def test_the_operators_take_what_was_chosen(monkeypatch):
    """Both directions, with all that they were given."""
    w, b, n, k, e = 16, 3, 37, 16, 32
    hidden, gamma = torch.randn(b, n, 2 * e + k, requires_grad=True), torch.randn(4, k, requires_grad=True)
    settings = fused_groups.Settings(w, "relu2", 1 / w, 1.0, True)
    results = [torch.randn(shape) for shape in ((b, n, e), (b, n, e), (b, 3 * k, e), (b, k, e))]
    gradients = [torch.randn(shape) for shape in ((b, n, 2 * e + k), (4, k), (0, k), (0,), (b, k, e))]
    calls = []

    def forward(*given):
        calls.append(given)
        return tuple(results)

    def backward(*given):
        calls.append(given)
        return tuple(gradients)

    kernels = SimpleNamespace(forward=forward, backward=backward)
    monkeypatch.setattr(fused_groups, "triton_groups_for", lambda hidden, gamma, size: kernels if size == w else None)
    out, after = fused_groups.fused_groups(hidden, gamma, None, settings)
    assert torch.equal(out, results[0]) and torch.equal(after, results[3])
    assert torch.equal(calls[0][0], hidden) and calls[0][8:] == (settings, 0, True)
    found = torch.autograd.grad((out, after), (hidden, gamma), (results[1], after))
    assert all(map(torch.equal, found, gradients[:2]))
    dout, dafter, *held = calls[1]
    assert torch.equal(dout, results[1]) and torch.equal(dafter, after) and held[9:] == [settings, 0]
    assert torch.equal(held[7], results[1]) and torch.equal(held[8], results[2])
