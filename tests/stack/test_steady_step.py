"""`compile_step` as a GPU runs it: one recording of a graph serves many tokens, for no number that goes in grows."""

import copy

import pytest
import torch
from laws import close, live
from quick import THOROUGH
from torch._dynamo.backends.common import aot_autograd

from xflash import Decoder, TransformerWrapper
from xflash.base.state import tensors
from xflash.wrappers.compiled_step import CompiledStep

V, PROMPT, NEW = 31, 11, 30
# Those whose state does not grow, and those whose buffers do.
CONSTANT = {
    "flash": {"layers": "flash ff", "flash_group_size": 8, "shift_tokens": 1},
    "block_attn": {"layers": "block_attn", "block_attn_block_width": 8, "block_attn_compress": "mean"},
    "recurrent": {"layers": "recurrent state_read", "recurrent_block_width": 8},
    "side by side": {"layers": "flash+ff block_attn", "flash_group_size": 7, "block_attn_block_width": 5},
}
GROWING = {
    "attn": {"layers": "attn ff", "attn_dim_head": 6},
    "gau": {"layers": "gau", "gau_rel_pos_bias": "t5"},
    "mixed": {"layers": "attn(window=9) flash gau", "flash_group_size": 8, "attn_dim_head": 6, "num_memory_tokens": 2},
    "shared": {"layers": "attn(window=5, sinks=2)+flash", "attn_kv_heads": 1, "pos": ("rotary", "alibi")},
    "latents": {"layers": "attn ff", "attn_dim_latent_kv": 5, "attn_dim_head": 6},
}


class Recorded:
    """A backend that does as recordings of CUDA graphs do: the next run overwrites what a run has given."""

    def __init__(self):
        torch._dynamo.reset()
        self.graphs, self.inputs, self.given = [], [], []

    def __call__(self, graph, inputs):
        number = len(self.graphs)
        self.graphs.append([node for node in graph.graph.nodes if node.op == "placeholder"])

        def run(*args):
            held = [arg for arg in args if isinstance(arg, torch.Tensor)]
            before = [t._version for t in held]
            for t in self.given:
                t.fill_(-99)
            out = graph.forward(*args)
            self.inputs.append((number, *(tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in args)))
            moved = [t for t, version in zip(held, before, strict=True) if t._version != version]
            assert all(hasattr(t, "_dynamo_static_input_type") for t in moved), "what is written may be elsewhere"
            kept = {t.data_ptr() for t in held}
            self.given = [t for t in out if isinstance(t, torch.Tensor) and t.data_ptr() not in kept]
            return out

        return run


def build(flags):
    torch.manual_seed(7)
    stack = Decoder(**{"dim": 12, "depth": 1, "heads": 2, "pos": "rotary", **flags})
    return live(TransformerWrapper(num_tokens=V, attn_layers=stack, use_abs_pos_emb=False))


def as_on_gpu(monkeypatch, model, backend):
    monkeypatch.setattr(CompiledStep, "in_numbers", lambda self, x: not self.steady)
    fast = copy.deepcopy(model)
    fast.compile_step(backend=backend, fullgraph=True)
    fast.compiled_step.recorded = True
    return fast


def alike(got, expected):
    """The states are the same value: tensors, and the numbers beside them."""
    assert (got.bound, got.stack.bound) == (expected.bound, expected.stack.bound)
    assert (got.length is None, got.stack.length is None) == (expected.length is None, expected.stack.length is None)
    for a, b in zip(tensors(got), tensors(expected), strict=True):
        close(a, b, "the state")


