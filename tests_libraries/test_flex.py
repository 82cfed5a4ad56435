"""FlexAttention as it is compiled beside the definition: on a CPU, where it has no gradients, its forward alone."""

import pytest
import torch

from xflash.layers.kernels.bounded import seen_between
from xflash.layers.kernels.flex import attend_flex, flex_mask
from xflash.layers.kernels.relative import toeplitz
from xflash.layers.kernels.softmax import attend_slow
from xflash.layers.kernels.tiles import Between

B, H, G, K = 2, 6, 3, 16


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


# Of what the compiler imports.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_forward_on_a_cpu():
    for n, names in ((300, ("documents", "padded")), (517, ("prefix",))):
        q, k, v, vector = inputs(n, "cpu", torch.float32)
        for name in names:
            between = patterns(n, "cpu")[name]
            y = attend_flex(q, k, v, flex_mask(between, n), vector, 0.3)
            torch.testing.assert_close(y, slow(q, k, v, between, vector), rtol=0, atol=1e-5, msg=f"{name}, {n}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["documents", "prefix", "padded", "causal"])
def test_outputs_and_gradients_on_a_gpu(name, dtype):
    """Where this fails, `can_flex` is to say no."""
    n = 517
    given = [t.requires_grad_() for t in inputs(n, "cuda", dtype)]
    exact = [t.detach().double().requires_grad_() for t in given]
    between = patterns(n, "cuda")[name]
    q, k, v, vector = given
    ours = attend_flex(q, k, v, flex_mask(between, n), vector.float(), 0.3)
    wanted = slow(*exact[:3], between, exact[3])
    push = torch.randn_like(wanted)
    grads = torch.autograd.grad((ours * push).sum(), given), torch.autograd.grad((wanted * push).sum(), exact)
    for mine, right in zip((ours, *grads[0]), (wanted, *grads[1]), strict=True):
        off = (mine.double() - right).abs().max() / right.abs().max()
        assert off < (2e-2 if dtype is torch.bfloat16 else 5e-3)
