"""FlexAttention as it is compiled beside the definition: on a CPU, where it has no gradients, its forward alone."""

import pytest
import torch

from xflash.layers.kernels.bounded import seen_between
from xflash.layers.kernels.flex import attend_flex, flex_mask
from xflash.layers.kernels.relative import toeplitz
from xflash.layers.kernels.softmax import attend_slow
from xflash.layers.kernels.tiles import Between

B, H, G, K = 2, 6, 3, 16
NAMES = ("documents", "prefix", "padded", "causal")


def inputs(n, device, dtype):
    chance = torch.Generator().manual_seed(n)
    shapes = ((B, H, n, K), (B, G, n, K), (B, G, n, 2 * K), (H, 2 * n - 1))
    return [torch.randn(*shape, generator=chance).to(device, dtype) for shape in shapes]


def patterns(n, device) -> dict[str, Between]:
    at = torch.arange(n, device=device).expand(B, -1)
    firsts, real = (torch.tensor(t, device=device)[:, None] for t in ([100, n - 1], [n, 23]))
    return {
        "documents": Between(torch.where(at < firsts, 0, firsts), at + 1),
        "prefix": Between(0 * at, torch.maximum(at + 1, firsts)),
        "padded": Between(0 * at, real.expand(-1, n)),
        "causal": Between(0 * at[:1], at[:1] + 1),
    }


def slow(q, k, v, between, vector):
    k, v = (t.repeat_interleave(H // G, 1) for t in (k, v))
    bias = toeplitz(vector, q.shape[2], k.shape[2])[None]
    return attend_slow(q, k, v, seen_between(between, k.shape[2]), bias, scale=0.3)[0]


# A compilation takes seconds on a CPU; on a GPU, where nothing else says whether it is right, everything is tried.
CASES = [("cpu", "documents", 300, torch.float32), ("cpu", "padded", 300, torch.float32)]
if torch.cuda.is_available():
    ALL = [(name, n) for name in NAMES for n in (517, 1024)]
    CASES += [("cuda", *case, dtype) for case in ALL for dtype in (torch.float32, torch.bfloat16)]


# Of what the compiler imports.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("device", "name", "n", "dtype"), CASES)
def test_compiled_is_the_definition(device, name, n, dtype):
    """Outputs, and on a GPU gradients; where this fails there, `can_flex` is to say no."""
    given = [t.requires_grad_(device != "cpu") for t in inputs(n, device, dtype)]
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in given]
    between = patterns(n, device)[name]
    q, k, v, vector = given
    ours = [attend_flex(q, k, v, flex_mask(between, n), vector.float(), 0.3)]
    right = [slow(*exact[:3], between, exact[3])]
    if device != "cpu":
        push = torch.randn_like(right[0])
        ours += torch.autograd.grad((ours[0] * push).sum(), given)
        right += torch.autograd.grad((right[0] * push).sum(), exact)
    allowed = {"cpu": 1e-5, "cuda": 2e-2 if dtype is torch.bfloat16 else 5e-3}[device]
    for mine, expected in zip(ours, right, strict=True):
        assert (mine.double() - expected).abs().max() <= allowed * expected.abs().max()
