"""FlopCounterMode counts our operators as it counts what they stand for."""

import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from xflash import AutoregressiveWrapper, Decoder, TransformerWrapper, losses
from xflash.layers import flash
from xflash.layers.blocks.recurrence import RENEWS, recurrence
from xflash.layers.kernels import gated

B, N, H, K, E, W, S, V = 3, 12, 2, 6, 16, 4, 5, 31
SIZES = {"gau": {"gau_query_key_dim": K}, "flash": {"flash_group_size": W, "flash_query_key_dim": K}}


def flops(fn):
    with FlopCounterMode(display=False) as counter:
        out = fn()
    return counter.get_total_flops(), out


def both_ways(fn):
    """The count of a call and that of its backward."""
    forward, out = flops(fn)
    return forward, flops(out.sum().backward)[0]


@pytest.mark.parametrize("name", SIZES)
def test_stacks_count_as_their_definitions(name, monkeypatch):
    stack, x = Decoder(dim=8, depth=1, heads=H, layers=name, **SIZES[name]), torch.randn(B, N, 8)
    forward, backward = both_ways(lambda: stack(x))
    for module in (gated, flash):
        monkeypatch.setattr(module, "operators_work", lambda: False)
    plain, plain_backward = both_ways(lambda: stack(x))
    assert forward == plain
    # A backward makes the scores again: of all tokens, or of those in a group.
    scores = 2 * B * N * K * (N if name == "gau" else W)
    assert backward == plain_backward + scores


@pytest.mark.parametrize("n", [N, N + 1])
def test_an_open_group_counts_for_what_it_has(n):
    stack, x = Decoder(dim=8, depth=1, heads=H, layers="flash", **SIZES["flash"]), torch.randn(B, n, 8)
    with FlopCounterMode(display=False) as counter:
        stack(x)
    (count,) = (c for op, c in counter.get_flop_counts()["Global"].items() if "flash_groups" in str(op))
    full, left = divmod(n, W)
    near = (full * W * W + left * left) * (K + E)
    assert count == 2 * B * (near + (n + full * W) * K * E)


def test_a_loss_in_chunks(monkeypatch):
    stack = Decoder(dim=8, depth=1, heads=H)
    net = AutoregressiveWrapper(TransformerWrapper(num_tokens=V, max_seq_len=32, attn_layers=stack), loss_chunk=5)
    ids = torch.randint(V, (B, N))
    ours = both_ways(lambda: net(ids))
    monkeypatch.setattr(losses, "operators_work", lambda: False)
    assert ours == both_ways(lambda: net(ids))
    net.loss_chunk = None
    forward, backward = both_ways(lambda: net(ids))
    # In chunks logits are made again.
    assert ours == (forward, backward + 2 * B * (N - 1) * 8 * V)


def test_a_recurrent_layer_counts_as_its_operations():
    stack = Decoder(dim=8, depth=1, heads=H, layers=f"recurrent(block_width=4, num_state_vectors={S})")
    block = stack.branches[0].block
    width = block.kv_heads * block.config.dim_head
    states, k, v = (torch.randn(s, requires_grad=True) for s in ((B, S, 8), (B, 2, 7, width), (B, 2, 7, width)))
    does = torch.full((B, 2), RENEWS)

    def renewed():
        after = states
        for i in range(2):
            after = block.renew(after, k[:, i], v[:, i], None)
        return after

    forward, out = flops(lambda: recurrence(block, states, k, v, None, does, 2)[:, -1])
    # PyTorch itself counts nothing for its fused kernel on a CPU.
    with sdpa_kernel(SDPBackend.MATH):
        plain, expected = flops(renewed)
    torch.testing.assert_close(out, expected)
    assert forward == plain > 0


@pytest.mark.slow
def test_counting_costs_an_import_nothing():
    """The counter, which reads Triton where there is one, is not imported before it is asked for."""
    script = """
import sys, xflash
assert "torch.utils.flop_counter" not in sys.modules
from torch.utils.flop_counter import flop_registry
assert sum("xflash" in str(op) for op in flop_registry) == 7
"""
    subprocess.run([sys.executable, "-c", script], check=True)
