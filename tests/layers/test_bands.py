"""Windows that are read block by block: the laws, the memory, the graphs, and when one matrix is read instead."""

from types import SimpleNamespace

import laws
import pytest
import torch
from cases import build
from graphs import Graphs
from quick import quick
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
    return build(**{"causal": causal, "layers": "attn ff", "depth": 2, "attn_window": 3, **flags})


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


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that is made."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() // t.element_size() for t in tree_leaves(out) if torch.is_tensor(t)]
        self.most = max(self.most, *sizes, 0)
        return out


def largest(stack, n, **given) -> int:
    x = laws.sample(stack, n).requires_grad_()
    with Largest() as mode:
        laws.run(stack, x, **given).sum().backward()
    return mode.most


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("given", ["nothing", "padding", "documents"])
def test_no_matrix_of_all_tokens_is_made(causal, given):
    # A bias of each head is one more factor where rows see other keys than their neighbours.
    stack, sizes = laws.live(stack_of(causal, pos="alibi" if given == "nothing" else "rotary")), []
    for n in (811, 1601):
        beside = {
            "nothing": {},
            "padding": {"mask": torch.arange(n) < torch.tensor([n, n // 3, 0])[:, None]},
            "documents": {"doc_ids": (torch.arange(n) // 300).expand(laws.BATCH, -1)},
        }
        sizes.append(largest(stack, n, **beside[given]))
    assert sizes[0] < 811**2
    # Blocks between the first and the last queries; all in all there are nearly four times as many pairs.
    assert sizes[1] < 2.5 * sizes[0]


def test_a_long_window_is_read_as_before():
    """Where most keys are seen, and by single queries, one matrix is the faster way."""
    band = bands.Band(128, True, 4000, 4000)
    assert bands.pays(band) and not bands.pays(band._replace(n=band.span)) and not bands.pays(band._replace(n=1))


MATRIX = {
    "maps": ({}, lambda stack, x: stack.attention_maps(x)),
    "a mask": ({}, lambda stack, x: stack(x, attn_mask=torch.ones(17, 17, dtype=torch.bool))),
    "the flag": ({"attn_flash": False}, laws.run),
    "steps on scores": ({"attn_scores": "softclamp"}, laws.run),
    "steps that add": ({"attn_scores": "forget"}, laws.run),
    "other weights": ({"attn_weight_fn": "sigmoid"}, laws.run),
    "sinks with a bias": ({"attn_sinks": 2, "pos": "alibi"}, laws.run),
    "unlike rows": ({}, lambda stack, x: laws.steps(stack, x, [2, 15], laws.masks(17)["left"])),
}


@pytest.mark.parametrize(("flags", "call"), MATRIX.values(), ids=MATRIX)
def test_one_matrix_is_read_where_it_is_needed(flags, call, always):
    stack = laws.live(stack_of(**flags))
    call(stack, laws.sample(stack, 17))
    assert not always


def test_a_step_of_ones_own_may_say_of_each_query_what_is_beside_the_keys(always):
    stack = laws.live(stack_of(attn_scores="zero_key"))
    steps = [step for block in stack.blocks() if hasattr(block, "reader") for step in block.reader.steps.values()]
    x = laws.sample(stack, 17)
    wanted = stack(x)
    for step in steps:
        step.extra_key = lambda read: read.q.new_zeros(1, read.q.shape[1], read.q.shape[2], 1)
    laws.close(stack(x), wanted, "of each query")
    assert len(always) > 1


@pytest.mark.parametrize("given", quick(["nothing", "behind a state"], lambda *_: False, lambda *_: False))
def test_compiled_lengths_are_few_graphs(given, monkeypatch):
    monkeypatch.setattr(bands, "LEAST", 2)
    stack = laws.live(stack_of(layers="attn", depth=1, pos="rotary", attn_sinks=1))
    counter = Graphs("eager")
    fast = SimpleNamespace(step=torch.compile(stack.step, fullgraph=True, backend=counter), attn_layers=stack)
    with torch.no_grad():
        state = laws.go(stack, laws.sample(stack, 31))[1] if given == "behind a state" else None
        for n in (43, 57, 11, 40, 7, 61):
            x = laws.sample(stack, n)
            ours, expected = (laws.go(call, x, state)[0] for call in (fast, stack))
            laws.close(ours, expected, f"compiled at {n}")
    assert len(counter.ran) <= 3


@pytest.mark.slow
@pytest.mark.thorough
def test_compiled_gradients(monkeypatch):
    monkeypatch.setattr(bands, "LEAST", 2)
    stack = laws.live(stack_of(layers="attn", depth=1, pos="alibi", attn_num_mem_kv=1))
    x = laws.sample(stack, 43).requires_grad_()
    fast = torch.compile(stack, fullgraph=True, backend="aot_eager")
    ours, expected = (
        torch.autograd.grad(call(x).square().sum(), [x, *stack.parameters()], materialize_grads=True, allow_unused=True)
        for call in (fast, stack)
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_the_rows_of_vmap(always):
    stack = laws.live(stack_of(pos="rotary", attn_kv_heads=1))
    x = laws.sample(stack, 17)
    grads = torch.func.vmap(torch.func.grad(lambda row: stack(row[None]).square().sum()))(x)
    y = x.clone().requires_grad_()
    laws.close(grads, torch.autograd.grad(stack(y).square().sum(), y)[0], "rows")
    assert always
