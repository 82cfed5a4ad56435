"""`return_hiddens`: every layer's stream where the caller's tokens stand, and nothing kept that is not asked for."""

import weakref

import laws
import pytest
import torch
from cases import build
from graphs import Graphs

from xflash import Decoder, Encoder

STACKS = {
    "attn ff": {"pos": "rotary", "shift_tokens": 1, "grad_checkpoint": True},
    "gau+attn(pos=none) ff": {"pos": "rotary2d", "num_memory_tokens": 3, "reads": "unet"},
    "flash gau": {"num_memory_tokens": 3, "join": "hyper", "flash_group_size": 5},
    "attn cross_attn": {"norm_place": "post", "weight_tie_layers": True},
    "state_read recurrent": {"num_memory_tokens": 3, "reads": "lime"},
    "block_attn flash": {"norm_place": "sandwich", "join": "gru", "reads": "unet"},
}


def stack_of(layers, causal=True):
    return laws.live(build(layers, causal=causal, **STACKS[layers]))


def hiddens(stack, x, mask=None, **given):
    y, found = laws.run(stack, x, mask, **given, return_hiddens=True)
    assert torch.equal(found[-1], y) and len(found) == len(stack.order) + 2
    assert all(stream.shape == x.shape for stream in found)
    return found


def closed(ours, theirs, law):
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        laws.close(one, other, f"{law}: stream {place}")


@pytest.mark.parametrize("layers", ["attn ff", "attn cross_attn", "block_attn flash"])
def test_they_are_what_goes_from_layer_to_layer(layers):
    stack = stack_of(layers)
    x, seen = laws.sample(stack, 7), []
    for branch in stack.branches:
        branch.register_forward_hook(lambda _module, _inputs, out: seen.append(out[0]))
    found = hiddens(stack, x)
    assert torch.equal(found[0], x)
    closed(found[1:-1], seen, "as hooks see them")
    last = found[-2] if stack.final_norm is None else stack.final_norm(found[-2], None)
    laws.close(found[-1], last, "behind the last norm")
    assert torch.equal(laws.run(stack, x), found[-1])


def test_several_streams_are_summed():
    stack = stack_of("flash gau")
    x, seen = laws.sample(stack, 7), []
    for branch in stack.branches:
        branch.register_forward_hook(lambda _module, _inputs, out: seen.append(out[0].sum(2)[:, 3:]))
    closed(hiddens(stack, x)[1:-1], seen, "streams, memory tokens left out")


@pytest.mark.parametrize(
    ("layers", "causal"), [*((layers, True) for layers in STACKS), *((layers, False) for layers in list(STACKS)[:4])]
)
def test_they_keep_the_laws(layers, causal):
    """Padding and, where there is a state, chunks: at every layer what they are at the last."""
    stack = stack_of(layers, causal)
    x = laws.sample(stack, 13)
    whole = hiddens(stack, x)
    for kind in ("left", "holes"):
        mask = laws.masks(13)[kind]
        padded = hiddens(stack, x.masked_fill(~mask[..., None], float("nan")), mask)
        assert all((stream[~mask] == 0).all() for stream in padded), kind
        alone = hiddens(stack, x[:1, mask[0]])
        closed([stream[0, mask[0]] for stream in padded], [stream[0] for stream in alone], kind)
    if not causal:
        return
    for cut in (1, 6):
        _, state, head = laws.go(stack, x[:, :cut], return_hiddens=True)
        _, _, tail = laws.go(stack, x[:, cut:], state, return_hiddens=True)
        closed([torch.cat(both, 1) for both in zip(head, tail, strict=True)], whole, f"cut at {cut}")
        assert torch.equal(laws.go(stack, x[:, cut:], state)[0], tail[-1])


def test_packed_documents_have_those_that_each_has_alone():
    stack = stack_of("attn ff")
    x = laws.sample(stack, 11)
    found = hiddens(stack, x, doc_ids=torch.tensor([[4] * 3 + [0] * 8]).expand(3, -1))
    closed([s[:, :3] for s in found], hiddens(stack, x[:, :3]), "the first document")
    closed([s[:, 3:] for s in found], hiddens(stack, x[:, 3:]), "the second")


@pytest.mark.parametrize("layers", ["attn ff", "flash gau"])
def test_gradients_flow_out_of_every_layer(layers):
    """Of layers that are computed again too, masked rows among them."""
    stack = stack_of(layers)
    laws.recomputed(stack, lambda: hiddens(stack, laws.sample(stack, 11), laws.masks(11)["holes"])[1:])


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("layers", ["attn ff", "flash ff"])
def test_nothing_is_kept_that_is_not_asked_for(layers, asked):
    """Without gradients the stream behind a layer is gone as soon as the next layer has read it."""
    stack = build(layers, depth=3, causal=True).eval()
    kept, alive = [], []

    def note(_module, _inputs, out):
        alive.append(sum(ref() is not None for ref in kept))
        kept.append(weakref.ref(out[0]))

    for branch in stack.branches:
        branch.register_forward_hook(note)
    with torch.no_grad():
        found = stack(torch.randn(2, 7, stack.dim), return_hiddens=asked)
    assert alive == (list(range(6)) if asked else [0, 1, 1, 1, 1, 1])
    # The last one is what the last norm has read.
    assert sum(ref() is not None for ref in kept) == (6 if asked else 0)
    assert isinstance(found, tuple) is asked


def test_matrices_come_before_them():
    stack = stack_of("attn ff")
    x, mask = laws.sample(stack, 7), laws.masks(7)["holes"]
    y, maps, found = stack.attention_maps(x, mask, return_hiddens=True)
    assert torch.equal(y, found[-1])
    closed(found, hiddens(stack, x, mask), "with matrices")
    closed(maps, stack.attention_maps(x, mask)[1], "with hiddens")


@pytest.mark.slow
def test_compiled_is_eager():
    stack = stack_of("attn ff")
    graphs = Graphs()
    compiled = torch.compile(stack, fullgraph=True, backend=graphs)
    with torch.no_grad():
        for n in range(5, 12):
            x, mask = laws.sample(stack, n), laws.masks(n)["holes"] if n > 5 else torch.ones(3, 5).bool()
            closed(compiled(x, mask, return_hiddens=True)[1], hiddens(stack, x, mask), f"compiled: {n} tokens")
    assert len(graphs.ran) <= 3


def test_exported_is_eager():
    stack = laws.live(Encoder(dim=34, depth=1, heads=2, layers="attn ff"))
    n = torch.export.Dim("n", min=2, max=64)
    given = {"x": {1: n}, "return_hiddens": None}
    program = torch.export.export(
        stack, (laws.sample(stack, 7),), {"return_hiddens": True}, dynamic_shapes=given, strict=True
    )
    x = laws.sample(stack, 11)
    closed(program.module()(x, return_hiddens=True)[1], hiddens(stack, x), "exported")


def test_a_stack_compiled_in_place_gives_them():
    stack = stack_of("state_read recurrent")
    x = laws.sample(stack, 12)
    expected = hiddens(stack, x)
    stack.compile(fullgraph=True, backend="eager")
    closed(hiddens(stack, x), expected, "in pieces")


def test_what_is_no_switch_is_refused():
    stack = Decoder(dim=34, depth=1, heads=2)
    x = torch.randn(1, 3, 34)
    for call in (stack, stack.step, stack.attention_maps):
        with pytest.raises(TypeError, match="return_hiddens must be True or False, not 1"):
            call(x, return_hiddens=1)
