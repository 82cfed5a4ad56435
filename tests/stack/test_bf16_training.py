"""Training in bfloat16: gradients under autocast and of whole models cast to it, against those in float32."""

import laws
import pytest
import torch
from cases import COMPANY, build
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xflash import AutoregressiveWrapper, Decoder, TransformerWrapper
from xflash.base.registry import blocks

N = 31
# Each write of state vectors is a softmax of sharp cosines (scale 8) over the one before, which multiplies rounding:
# two of them here; through eight the gradient is off by a tenth.
CASES = {name: {"layers": COMPANY.get(name, name).replace("recurrent", "recurrent(block_width=15)")} for name in blocks}
CASES |= {
    "mixed": {"layers": "attn flash gau ff", "pos": ("rotary", "rel_pos", "alibi"), "shift_tokens": 1},
    "recomputed": {"layers": "attn flash gau ff", "pos": "rel_pos", "grad_checkpoint": True},
}


def side_inputs(stack, dtype) -> dict[str, torch.Tensor]:
    given = laws.beside(stack, torch.zeros(laws.BATCH, 1))
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in given.items()}


def gradient(stack, x, dtype, autocast: bool = False) -> torch.Tensor:
    """The gradient of a linear loss, all parameters' in one vector of float32."""
    away = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = stack(x.to(dtype), **side_inputs(stack, dtype))
    grads = torch.autograd.grad((y.float() * away).mean(), list(stack.parameters()))
    assert all(g.isfinite().all() for g in grads)
    assert all(g.dtype == p.dtype for g, p in zip(grads, stack.parameters(), strict=True))
    return torch.cat([g.float().flatten() for g in grads])


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    stack = build(causal=True, **{"depth": 2, **CASES[case]}).train()
    x = torch.randn(laws.BATCH, N, stack.dim, generator=torch.Generator().manual_seed(1))
    exact = gradient(stack, x, torch.float32)
    under = gradient(stack, x, torch.float32, autocast=True)
    cast = gradient(stack.bfloat16(), x, torch.bfloat16)
    assert (under - exact).norm() < 0.05 * exact.norm()
    assert (cast - exact).norm() < 0.08 * exact.norm()
    # Something is computed in bfloat16.
    assert (under - exact).norm() > 1e-4 * exact.norm()


@pytest.mark.parametrize("way", ["autocast", "cast"])
def test_the_loss_falls(way):
    torch.manual_seed(3)
    stack = Decoder(dim=24, depth=1, heads=2, layers="flash attn gau ff", attn_dim_head=8)
    model = AutoregressiveWrapper(TransformerWrapper(num_tokens=13, max_seq_len=32, attn_layers=stack))
    if way == "cast":
        model.bfloat16()
    ids = (torch.arange(20) * torch.tensor([[1], [3], [4]])) % 13
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(16):
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            loss = model(ids)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


class Squares(TorchDispatchMode):
    """Counts the operations that make a matrix (b, ..., n, n) of float32."""

    def __init__(self, b: int, n: int):
        super().__init__()
        self.b, self.n, self.made = b, n, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            square = isinstance(t, torch.Tensor) and t.shape[-2:] == (self.n, self.n)
            if square and t.dtype == torch.float32 and t.numel() >= self.b * self.n**2:
                self.made.append(func)
        return out


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("name", ["attn", "gau", "flash"])
def test_no_matrix_is_widened(name, causal):
    """Under autocast no layer makes its attention matrix in float32, forward or backward."""
    n = 131
    extra = {"flash_group_size": n} if name == "flash" else {}
    stack = build(name, causal=causal, depth=1, pos="rotary", **extra).train()
    with Squares(laws.BATCH, n) as seen:
        with torch.autocast("cpu", torch.bfloat16):
            y = stack(torch.randn(laws.BATCH, n, stack.dim))
        y.sum().backward()
    assert not seen.made
