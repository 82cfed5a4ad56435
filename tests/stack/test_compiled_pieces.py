"""`compile` of what goes piece after piece: the piece is compiled, few graphs for any number, the numbers of eager."""

import copy
import itertools
import pickle

import laws
import pytest
import torch
from graphs import Graphs
from quick import quick

import xflash
from xflash.base.pieces import borders

V, D, SEGMENT = 31, 12, 7
# Whole pieces, one token more, several pieces, and less than one.
LENGTHS = (7, 8, 31, 3, 20)
BLOCKS = {"recurrent_block_width": SEGMENT, "recurrent_num_state_vectors": 3, "recurrent_dim_head": 6}


def net(layers, **arguments):
    blocks = BLOCKS if "recurrent" in layers else {}
    sizes = {"attn_dim_head": 6} if "attn" in layers else {}
    sizes |= {"flash_group_size": 8} if "flash" in layers else {}
    stack = xflash.Decoder(dim=D, depth=1, heads=2, layers=layers, **blocks, **sizes)
    return xflash.TransformerWrapper(num_tokens=V, attn_layers=stack, use_abs_pos_emb=False, **arguments)


MODELS = {
    "checkpointed segments": lambda: xflash.SegmentWrapper(net("flash"), SEGMENT, grad_checkpoint=True),
    "Transformer-XL": lambda: xflash.XLAutoregressiveWrapper(net("attn ff", max_mem_len=5, max_seq_len=SEGMENT)),
    "recurrent memory": lambda: xflash.SegmentWrapper(xflash.RecurrentMemoryWrapper(net("attn ff"), 2, SEGMENT), 14),
    "state vectors": lambda: xflash.AutoregressiveWrapper(net("state_read recurrent")),
}


def ids(n, rows=3):
    return torch.randint(V, (rows, n), generator=torch.Generator().manual_seed(n))


def built(name):
    torch.manual_seed(5)
    return laws.live(MODELS[name]())


def compiled(model, backend="aot_eager", **options):
    fast, graphs = copy.deepcopy(model), Graphs(backend)
    fast.compile(fullgraph=True, backend=graphs, **options)
    return fast, graphs


def test_pieces_end_where_a_row_completes_a_block():
    """Counted for one row, looked up for several."""
    for n, w, fill, other in itertools.product((1, 2, 13, 29), (1, 3, 7), range(9), range(4)):
        for fills in ([fill], [fill, other]):
            ends = [i for i in range(1, n) if any((f + i) % w == 0 for f in fills)]
            assert borders(n, w, fills) == list(itertools.pairwise([0, *ends, n])), (n, w, fills)


@pytest.mark.parametrize("name", quick(MODELS, lambda *_: False, lambda name, _: name == "state vectors"))
def test_few_graphs_for_any_number_of_pieces(name):
    model = built(name)
    fast, graphs = compiled(model, "aot_eager" if name == "state vectors" else "eager")
    for n in LENGTHS:
        losses = [m(ids(n + 1)) for m in (fast, model)]
        laws.close(*losses, f"{name}, compiled at {n}")
        grads = [
            torch.autograd.grad(loss, list(m.parameters()), allow_unused=True, materialize_grads=True)
            for loss, m in zip(losses, (fast, model), strict=True)
        ]
        for ours, expected in zip(*grads, strict=True):
            laws.close(ours, expected, f"{name}, compiled gradient at {n}")
    assert 1 <= len(graphs.ran) <= 3, f"{len(graphs.ran)} graphs for {len(LENGTHS)} lengths"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recurrent memory", "state vectors"])
