"""`grad_checkpoint=True`: layers are computed again for their gradients, and nothing else is different."""

import gc
import weakref

import laws
import pytest
import torch
from cases import COMPANY, build

import xflash
from xflash import AutoregressiveWrapper, SegmentWrapper, TransformerWrapper
from xflash.base.registry import blocks

CHANCE = {
    "attn": {"attn_dropout": 0.1},
    "ff": {"ff_dropout": 0.1},
    "flash": {"flash_dropout": 0.1},
    "gau": {"gau_dropout": 0.1, "gau_out_dropout": 0.1},
    "block_attn": {"block_attn_dropout": 0.1},
    "recurrent": {"recurrent_dropout": 0.1},
    "cross_attn": {"cross_attn_dropout": 0.1},
    "cross_gau": {"cross_gau_dropout": 0.1},
}
MIXED = "attn flash gau(heads=2) ff"


def chancy(layers: str, **flags):
    """A stack whose blocks drop weights, and whose layers rows."""
    named = layers.replace("(", " ").split()
    chance = {flag: p for name in named for flag, p in CHANCE.get(name, {}).items()}
    return build(**{"layers": layers, "layer_dropout": 0.3, **chance, **flags})


@pytest.mark.parametrize("name", blocks)
def test_every_block(name):
    stack = chancy(COMPANY.get(name, name), causal=True, depth=2, shift_tokens=1)
    laws.recomputed(stack)
    if not blocks[name].causal_only:
        laws.recomputed(chancy(name, causal=False, depth=2))


@pytest.mark.parametrize(
    "flags",
    [
        # What layers share has gradients of its own: the first one that asks makes it.
        {"layers": MIXED, "pos": ("rotary", "rel_pos", "alibi"), "num_memory_tokens": 3},
        {"layers": MIXED, "pos": "rel_pos", "weight_tie_layers": True, "norm_place": "sandwich"},
        {"layers": "attn cross_attn cross_gau ff", "pos": "rel_pos", "norm_place": "post"},
        {"layers": "block_attn(read_from=(1,)) flash recurrent(reads=False) ff", "depth": 1},
    ],
    ids=["shared", "tied", "context", "states"],
)
def test_stacks(flags):
    laws.recomputed(chancy(causal=True, **flags))


def test_documents():
    stack = chancy(MIXED, causal=True, pos="rel_pos")
    x, docs = laws.sample(stack, 17), torch.tensor([[0] * 4 + [1] * 6 + [2] * 7]).expand(laws.BATCH, -1)
    laws.recomputed(stack, lambda: [stack(x, doc_ids=docs)])


def test_gradient_of_a_context():
    stack = laws.live(chancy("attn cross_attn cross_gau", causal=True)).train()
    x = laws.sample(stack, 11)
    beside = laws.beside(stack, x)
    context = beside["context"].clone().requires_grad_()
    found = []
    for again in (True, False):
        for branch in stack.branches:
            branch.grad_checkpoint = again
        torch.manual_seed(4)
        y = stack(x, context=context, context_mask=beside["context_mask"])
        found += torch.autograd.grad(y.square().sum(), context)
    laws.close(*found, "gradient of the context")


@pytest.mark.parametrize("padded", [False, True], ids=["even", "padded"])
def test_through_a_state(padded):
    stack = chancy("attn flash gau recurrent ff", causal=True, depth=1, pos="rel_pos", shift_tokens=1)
    x = laws.sample(stack, 21)
    mask = laws.masks(21)["left"] if padded else None
    laws.recomputed(stack, lambda: [laws.steps(stack, x, [7, 1, 4, 9], mask)[0]])


