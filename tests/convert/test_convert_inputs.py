"""`from_x_transformers` of models of vectors and of numbers: the same weights, the same outputs, in float64."""

import laws
import pytest
import torch
from test_convert_x_transformers import close
from x_transformers_cases import VOCABULARY, exact, make_stack, make_wrapper, peers

import xflash
from xflash.convert.x_transformers import from_x_transformers

LENGTH, NUMERAL = 13, 4
MASK = torch.arange(LENGTH) < torch.tensor([[LENGTH], [7], [1]])
FRAMES = {
    "both widths": ({"dim_in": 5, "dim_out": 7}, {}, True),
    "normed, memory": ({"dim_in": 5, "post_emb_norm": True, "num_memory_tokens": 3}, {"rotary_pos_emb": True}, True),
    "no widths": ({"scaled_sinu_pos_emb": True}, {}, False),
    "no positions": ({"dim_in": 5, "max_seq_len": None}, {}, False),
    "averaged": ({"dim_in": 5, "dim_out": 7, "average_pool_embed": True}, {}, False),
}
NUMBERS = {
    "plain": ({}, {}),
    "tied, memory": ({"tie_embedding": True, "num_memory_tokens": 2}, {"rotary_pos_emb": True}),
    "logits_dim, sinusoidal": ({"logits_dim": 9, "scaled_sinu_pos_emb": True}, {}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_models_of_vectors_give_the_same(name):
    arguments, flags, causal = FRAMES[name]
    peer = exact(
        peers.ContinuousTransformerWrapper(**{"max_seq_len": 23, **arguments}, attn_layers=make_stack(flags, causal))
    )
    ours = from_x_transformers(peer)
    assert type(ours) is xflash.ContinuousTransformerWrapper
    x = torch.randn(3, LENGTH, ours.dim_in, dtype=torch.float64)
    real = ... if ours.pooled is not None else MASK
    with torch.no_grad():
        theirs = peer(x)
        close(ours(x), theirs, "whole")
        close(ours(x, lens=[LENGTH, 7, 1])[real], peer(x, mask=MASK)[real], "padded")
        if ours.causal:
            close(laws.steps(ours, x, [5, 1, LENGTH - 6])[0], theirs, "in pieces")


@pytest.mark.parametrize("name", NUMBERS)
def test_models_of_numbers_give_the_same(name):
    arguments, flags = NUMBERS[name]
    given = {"num_tokens": 11, "max_seq_len": 23, "numerical_token_id": NUMERAL, **arguments}
    peer = exact(peers.XValTransformerWrapper(**given, attn_layers=make_stack(flags, True)))
    ours = from_x_transformers(peer)
    assert type(ours) is xflash.XValTransformerWrapper
    ids = torch.randint(11, (3, LENGTH)).index_fill(1, torch.tensor([1, 4, 8]), NUMERAL)
    numbers = torch.randn(3, LENGTH, dtype=torch.float64)
    with torch.no_grad():
        theirs = peer(ids, numbers)
        for found, right in zip(ours(ids, numbers), theirs, strict=True):
            close(found, right, "whole")
        for found, right in zip(ours(ids, numbers, MASK), peer(ids, numbers, mask=MASK), strict=True):
            close(found[MASK], right[MASK], "padded")
        (logits, first), state = ours.step(ids[:, :6], x_num=numbers[:, :6])
        (more, second), _ = ours.step(ids[:, 6:], state, x_num=numbers[:, 6:])
        close(torch.cat((logits, more), 1), theirs[0], "in pieces")
        close(torch.cat((first, second), 1), theirs[1], "numbers in pieces")


@pytest.mark.parametrize("given", [{"emb_dim": 20, "num_memory_tokens": 2}, {"return_only_embed": True}], ids=str)
def test_models_of_several_inputs_give_the_same(given):
    counts = {"note": 11, "kind": 5}
    stack = make_stack({"rotary_pos_emb": "emb_dim" in given}, True)
    peer = peers.MultiInputTransformerWrapper(
        num_tokens=counts, max_seq_len=23, post_emb_norm=True, attn_layers=stack, **given
    )
    ours = from_x_transformers(exact(peer))
    assert type(ours) is xflash.MultiInputTransformerWrapper
    x = {name: torch.randint(count, (3, LENGTH)) for name, count in counts.items()}
    with torch.no_grad():
        close(laws.joined(ours(x)), laws.joined(peer(x)), "whole")
        close(laws.joined(ours(x, MASK))[MASK], laws.joined(peer(x, mask=MASK))[MASK], "padded")
        ids = torch.stack(list(x.values()), -1)
        close(laws.steps(ours, ids, [5, 1, LENGTH - 6])[0], laws.joined(peer(x)), "in pieces")


@pytest.mark.parametrize("given", [{}, {"num_pooled_tokens": 3, "dim_pooled_tokens": 14}], ids=str)
def test_pooled_tokens_are_the_same(given):
    """One is a vector here, as of one CLS token; the head, which theirs leaves out, is none."""
    peer = exact(make_wrapper({"rotary_pos_emb": True}, {"attn_pool": True, **given}, False))
    ours, ids = from_x_transformers(peer), torch.randint(0, VOCABULARY, (3, LENGTH))
    with torch.no_grad():
        for found, right in ((ours(ids), peer(ids)), (ours(ids, MASK), peer(ids, mask=MASK))):
            close(found, right if given else right[:, 0], "pooled")
    with pytest.raises(ValueError, match="of more than one layer"):
        from_x_transformers(make_wrapper({}, {"attn_pool": True, "attn_pool_depth": 2}, False))


@pytest.mark.parametrize("causal", [True, False])
def test_recycling_is_the_same(causal):
    given = {"use_cls_token": True} if not causal else {}
    peer = exact(make_wrapper({"rotary_pos_emb": True}, {"recycling": True, "post_emb_norm": True, **given}, causal))
    ours, ids = from_x_transformers(peer), torch.randint(0, VOCABULARY, (3, LENGTH))
    with torch.no_grad():
        for steps in (1, 3):
            close(ours(ids, recycle_steps=steps), peer(ids, recycle_steps=steps), "whole")
        found, right = ours(ids, MASK, recycle_steps=2), peer(ids, mask=MASK, recycle_steps=2)
        close(found if given else found[MASK], right if given else right[MASK], "padded")


def test_losses_are_theirs_where_a_pad_is_no_target():
    stack = make_stack({}, True)
    peer = exact(peers.ContinuousTransformerWrapper(dim_in=5, dim_out=5, max_seq_len=23, attn_layers=stack))
    x = torch.randn(3, LENGTH, 5, dtype=torch.float64)
    for l1 in (False, True):
        theirs = peers.ContinuousAutoregressiveWrapper(peer, use_l1_loss=l1)
        ours = xflash.ContinuousAutoregressiveWrapper(from_x_transformers(peer), use_l1_loss=l1)
        with torch.no_grad():
            close(ours(x), theirs(x), "whole")
            # Theirs has the pad frame behind each row among its targets; behind one frame less it is a real one.
            fewer = torch.arange(LENGTH) < torch.tensor([[7], [4], [2]])
            close(ours(x, lens=[8, 5, 3]), theirs(x, mask=fewer), "padded")
            close(ours.generate(x[:, :3], 4), theirs.eval().generate(x[:, :3], 4), "generated")
    xval = peers.XValTransformerWrapper(num_tokens=11, max_seq_len=23, numerical_token_id=NUMERAL, attn_layers=stack)
    theirs = peers.XValAutoregressiveWrapper(exact(xval), numerical_loss_weight=0.5)
    ours = xflash.XValAutoregressiveWrapper(from_x_transformers(xval), numerical_loss_weight=0.5)
    ids = torch.randint(11, (3, LENGTH)).index_fill(1, torch.tensor([1, 4, 8]), NUMERAL)
    numbers = torch.randn(3, LENGTH, dtype=torch.float64).masked_fill(ids != NUMERAL, 0)
    with torch.no_grad():
        close(ours(ids, numbers), theirs(ids, numbers), "numbers")
        close(ours(ids, numbers, MASK), theirs(ids, numbers, mask=MASK), "padded numbers")


def test_projections_of_ones_own_are_refused():
    stack = make_stack({}, True)
    peer = peers.ContinuousTransformerWrapper(project_in=torch.nn.Linear(5, 34), max_seq_len=23, attn_layers=stack)
    with pytest.raises(ValueError, match=r"no counterpart of x-transformers' project_in \(Linear\)"):
        from_x_transformers(peer)
    peer = peers.ContinuousTransformerWrapper(dim_out=5, probabilistic=True, max_seq_len=23, attn_layers=stack)
    with pytest.raises(ValueError, match="no counterpart of x-transformers' probabilistic"):
        from_x_transformers(peer)
