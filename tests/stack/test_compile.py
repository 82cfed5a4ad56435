"""Law 7: compiled equals eager, twenty lengths do not compile twenty graphs, export takes any length."""

import laws
import pytest
import torch
from cases import both_ways, build
from quick import quick
from torch._dynamo.testing import CompileCounterWithBackend

from xflash.base.registry import blocks, positions, scores

LENGTHS = (7, 8, 11, 13, 16, 5, 21, 3, 25, 30, 17, 18, 10, 29, 12, 6, 9, 14, 15, 19)

# Compiled whole, such a stack holds as many pieces as the graph was traced with: it is compiled by the piece elsewhere.
IN_PIECES = {"state_read": "state_read recurrent(block_width=8)"}
# Each block for itself: the sizes of several in one stack are slow to reason about.
CASES = {
    **{f"block {name}": {"layers": name} for name in blocks if name not in IN_PIECES},
    "compressed": {"layers": "block_attn", "block_attn_compress": "conv", "block_attn_compress_factor": 5}
    | {"block_attn_compress_loss": True, "pos": "rel_pos"},
    "window written": {"layers": "recurrent", "recurrent_write_from": "window", "recurrent_update": "dual"},
    "scores by the kernel": {"layers": "attn", "attn_scores": ("forget", "learned_sink")},
    "scores": {"layers": "attn", "attn_scores": tuple(scores), "attn_num_mem_kv": 2},
    "scores in blocks": {"layers": "recurrent", "recurrent_scores": ("talking_heads", "softclamp", "learned_sink")},
    "slots": {"layers": "attn", "join": "hyper", "reads": ("unet", "lime"), "lime_views": True, "scale": "layerscale"},
    "values": {"layers": "attn", "attn_value_residual": True, "join": "gru", "scale": "rezero"},
    "layers": {"layers": "attn(pos=rotary, rotary_base=50.0)+ff(norm=own)"},
    "attn parts": {"layers": "attn", "pos": tuple(positions), "shift_tokens": 1, "num_memory_tokens": 2},
}


TRAINED = ("scores by the kernel", "scores", "slots", "values", "layers", "attn parts", "compressed")


# Each block, causal, alone: what else may stand in its place is compiled in the thorough run.
ALONE = quick(
    both_ways(CASES), lambda *_: False, lambda case, _: case.startswith("block ") and case.endswith("-causal")
)


def compiled(stack, backend="aot_eager"):
    """The stack compiled without graph breaks (traced as in training, no code generated), and a count of its graphs."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    return torch.compile(stack, fullgraph=True, backend=counter), counter


@pytest.mark.parametrize(("flags", "causal"), ALONE)
def test_twenty_lengths_are_few_graphs(flags, causal):
    stack = laws.live(build(causal=causal, depth=1, **flags))
    # How many graphs there are is Dynamo's affair; what is traced of them further is compared in training.
    fast, counter = compiled(stack, "eager")
    with torch.no_grad():
        for n in LENGTHS:
            x = laws.sample(stack, n)
            laws.close(laws.run(fast, x), laws.run(stack, x), f"compiled at {n}")
    assert counter.frame_count <= 3, f"{counter.frame_count} graphs for {len(LENGTHS)} lengths"


@pytest.mark.parametrize("name", quick([*blocks, *TRAINED], lambda name, _: name in ("attn", "flash")))
def test_compiled_training(name):
    flags = {"layers": IN_PIECES.get(name, name)} if name in blocks else CASES[name]
    stack = laws.live(build(causal=True, depth=1, **flags))
    fast, counter = compiled(stack)
    whole = name in IN_PIECES or name in ("attn parts", "compressed")
    for n in (13,) if whole else (13, 22, 4):
        x = laws.sample(stack, n).requires_grad_()
        if not whole:
            # One graph of any length at once: that lengths become one of themselves is seen above.
            torch._dynamo.maybe_mark_dynamic(x, 1)
        weights = [x, *stack.parameters()]
        # A single block of tokens teaches a recurrent layer nothing.
        grads = [
            torch.autograd.grad(laws.run(f, x).square().sum(), weights, allow_unused=True, materialize_grads=True)
            for f in (fast, stack)
        ]
        for ours, expected in zip(*grads, strict=True):
            laws.close(ours, expected, f"compiled gradient at {n}")
    assert counter.frame_count <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["block_attn", "recurrent"])
@pytest.mark.parametrize("sizes", [(1,) * 13, (7, 3, 12, 5, 9)], ids=["tokens", "pieces"])
def test_compiled_steps(name, sizes):
    stack = laws.live(build(layers=name, causal=True, depth=1))
    fast, counter = compiled(stack.step)
    x, state, at = laws.sample(stack, sum(sizes)), None, 0
    with torch.no_grad():
        whole = stack(x)
        for n in sizes:
            y, state = fast(x[:, at : at + n], state)
            laws.close(y, whole[:, at : at + n], f"compiled step at {at}")
            at += n
    assert counter.frame_count <= 3


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_masks_compile(causal):
    stack = laws.live(build(causal=causal, depth=1, **CASES["attn parts"]))
    fast, counter = compiled(stack)
    for n in LENGTHS[:8]:
        x = laws.sample(stack, n)
        mask = torch.rand(laws.BATCH, n, generator=torch.Generator().manual_seed(n)) < 0.7
        with torch.no_grad():
            of_tokens = laws.of_tokens(stack, x)
            laws.close(fast(x, mask, **of_tokens), stack(x, mask, **of_tokens), f"compiled with a mask at {n}")
    assert counter.frame_count <= 3


@pytest.mark.parametrize(("flags", "causal"), ALONE)
def test_export_takes_any_length(flags, causal):
    stack = laws.live(build(causal=causal, depth=1, **flags))
    n = torch.export.Dim("n", min=2, max=4096)
    x = laws.sample(stack, 11)
    beside, of_tokens = laws.beside(stack, x), laws.of_tokens(stack, x)
    shapes = {"x": {1: n}} | {name: {} for name in beside} | {name: {1: n} for name in of_tokens}
    program = torch.export.export(stack, (x,), {**beside, **of_tokens}, dynamic_shapes=shapes)
    for length in (2, 5, 29, 40):
        x = laws.sample(stack, length)
        again = program.module()(x, **beside, **laws.of_tokens(stack, x))
        laws.close(again, laws.run(stack, x), f"exported at {length}")