@pytest.mark.parametrize("outer", [False, True], ids=["layers", "layers in segments"])
def test_segments(outer):
    stack = chancy("attn recurrent ff", causal=True, depth=2, grad_checkpoint=True)
    model = SegmentWrapper(TransformerWrapper(num_tokens=31, max_seq_len=64, attn_layers=stack), 8)
    model.grad_checkpoint = outer
    ids = torch.randint(31, (laws.BATCH, 27), generator=torch.Generator().manual_seed(8))

    def call():
        return [model(ids)]

    again = laws.trained(laws.live(model).train(), call)
    model.grad_checkpoint = False
    for branch in stack.branches:
        branch.grad_checkpoint = False
    for ours, kept in zip(again, laws.trained(model, call), strict=True):
        laws.close(ours, kept, "computed again")


def test_compiled_with_dropout():
    """The gradient is that of the output: what is dropped when it is computed again is what was dropped before."""
    stack = laws.live(chancy("attn ff", causal=True, depth=1, pos="rel_pos", grad_checkpoint=True)).train()
    torch._dynamo.reset()
    fast = torch.compile(stack, fullgraph=True, backend="aot_eager")
    x = laws.sample(stack, 13).requires_grad_()
    aside = 1e-5 * laws.sample(stack, 13, seed=2)

    def loss(x):
        torch.manual_seed(3)
        return fast(x).square().sum()

    (grad,) = torch.autograd.grad(loss(x), x)
    slope = (loss(x + aside) - loss(x - aside)) / 2
    torch.testing.assert_close((grad * aside).sum(), slope, rtol=1e-6, atol=0)


def held_bytes(stack, x) -> int:
    """The bytes that a forward pass leaves behind for its gradients."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        y = stack(x)
    assert y.requires_grad
    return sum(event.self_device_memory_usage or event.self_cpu_memory_usage for event in seen.key_averages())


def test_only_the_streams_are_kept():
    x = torch.randn(2, 61, 34)
    kept, again = (
        held_bytes(build("attn flash gau ff", causal=True, depth=3, grad_checkpoint=flag).train(), x)
        for flag in (False, True)
    )
    streams = 12 * x.nbytes
    assert streams <= again < 2 * streams and again < kept / 8


def test_not_where_no_gradients_are_wanted():
    stack = laws.live(build("attn ff", causal=True, grad_checkpoint=True, pos="rel_pos"))
    x = laws.sample(stack, 7)
    calls = []
    stack.branches[0].block.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        stack.train()(x)
    assert len(calls) == 1
    stack.eval()(x).sum().backward()
    assert len(calls) == 2
    stack.train()(x).sum().backward()
    assert len(calls) == 4
    y, maps = stack.attention_maps(x)
    assert len(maps) == 2
    y.sum().backward()
    assert len(maps) == 2 and len(calls) == 5


def test_a_graph_that_is_dropped_is_freed():
    stack = build("attn gau ff", causal=True, grad_checkpoint=True, pos="rel_pos").train()
    shared = []

    def note(_module, inputs, _out):
        shared.extend(weakref.ref(t) for t in inputs[1].memo.values() if isinstance(t, torch.Tensor))

    for branch in stack.branches:
        branch.register_forward_hook(note)
    y = stack(torch.randn(2, 11, 34))
    assert shared and all(ref() is not None for ref in shared)
    del y
    gc.collect()
    assert all(ref() is None for ref in shared)


def test_spelled_elsewhere():
    with pytest.raises(TypeError, match="unknown flag 'gradient_checkpointing'; it is called 'grad_checkpoint' here"):
        xflash.Decoder(dim=24, depth=1, gradient_checkpointing=True)
    with pytest.raises(TypeError, match="grad_checkpoint must be True or False, not 1"):
        xflash.Decoder(dim=24, depth=1, grad_checkpoint=1)


def test_saved():
    stack = build("attn ff", causal=True, grad_checkpoint=True)
    assert xflash.from_config(stack.to_config()).branches[0].grad_checkpoint
    model = AutoregressiveWrapper(TransformerWrapper(num_tokens=31, max_seq_len=16, attn_layers=stack))
    assert model.to_config()["net"]["attn_layers"]["grad_checkpoint"] is True
