"""Weights of block-recurrent-transformer-pytorch give its outputs: whole blocks, memories and states carried."""

import block_recurrent_transformer_pytorch as peer
import laws
import pytest
import torch

from xflash.convert import from_block_recurrent

CASES = {
    "default": {},
    "two recurrent": {"depth": 3, "recurrent_layers": (1, 3)},
    "read below": {"depth": 3, "recurrent_layers": (3,), "read_recurrent_layers": (1,)},
    "read below beside its own": {"depth": 3, "recurrent_layers": (2, 3), "read_recurrent_layers": (2, 2)},
    "cosines everywhere": {"all_layers_qk_rmsnorm": True},
    "compressed": {"use_compressed_mem": True, "compressed_mem_factor": 4},
    "compressed by 2": {"use_compressed_mem": True, "compressed_mem_factor": 2},
    "no recurrence": {"recurrent_layers": ()},
    "few states": {"num_state_vectors": 3, "ff_mult": 3, "heads": 3},
}
W = 8


def theirs(**flags):
    torch.manual_seed(0)
    arguments = {"num_tokens": 41, "dim": 26, "depth": 2, "dim_head": 10, "heads": 2, "max_seq_len": 3 * W}
    return laws.live(peer.BlockRecurrentTransformer(**{**arguments, "block_width": W, **flags}))


@pytest.mark.parametrize("case", CASES)
def test_same_outputs_segment_after_segment(case):
    old = theirs(**CASES[case])
    new = from_block_recurrent(old)
    ids = torch.randint(41, (3, 5 * 3 * W), generator=torch.Generator().manual_seed(1))
    memories = states = None
    mems, vectors = [], []
    with torch.no_grad():
        for segment in ids.split(3 * W, 1):
            expected, mems, vectors = old(segment, xl_memories=mems, states=vectors)
            logits, memories, states = new(segment, xl_memories=memories, states=states)
            assert (logits - expected).abs().max() < 1e-8
            for ours, other in zip(states, vectors, strict=True):
                assert (ours - other).abs().max() < 1e-8
        # However it is cut, which the peer cannot do.
        pieces, state = [], None
        for piece in ids.split([5, 1, W, 20, 5 * 3 * W - 26 - W], 1):
            logits, state = new.step(piece, state)
            pieces.append(logits)
        whole, _ = new.step(ids)
        assert (torch.cat(pieces, 1) - whole).abs().max() < 1e-8
        assert (whole[:, -3 * W :] - expected).abs().max() < 1e-8


def test_forgetting_one_of_the_two():
    """Memories without states, and states without memories, as the peer's trainer drops them."""
    old = theirs()
    new = from_block_recurrent(old)
    first, second = torch.randint(41, (2, 3, 3 * W), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        _, mems, vectors = old(first)
        _, memories, states = new(first)
        for theirs_given, ours_given in (
            ({"xl_memories": mems}, {"xl_memories": memories}),
            ({"states": vectors}, {"states": states}),
        ):
            expected, logits = old(second, **theirs_given)[0], new(second, **ours_given)[0]
            assert (logits - expected).abs().max() < 1e-8


def test_it_shares_nothing_and_keeps_the_mode():
    old = theirs().train()
    new = from_block_recurrent(old)
    assert new.training
    before = new.embedding.token_emb.weight.clone()
    with torch.no_grad():
        old.token_emb.weight.add_(1)
    assert torch.equal(new.embedding.token_emb.weight, before)


def test_what_cannot_be_converted():
    with pytest.raises(
        TypeError, match=r"takes a BlockRecurrentTransformer of block_recurrent_transformer_pytorch, not torch"
    ):
        from_block_recurrent(torch.nn.Linear(2, 3))
    with pytest.raises(ValueError, match="compressed_mem_factor=3 does not fill half a block of 9"):
        from_block_recurrent(theirs(block_width=9, max_seq_len=27, use_compressed_mem=True, compressed_mem_factor=3))
