"""Enhanced recurrence: what it may stand beside, and that rows, states and generation keep to it."""

import laws
import pytest
import torch

from xflash import Decoder, TransformerWrapper, XLAutoregressiveWrapper

V, L, M, ROWS = 13, 5, 7, 3


def build(layers="attn ff", down=1, memory=M, pos="rotary", **flags):
    torch.manual_seed(0)
    stack = Decoder(**{"dim": 8, "depth": 3, "heads": 2, "layers": layers, "attn_dim_head": 4, "pos": pos, **flags})
    given = {"num_tokens": V, "max_seq_len": L, "max_mem_len": memory, "shift_mem_down": down}
    return TransformerWrapper(attn_layers=stack, **given)


def in_segments(net, ids, mask=None):
    found, mems = [], None
    for start in range(0, ids.shape[1], L):
        piece = None if mask is None else mask[:, start : start + L]
        logits, mems = net(ids[:, start : start + L], piece, mems=mems, return_mems=True)
        found.append(logits)
    return torch.cat(found, 1), mems


IDS = torch.randint(1, V, (ROWS, 3 * L), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    "flags", [{}, {"layers": "attn flash(query_key_dim=4, group_size=3) attn(window=4)", "depth": 1}], ids=str
)
def test_rows_and_states_keep_to_it(flags):
    """Rows of other lengths give what they give alone; rows are put in order, begin anew, and go on from a state."""
    net = laws.live(build(**flags))
    mask = torch.arange(3 * L) % L < torch.tensor([[L], [2], [4]])
    whole, mems = in_segments(net, IDS, mask)
    for row in range(ROWS):
        kept = mask[row].view(3, L).sum(1).max()
        alone = [IDS[row : row + 1].view(1, 3, L)[:, i, :kept] for i in range(3)]
        own = None
        for i, piece in enumerate(alone):
            logits, own = net(piece, mems=own, return_mems=True)
            laws.close(logits, whole[row : row + 1, i * L : i * L + kept], f"row {row} alone")
    order = torch.tensor([2, 0])
    laws.close(net(IDS[order], mems=mems.reorder(order)), net(IDS, mems=mems)[order], "reordered")
    anew = net.step(IDS[:, :L], mems, reset=torch.tensor([True, False, False]))[0]
    laws.close(anew[:1], net(IDS[:1, :L]), "begun anew")
    laws.close(anew[1:], net(IDS[:, :L], mems=mems)[1:], "beside it")


def test_generation_and_training_agree():
    net = laws.live(build())
    xl = XLAutoregressiveWrapper(net)
    made = xl.generate(IDS[:, : L + 2], 6, temperature=0.0)
    text = torch.cat((IDS[:, : L + 2], made), 1)
    expected = in_segments(net, text[:, :-1])[0][:, L + 1 :].argmax(-1)
    assert torch.equal(made, expected)
    plain = laws.live(build(down=0))
    plain.load_state_dict(net.state_dict())
    laws.close(plain(IDS), net(IDS), "one segment")
    assert (in_segments(plain, IDS)[0][:, L:] - in_segments(net, IDS)[0][:, L:]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (
            {"memory": None},
            "shift_mem_down=1 is set, but there is no memory; give max_mem_len",
        ),
        (
            {"down": 3},
            r"shift_mem_down=3 gives layers what .* has 3 layers that can \(blocks: attn\); give at most 2",
        ),
        ({"reads": "lime"}, "but with reads='lime' layers read more than the stream"),
        ({"join": "hyper"}, "but with join='hyper' there are several streams"),
        ({"shift_tokens": 1}, "but with shift_tokens layers read tokens that are mixed"),
        ({"attn_value_residual": True}, "but attn_value_residual=True mixes values with those of the layer's own call"),
        ({"attn_scores": "forget"}, "but attn_scores='forget' keeps more than keys and values"),
        ({"norm": "adaptive_rmsnorm"}, "but layers read the condition of tokens too, which no memory keeps"),
    ],
    ids=str,
)
def test_what_it_cannot_stand_beside(flags, match):
    with pytest.raises(ValueError, match=match):
        build(**flags)