@torch._dynamo.config.patch(recompile_limit=32)
def test_a_state_stays_a_value(name):
    """Chunks, forks, an older state, and where that is not slow a reset and rows of different lengths, in place."""
    model = built(name).net
    fast, graphs = compiled(model, "eager")
    x, mask = ids(40), torch.arange(9) < torch.tensor([[9], [4], [0]])

    def play(net):
        outs = []
        y, old = net.step(x[:, :6])
        outs.append(y)
        _, state = net.step(x[:, 6:15], old)
        for start in (old, state, old):
            y, after = net.step(x[:, 15:27], start)
            outs += [y, net.step(x[:, 27:28], after)[0]]
        if name == "state vectors":
            return outs
        y, state = net.step(x[:, 15:24], state, mask, reset=torch.tensor([False, True, False]))
        return [*outs, y, net.step(x[:, 24:40], state)[0]]

    with torch.no_grad():
        for got, expected in zip(play(fast), play(model), strict=True):
            laws.close(got, expected, name)
    assert graphs.ran


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=32)
def test_resets_and_embeddings_in_front():
    """What a segment is begun with, or takes beside its tokens, has its room too."""
    model = laws.live(xflash.SegmentWrapper(net("attn"), SEGMENT))
    fast, graphs = compiled(model, "eager")
    x, starts = ids(24), torch.tensor([[True, False], [False, True], [False, False]])
    front = torch.randn(3, 9, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def begun_anew(net):
        loss, state = net(x[:, :16], return_state=True)
        again, after = net(x[:, 14:], state=state, reset=starts, return_state=True)
        return loss, again, net.net.step(x[:, :2], after)[0]

    def in_front(net):
        _, state = net(x[:, :16], return_state=True)
        return net(x[:, 14:], state=state, prepend_embeds=front), net(x[:, 14:], state=state)

    for play, mode in ((begun_anew, torch.enable_grad), (in_front, torch.no_grad)):
        with mode():
            for got, expected in zip(play(fast), play(model), strict=True):
                laws.close(got, expected, play.__name__)
    assert graphs.ran


@pytest.mark.slow
def test_a_block_recurrent_trainer():
    sizes = {"dim_head": 6, "block_width": SEGMENT, "max_seq_len": SEGMENT, "num_state_vectors": 3}
    model = xflash.BlockRecurrentTransformer(num_tokens=V, dim=D, depth=1, heads=2, recurrent_layers=(1,), **sizes)
    model = laws.live(xflash.RecurrentTrainerWrapper(model))
    fast, graphs = compiled(model, "eager")
    with torch.no_grad():
        for n in (20, 12, 25):
            laws.close(fast(ids(n)), model(ids(n)), f"compiled at {n}")
    assert 1 <= len(graphs.ran) <= 3


def test_a_foreign_state_is_named():
    trainer = xflash.SegmentWrapper(net("attn"), SEGMENT)
    _, state = xflash.SegmentWrapper(net("flash"), SEGMENT)(ids(9), return_state=True)
    trainer.compile(backend="eager")
    with pytest.raises(ValueError, match="the state was made by another stack"):
        trainer(ids(9), state=state)
    _, state = trainer.net.step(ids(4))
    with pytest.raises(ValueError, match="the state has 3 rows, but x has 2"):
        trainer(ids(9, rows=2), state=state)


def test_what_is_kept_of_a_model_is_not_compiled():
    model, graphs = built("checkpointed segments"), Graphs()
    model.compile(backend=graphs)
    assert model.compiled_piece is not None
    for kept in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), xflash.from_config(model.to_config())):
        assert kept.compiled_piece is None
        assert not graphs.ran
        kept.double()(ids(9))
    assert not graphs.ran


def test_the_innermost_piece_is_compiled():
    wrapper = xflash.SegmentWrapper(net("state_read recurrent"), SEGMENT)
    wrapper.compile(backend="eager")
    assert wrapper.compiled_piece is None and wrapper.net.attn_layers.compiled_piece is not None


@pytest.mark.slow
def test_other_modules_compile_as_ever():
    """Whole, in place, with the options of torch.compile."""
    model = laws.live(xflash.AutoregressiveWrapper(net("attn ff")))
    fast, graphs = compiled(model, dynamic=True)
    assert not hasattr(fast, "compiled_piece") and fast.net.attn_layers.compiled_piece is None
    for n in (9, 12):
        laws.close(fast(ids(n)), model(ids(n)), f"compiled at {n}")
    assert len(graphs.ran) == 1
    with pytest.raises(TypeError, match="fullgrph"):
        xflash.SegmentWrapper(net("attn"), SEGMENT).compile(fullgrph=True)


@pytest.mark.slow
def test_a_whole_graph_serves_all_texts_of_as_many_pieces():
    """Compiled from the outside, pieces are counted while tracing."""
    model, graphs = laws.live(xflash.SegmentWrapper(net("attn"), SEGMENT)), Graphs("eager")
    fast = torch.compile(model, fullgraph=True, backend=graphs)
    with torch.no_grad():
        for n in (9, 10, 13, 11):
            laws.close(fast(ids(n + 1)), model(ids(n + 1)), f"compiled at {n}")
        assert len(graphs.ran) <= 2
        laws.close(fast(ids(18)), model(ids(18)), "compiled at 17")
