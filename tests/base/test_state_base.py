"""Every state that is handed out is a value of one kind: mapped, reordered, detached, moved and copied alike."""

import copy
import pickle

import pytest
import torch

from xflash import BlockRecurrentTransformer, Decoder, RecurrentMemoryWrapper, TransformerWrapper
from xflash.base.state import State, tensors
from xflash.wrappers.xl_autoregressive import SegmentedReader

IDS = torch.randint(0, 29, (3, 11), generator=torch.Generator().manual_seed(0))
SIZES = {"dim": 26, "depth": 1, "heads": 2}


def model(**own) -> TransformerWrapper:
    torch.manual_seed(0)
    stack = Decoder(**SIZES, layers="attn flash ff", attn_dim_head=6, flash_query_key_dim=6, pos="rotary")
    return TransformerWrapper(num_tokens=29, attn_layers=stack, **own)


def memories():
    net = BlockRecurrentTransformer(num_tokens=29, max_seq_len=8, block_width=4, num_state_vectors=3, **SIZES)
    return net(IDS[:, :8])[1]


STATES = {
    "a stack": lambda: model().attn_layers.step(torch.randn(3, 11, 26))[1],
    "a model": lambda: model().step(IDS)[1],
    "a recurrent memory": lambda: RecurrentMemoryWrapper(model(), 2, 7).step(IDS)[1],
    "segments": lambda: SegmentedReader(model(max_mem_len=4), 5).step(IDS)[1],
    "memories": memories,
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_is_handled_as_every_other(name):
    state = STATES[name]()
    assert isinstance(state, State)
    assert state.rows == 3
    assert any(t.requires_grad for t in tensors(state))
    assert not any(t.requires_grad for t in tensors(state.detach()))
    state = state.detach()
    order = torch.tensor([2, 0, 0, 1])
    chosen = state.reorder(order)
    assert type(chosen) is type(state)
    assert chosen.rows == 4
    for twin in (copy.deepcopy(state), pickle.loads(pickle.dumps(state)), state.map(torch.clone)):
        assert type(twin) is type(state)
        for ours, theirs, moved in zip(tensors(state), tensors(twin), tensors(chosen), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.data_ptr() != theirs.data_ptr() or not ours.numel()
            assert torch.equal(moved, ours[order])
    for before, after in zip(tensors(state), tensors(state.to(torch.float64)), strict=True):
        assert after.dtype is (torch.float64 if before.is_floating_point() else before.dtype)
    with pytest.raises(ValueError, match="index"):
        state.reorder(torch.tensor([3]))
