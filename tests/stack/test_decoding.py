"""One token after the other by the ways that only a single new token takes: shared keys, windows, rotation at once."""

import pytest
import torch
from laws import BATCH, close, live, sample

from xflash import Decoder
from xflash.base.state import row_count, tensors
from xflash.layers.kernels.softmax import attend
from xflash.layers.scores import read

N = 31
WAYS = {
    "shared keys": {"attn_kv_heads": 2, "pos": "rotary"},
    "one key for all, a bias a head": {"attn_kv_heads": 1, "pos": "alibi"},
    "by the definition": {"attn_kv_heads": 2, "attn_flash": False, "attn_head_scale": True},
    "beside memory": {"attn_kv_heads": 2, "attn_num_mem_kv": 3, "num_memory_tokens": 2, "pos": "rel_pos"},
    "window": {"attn_window": 7, "pos": "rotary"},
    "window and bias": {"attn_window": 7, "pos": "rel_pos", "attn_kv_heads": 2},
    "windows of two sizes": {"layers": "attn(window=5) attn(window=11) attn ff", "pos": "alibi"},
    "window and sinks": {"attn_window": 7, "attn_sinks": 2, "pos": "alibi"},
    "rotary in part, interleaved": {"pos": "rotary", "rotary_emb_dim": 4, "rotary_interleaved": True},
    "xpos": {"pos": "rotary", "rotary_xpos": True},
    "rescaled": {"pos": "rotary", "rotary_interpolation_factor": 3.0},
}


def build(**flags):
    torch.manual_seed(3)
    return live(Decoder(**{"dim": 20, "depth": 2, "heads": 4, "attn_dim_head": 6, **flags}))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
def test_token_by_token_as_at_once(way, ragged):
    stack = build(**WAYS[way])
    x = sample(stack, N)
    mask = torch.rand(BATCH, N, generator=torch.Generator().manual_seed(3)) < 0.7 if ragged else None
    state, outputs = None, []
    with torch.no_grad():
        whole = stack(x, mask)
        for i in range(N):
            y, state = stack.step(x[:, i : i + 1], state, None if mask is None else mask[:, i : i + 1])
            outputs.append(y)
    close(torch.cat(outputs, 1), whole, way)


@pytest.fixture
def reads(monkeypatch):
    """The keys and the mask of every call of the fast attention."""
    seen = []

    def noting(q, k, v, mask, *rest):
        seen.append((tuple(k.shape), mask))
        return attend(q, k, v, mask, *rest)

    monkeypatch.setattr(read, "attend", noting)
    return seen


def test_a_token_reads_what_it_sees_and_nothing_twice(reads):
    """No key is repeated for the heads that share it, none outside the window is read, and no mask is made."""
    stack = build(attn_kv_heads=2, attn_window=7, depth=1, pos="rotary")
    with torch.no_grad():
        _, state = stack.step(sample(stack, 5))
        reads.clear()
        for _ in range(4):
            _, state = stack.step(sample(stack, 1), state)
    assert reads == [((BATCH, 2, m, 6), None) for m in (6, 7, 7, 7)]


def test_buffers_are_made_anew_at_doublings_only():
    stack = build(pos="rotary", layers="attn flash", flash_group_size=8)
    with torch.no_grad():
        _, state = stack.step(sample(stack, 11))
        moved = []
        for i in range(11, 60):
            before = {t.data_ptr() for t in tensors(state) if t.dim() == 4}
            _, state = stack.step(sample(stack, 1), state)
            if before != {t.data_ptr() for t in tensors(state) if t.dim() == 4}:
                moved.append(i)
    assert moved == [11, 20, 42]


def test_rows_are_counted_by_the_first_tensor():
    assert row_count(((None, 3), (torch.ones(5, 2), torch.ones(7)))) == 5
    assert row_count((None, 3, ())) is None