def decode(model, fast, ragged):
    ids = torch.randint(V, (3, PROMPT + NEW), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(PROMPT) < torch.tensor([[PROMPT], [4], [0]]) if ragged else None
    with torch.no_grad():
        _, state = model.step(ids[:, :PROMPT], None, mask)
        _, mine = fast.step(ids[:, :PROMPT], None, mask)
        for i in range(PROMPT, PROMPT + NEW):
            expected, state = model.step(ids[:, i : i + 1], state)
            got, mine = fast.step(ids[:, i : i + 1], mine)
            close(got, expected, f"token {i}")
            alike(mine, state)


@pytest.mark.parametrize("ragged", [False, pytest.param(True, marks=THOROUGH)], ids=["alike", "ragged"])
@pytest.mark.parametrize("name", ["flash", *(pytest.param(name, marks=THOROUGH) for name in list(CONSTANT)[1:])])
def test_one_recording_serves_all_tokens(monkeypatch, name, ragged):
    """Full groups and blocks among them; nothing but tensors goes in, always of the same shapes."""
    model, backend = build(CONSTANT[name]), Recorded()
    decode(model, as_on_gpu(monkeypatch, model, backend), ragged)
    assert len(backend.inputs) == NEW and len(set(backend.inputs)) == len(backend.graphs) == 1
    assert all(isinstance(node.meta["example_value"], torch.Tensor) for node in backend.graphs[0])


@pytest.mark.parametrize("ragged", [False, pytest.param(True, marks=THOROUGH)], ids=["alike", "ragged"])
@pytest.mark.parametrize("name", ["attn", *(pytest.param(name, marks=THOROUGH) for name in list(GROWING)[1:])])
def test_few_recordings_serve_buffers_that_grow(monkeypatch, name, ragged):
    """Numbers that go in are of the buffers: as many recordings are made as there are shapes of those."""
    model, backend = build(GROWING[name]), Recorded()
    decode(model, as_on_gpu(monkeypatch, model, backend), ragged)
    assert len(backend.inputs) == NEW and len(set(backend.inputs)) <= 5 and len(backend.graphs) <= 4
    shapes = {(number, *(a for a in given if isinstance(a, tuple))) for number, *given in backend.inputs}
    assert len(shapes) == len(set(backend.inputs)), "a number grows with the tokens"


@pytest.mark.slow
@pytest.mark.thorough
def test_a_long_buffer_is_cut(monkeypatch):
    """Most of what is not used yet is not read, whichever row has most, and what is cut off is there again."""
    model, backend = build(GROWING["attn"]), Recorded()
    fast = as_on_gpu(monkeypatch, model, backend)
    ids, mask = torch.randint(V, (2, 370)), torch.arange(370) < torch.tensor([[370], [9]])
    with torch.no_grad():
        _, state = fast.step(ids, None, mask)
        for i in range(5):
            expected, _ = model.step(ids[:, i : i + 1], copy.deepcopy(state))
            got, state = fast.step(ids[:, i : i + 1], state)
            close(got, expected, f"token {i}")
    rooms = [
        {shape[2] for shape in given if isinstance(shape, tuple) and len(shape) == 4} for _, *given in backend.inputs
    ]
    assert rooms == [{372}] * 2 + [{465}] * 3 and state.stack.branches[0].block.k.shape[2] == 740


@pytest.mark.slow
def test_rows_that_stay_out_and_learned_positions(monkeypatch):
    """A mask makes rows differ from there on; behind the last learned position eager's sentence is raised."""
    stack = Decoder(dim=12, depth=1, heads=2, layers="flash", flash_group_size=8, pos=None)
    model = live(TransformerWrapper(num_tokens=V, max_seq_len=14, attn_layers=stack))
    fast = as_on_gpu(monkeypatch, model, Recorded())
    ids, some = torch.randint(V, (3, 20)), torch.tensor([[True], [False], [True]])
    with torch.no_grad():
        state = mine = model.step(ids[:, :11])[1]
        for mask in (None, some, None):
            expected, state = model.step(ids[:, :1], state, mask)
            got, mine = fast.step(ids[:, :1], mine, mask)
            close(got, expected, "a token")
            alike(mine, state)
        with pytest.raises(ValueError, match="15 tokens"):
            fast.step(ids[:, :1], model.step(ids[:, :14])[1])


@pytest.mark.slow
@pytest.mark.thorough
def test_nothing_is_scattered(monkeypatch):
    """A compiler makes a scatter into a buffer a copy of all of it, and one back."""
    found = []

    def forward(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    model = build({"layers": "attn flash block_attn", "flash_group_size": 8, "block_attn_block_width": 8})
    fast = as_on_gpu(monkeypatch, model, aot_autograd(fw_compiler=forward))
    with torch.no_grad():
        fast.step(torch.ones(3, 1, dtype=torch.long), fast.step(torch.ones(3, 5, dtype=torch.long))[1])
    assert "aten.index_put.default" in found and not [name for name in found if "scatter" in name]
