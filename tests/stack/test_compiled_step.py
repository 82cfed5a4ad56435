"""`compile_step`: few graphs while a model decodes, the same numbers as eager, and nothing of it in what is kept."""

import copy
import io
import pickle

import pytest
import torch
from laws import close, live
from quick import THOROUGH
from torch._dynamo.testing import CompileCounterWithBackend

from xflash import Decoder, Encoder, TransformerWrapper, from_config

V, PROMPT, NEW = 31, 11, 64
LAYOUTS = {
    "attn": {"layers": "attn ff"},
    "mixed": {"layers": "attn(window=9) gau flash", "flash_group_size": 8, "shift_tokens": 1},
    "biases": {"layers": "attn gau", "pos": ("rotary", "alibi"), "attn_kv_heads": 1, "num_memory_tokens": 2},
    "blocks": {"layers": "block_attn recurrent ff", "block_attn_block_width": 8, "recurrent_block_width": 8},
    "read elsewhere": {"layers": "state_read recurrent", "recurrent_block_width": 8},
}


def build(name="attn", **arguments):
    torch.manual_seed(7)
    sizes = {} if "blocks" in name or "read" in name else {"attn_dim_head": 6}
    stack = Decoder(**{"dim": 12, "depth": 1, "heads": 2, "pos": "rotary", **sizes, **LAYOUTS[name]})
    return live(TransformerWrapper(num_tokens=V, attn_layers=stack, use_abs_pos_emb=False, **arguments))


def compiled(model, backend="aot_eager"):
    torch._dynamo.reset()
    fast, counter = copy.deepcopy(model), CompileCounterWithBackend(backend)
    fast.compile_step(backend=counter, fullgraph=True)
    return fast, counter


def tokens(n, rows=3):
    return torch.randint(V, (rows, n), generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize(
    ("name", "ragged"),
    [pytest.param(name, False, marks=THOROUGH) for name in LAYOUTS]
    + [pytest.param("mixed", True, marks=pytest.mark.slow)],
)
def test_few_graphs_over_a_doubling_and_the_numbers_of_eager(name, ragged):
    """Buffers are doubled (or cut, with a window) and groups closed on the way, rows at other places."""
    model = build(name)
    # One is traced as far as code would be made of it, with rows at other places: what else differs is Dynamo's affair.
    fast, counter = compiled(model, "aot_eager" if ragged else "eager")
    ids, mask = tokens(PROMPT + NEW), torch.arange(PROMPT) < torch.tensor([[PROMPT], [4], [0]])
    states = []
    with torch.no_grad():
        for net in (model, fast):
            _, state = net.step(ids[:, :PROMPT], None, mask if ragged else None)
            states.append(state)
        assert counter.frame_count == 0, "a prompt was compiled"
        for i in range(PROMPT, PROMPT + NEW):
            expected, states[0] = model.step(ids[:, i : i + 1], states[0])
            got, states[1] = fast.step(ids[:, i : i + 1], states[1])
            close(got, expected, f"compiled step {i}")
    assert 1 <= counter.frame_count <= 3, f"{counter.frame_count} graphs"


@pytest.mark.slow
def test_a_state_stays_a_value():
    """Forks, an older state, masks, resets, further embeddings as in eager, and gradients by it."""
    model = build(embed_num_tokens={"part": 3})
    fast, counter = compiled(model, "eager")
    ids, mask = tokens(9), torch.tensor([[True], [False], [True]])
    beside = {"embed_ids": {"part": ids[:, :1] % 3}}

    def play(net):
        outs = []
        _, old = net.step(ids, embed_ids={"part": ids % 3})
        _, state = net.step(ids[:, :1], old, **beside)
        for start in (old, state, old):
            y, after = net.step(ids[:, 1:2], start, **beside)
            outs += [y, net.step(ids[:, 2:3], after, mask, **beside)[0]]
        outs.append(net.step(ids[:, 2:3], after, reset=mask[:, 0], **beside)[0])
        return outs

    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for got, expected in zip(play(fast), play(model), strict=True):
                close(got, expected, "compiled step")
    graphs = counter.frame_count
    assert graphs
    for got, expected in zip(play(fast), play(model), strict=True):
        close(got, expected, "step with gradients")
    assert got.requires_grad and counter.frame_count == graphs, "compiled with gradients"
    with pytest.raises(ValueError, match=r"must be from 0 to 30"), torch.no_grad():
        fast.step(torch.full((3, 1), V), fast.step(ids, embed_ids={"part": ids % 3})[1], **beside)
    with pytest.raises(ValueError, match="embed_ids has no 'part'"), torch.no_grad():
        fast.step(ids[:, :1], fast.step(ids, embed_ids={"part": ids % 3})[1])


@pytest.mark.slow
def test_nothing_of_it_is_kept():
    model = build()
    fast, counter = compiled(model, "eager")
    assert fast.to_config() == model.to_config() and fast.state_dict().keys() == model.state_dict().keys()
    stored = io.BytesIO()
    torch.save(fast, stored)
    stored.seek(0)
    again = [
        copy.deepcopy(fast),
        pickle.loads(pickle.dumps(fast)),
        torch.load(stored, weights_only=False),
        from_config(fast.to_config()).double().eval(),
    ]
    again[-1].load_state_dict(fast.state_dict())
    ids = tokens(6)
    with torch.no_grad():
        _, state = fast.step(ids)
        expected, after = fast.step(ids[:, :1], state)
        seen = counter.frame_count
        assert seen == 1
        for net in again:
            close(net.step(ids[:, :1], net.step(ids)[1])[0], expected, "the copy")
        assert counter.frame_count == seen, "a copy ran compiled"
        # A state of a compiled step is an ordinary one.
        close(
            model.step(ids[:, :1], pickle.loads(pickle.dumps(after)))[0], fast.step(ids[:, :1], after)[0], "the state"
        )


def test_bidirectional_models_have_none():
    model = TransformerWrapper(num_tokens=V, max_seq_len=7, attn_layers=Encoder(dim=12, depth=1))
    with pytest.raises(ValueError, match="has no state and no step"):
        model.compile_step()
