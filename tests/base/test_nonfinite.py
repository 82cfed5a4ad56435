"""Law 2 for NaN and infinities: exact across calls, and inside a call as far as docs/laws.md says."""

import laws
import pytest
import torch
from cases import COMPANY, build

from xflash.base.registry import blocks

BAD = (float("nan"), float("inf"))
# Inside a call a weight of zero still meets the values of these blocks' tokens: all of them, or those of a group of 5.
WHOLE_CALL = {"attn", "gau"}
GROUP = {"flash", "block_attn", "recurrent", "state_read"}
WIDTH = 5
VARIANTS = {
    "attn": [{"attn_window": 3, "attn_sinks": 1}, {"attn_num_mem_kv": 2}, {"attn_flash": False}],
    "gau": [{"gau_attn_fn": "softmax"}, {"gau_normaliser": "row_sum"}],
    "flash": [{"flash_attn_fn": "softmax"}, {"flash_global_normaliser": "sum"}],
    "block_attn": [
        {"block_attn_reach": "sliding"},
        {"block_attn_retrieve": 3},
        {"block_attn_compress": "conv", "block_attn_compress_factor": 5},
    ],
}
CASES = [(name, flags) for name in blocks for flags in ({}, *VARIANTS.get(name, ()))]
each_block = pytest.mark.parametrize(("name", "flags"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(v))


def stack_of(name, flags):
    return laws.live(build(layers=COMPANY.get(name, name), causal=True, depth=1, shift_tokens=1, **flags))


@each_block
def test_earlier_tokens_of_a_call(name, flags):
    """Nothing before the token's group (its call, for blocks that attend to all of it) changes by a single bit."""
    stack = stack_of(name, flags)
    x = laws.sample(stack, 17)
    clean = laws.run(stack, x)
    for at in (3, 7, 16):
        safe = 0 if name in WHOLE_CALL else at // WIDTH * WIDTH if name in GROUP else at
        for bad in BAD:
            y = laws.run(stack, x.index_fill(1, torch.tensor([at]), bad))
            assert torch.equal(y[:, :safe], clean[:, :safe]), f"{bad} at {at}"
            assert y[:, at].isnan().any(), "a token that is not finite shows"


def begun(stack, x, ragged: bool):
    """A state whose buffers have room, rows alike or of different lengths."""
    mask = torch.arange(9) < torch.tensor([[9], [4], [0]]) if ragged else None
    return laws.steps(stack, x[:, 11:13], [1, 1], None, laws.go(stack, x[:, :9], None, mask)[1])[1]


@each_block
@pytest.mark.parametrize("ragged", [False, True], ids=["alike", "ragged"])
def test_another_continuation_of_the_state(name, flags, ragged):
    """What is written behind a state never reaches those who go on from it, with gradients or without."""
    stack = stack_of(name, flags)
    x = laws.sample(stack, 13)
    with torch.no_grad():
        wanted = laws.steps(stack, x[:, 5:9], [1] * 4, None, begun(stack, x, ragged))[0]
        for sizes in ([1], [1, 1, 1], [1, 6]):
            state = begun(stack, x, ragged)
            laws.steps(stack, torch.full_like(x, float("nan")), sizes, None, state)
            for grad, cut in ((False, [1] * 4), (False, [3, 1]), (True, [1] * 4)):
                with torch.set_grad_enabled(grad):
                    laws.close(laws.steps(stack, x[:, 5:9], cut, None, state)[0], wanted, f"{sizes}, {cut}, {grad}")


@each_block
@pytest.mark.parametrize("bad", BAD)
def test_neighbours_and_what_is_reset(name, flags, bad):
    """A row that is not finite stays alone, and is as good as new when it is reset."""
    stack = stack_of(name, flags)
    x = laws.sample(stack, 13)
    poisoned = x.index_fill(0, torch.tensor([1]), bad)
    rest, others = torch.tensor([False, True, False]), [0, 2]
    with torch.no_grad():
        state, spoilt = begun(stack, x, False), begun(stack, poisoned, False)
        wanted, fresh = laws.go(stack, x[:, :6], state)[0], laws.run(stack, x[:, :6])
        found = laws.go(stack, x[:, :6], spoilt, reset=rest)[0]
        laws.close(found[others], wanted[others], "neighbours")
        laws.close(found[1], fresh[1], "reset")
