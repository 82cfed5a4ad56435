"""Law 7: compiled equals eager, twenty lengths do not compile twenty graphs, export takes any length."""

import laws
import pytest
import torch
from test_laws import both_ways, build
from torch._dynamo.testing import CompileCounterWithBackend

from xflash.registry import blocks, positions

LENGTHS = (7, 8, 11, 13, 16, 5, 21, 3, 25, 30, 17, 18, 10, 29, 12, 6, 9, 14, 15, 19)

# Each block for itself: the sizes of several in one stack are slow to reason about.
# Stacks of these hold as many blocks of tokens as the graph was traced with.
UNROLLED = {
    "block_attn": "block_attn",
    "recurrent": "recurrent(block_width=8)",
    "state_read": "state_read recurrent(block_width=8)",
}
CASES = {
    **{f"block {name}": {"layers": name} for name in blocks if name not in UNROLLED},
    "attn parts": {"layers": "attn", "pos": tuple(positions), "shift_tokens": 1, "num_memory_tokens": 2},
}


def compiled(stack):
    """The stack compiled without graph breaks (traced as in training, no code generated), and a count of its graphs."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(stack, fullgraph=True, backend=counter), counter


@pytest.mark.parametrize(("flags", "causal"), both_ways(CASES))
def test_twenty_lengths_are_few_graphs(flags, causal):
    stack = laws.live(build(causal=causal, depth=1, **flags))
    fast, counter = compiled(stack)
    with torch.no_grad():
        for n in LENGTHS:
            x = laws.sample(stack, n)
            laws.close(laws.run(fast, x), laws.run(stack, x), f"compiled at {n}")
    assert counter.frame_count <= 3, f"{counter.frame_count} graphs for {len(LENGTHS)} lengths"


@pytest.mark.parametrize("name", ["block_attn", "state_read"])
def test_each_length_is_a_graph(name):
    """Blocks of tokens are counted while tracing: compiled for the lengths it is used at, one graph each."""
    stack = laws.live(build(layers=UNROLLED[name], causal=True, depth=1))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(stack, fullgraph=True, backend=counter, dynamic=False)
    with torch.no_grad():
        for n in (7, 12, 7):
            x = laws.sample(stack, n)
            laws.close(fast(x), stack(x), f"compiled at {n}")
    assert counter.frame_count == 2


@pytest.mark.parametrize("name", blocks)
def test_compiled_training(name):
    stack = laws.live(build(layers=UNROLLED.get(name, name), causal=True, depth=1))
    fast, _ = compiled(stack)
    x = laws.sample(stack, 13).requires_grad_()
    grads = [torch.autograd.grad(laws.run(f, x).square().sum(), [x, *stack.parameters()]) for f in (fast, stack)]
    for ours, expected in zip(*grads, strict=True):
        laws.close(ours, expected, "compiled gradient")


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_masks_compile(causal):
    stack = laws.live(build(causal=causal, depth=1, **CASES["attn parts"]))
    fast, counter = compiled(stack)
    for n in LENGTHS[:8]:
        x = laws.sample(stack, n)
        mask = torch.rand(laws.BATCH, n, generator=torch.Generator().manual_seed(n)) < 0.7
        with torch.no_grad():
            laws.close(fast(x, mask), stack(x, mask), f"compiled with a mask at {n}")
    assert counter.frame_count <= 3


@pytest.mark.parametrize(("flags", "causal"), both_ways(CASES))
def test_export_takes_any_length(flags, causal):
    stack = laws.live(build(causal=causal, depth=1, **flags))
    n = torch.export.Dim("n", min=2, max=4096)
    x = laws.sample(stack, 11)
    beside = laws.beside(stack, x)
    shapes = {"x": {1: n}} | {name: {} for name in beside}
    program = torch.export.export(stack, (x,), beside, dynamic_shapes=shapes)
    for length in (2, 5, 29, 40):
        x = laws.sample(stack, length)
        laws.close(program.module()(x, **beside), laws.run(stack, x), f"exported at {length}")
