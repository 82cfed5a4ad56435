"""Windows that are read block by block: the laws, the memory, the graphs, and when one matrix is read instead."""

import laws
import pytest
import torch
from cases import build
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xflash.layers import blocks
from xflash.layers.kernels import bands

windows = blocks.bands
PARTS = {
    "plain": {},
    "rotary, shared keys": {"pos": "rotary", "attn_kv_heads": 1},
    "sinks": {"attn_sinks": 2, "pos": "rotary", "num_memory_tokens": 1},
    "alibi, memory keys": {"pos": "alibi", "attn_num_mem_kv": 2},
    "rel_pos": {"pos": "rel_pos", "attn_kv_heads": 1, "attn_value_dim_head": 3},
    "steps": {"attn_scores": "learned_sink l2_distance zero_key", "attn_num_mem_kv": 2, "attn_head_scale": True},
    "latents": {"attn_dim_latent_kv": 5, "attn_qk_norm": True, "pos": "rotary"},
}


@pytest.fixture
def always(monkeypatch):
    """Windows of three and more tokens in blocks of two, wherever there is one; gives how many calls were read so."""
    found = []
    monkeypatch.setattr(bands, "LEAST", 1)
    monkeypatch.setattr(windows, "pays", lambda band: band.fits and found.append(band) is None)
    return found


def stack_of(causal=True, **flags):
    return build(causal=causal, layers="attn ff", depth=2, attn_window=3, **flags)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("flags", PARTS.values(), ids=PARTS)
def test_laws(flags, causal, always):
    if not causal:
        flags = {name: value for name, value in flags.items() if name != "num_memory_tokens"}
    stack = laws.live(stack_of(causal, **flags))
    laws.padding(stack)
    if causal:
        laws.causal(stack)
        laws.chunk(stack, cuts=(9, 13))
        laws.ragged(stack, kinds=("holes",), grads=(True,))
    assert len(always) > 10
