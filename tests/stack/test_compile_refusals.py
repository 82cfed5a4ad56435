"""A refused call of something compiled raises eager's error, and leaves all that is compiled as it was."""

import copy

import laws
import pytest
import torch
from torch import nn

import xflash
from xflash import AutoregressiveWrapper, Decoder, Encoder, PrefixDecoder, TransformerWrapper

V, D, B, N = 13, 8, 2, 5


class Runs:
    """A backend of torch.compile that counts how often its graphs run."""

    def __init__(self):
        torch._dynamo.reset()
        self.runs = 0

    def __call__(self, graph, _inputs):
        def run(*args):
            self.runs += 1
            return graph.forward(*args)

        return run


def ids(n=N, top=V):
    return torch.arange(B * n).view(B, n) % top


def stream(n=N, width=D):
    return torch.randn(B, n, width, generator=torch.Generator().manual_seed(n), dtype=torch.double)


def ones(*shape):
    return torch.ones(shape, dtype=torch.bool)


def stack(cls=Decoder, layers="attn ff", **flags):
    torch.manual_seed(1)
    sizes = {"attn_dim_head": 4} if "attn" in layers.split() else {}
    return laws.live(cls(dim=D, depth=1, heads=2, layers=layers, **sizes, **flags))


def model(cls=Decoder, inside=None, **arguments):
    return laws.live(TransformerWrapper(num_tokens=V, attn_layers=stack(cls, **inside or {}), **arguments))


def by_relative(**arguments):
    """A model whose max_seq_len limits nothing."""
    return model(inside={"pos": "rotary"}, **arguments)


def vit():
    layers = Encoder(dim=D, depth=1, heads=2, attn_dim_head=4)
    return laws.live(xflash.ViTransformerWrapper(image_size=4, patch_size=2, num_classes=3, attn_layers=layers))


def translator():
    sizes = {"num_tokens": V, "depth": 1, "heads": 2, "attn_dim_head": 4, "max_seq_len": 8}
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in sizes.items()}
    return laws.live(xflash.XTransformer(dim=D, **sides))


FAR = ids() + V
# What is built, a right call, and wrong ones.
CASES = {
    "ids": (
        lambda: model(max_seq_len=8, embed_num_tokens={"kind": 3}),
        {"x": ids(), "mask": ones(B, N), "embed_ids": {"kind": ids(top=3)}},
        {
            "too long": {"x": ids(9), "mask": ones(B, 9), "embed_ids": {"kind": ids(9, 3)}},
            "outside the vocabulary": {"x": FAR},
            "floats": {"x": ids().float()},
            "an axis short": {"x": ids()[0]},
            "a mask of floats": {"mask": ones(B, N).float()},
            "a mask of other numbers": {"mask": 2 * ones(B, N).long()},
            "no ids of a name": {"embed_ids": None},
            "outside of a name's": {"embed_ids": {"kind": ids()}},
        },
    ),
    "stack": (
        stack,
        {"x": stream(), "attn_mask": ones(N, N), "doc_ids": None},
        {
            "another width": {"x": stream(width=7)},
            "no tokens": {"x": stream()[:, :0]},
            "another dtype": {"x": stream().float(), "attn_mask": None},
            "ids": {"x": ids()},
            "attn_mask of another shape": {"attn_mask": ones(N, N + 1)},
            "attn_mask of other numbers": {"attn_mask": 3 * ones(N, N).long()},
            "doc_ids of another shape": {"doc_ids": ids(N + 1)},
            "a context": {"context": stream()},
        },
    ),
    "flash": (
        lambda: stack(layers="flash", flash_group_size=4, flash_query_key_dim=6),
        {"x": stream()},
        {"attn_mask": {"attn_mask": ones(N, N)}, "a prefix": {"prefix_attn_len": 3}, "dtype": {"x": stream().float()}},
    ),
    "prefix": (
        lambda: stack(PrefixDecoder),
        {"x": stream(), "prefix_attn_len": torch.tensor([2, 3])},
        {
            "too long": {"prefix_attn_len": torch.tensor([2, 9])},
            "below nothing": {"prefix_attn_len": torch.tensor([-1, 2])},
            "another number of rows": {"prefix_attn_len": torch.tensor([2, 3, 4])},
            "no integers": {"prefix_attn_len": 2.0},
        },
    ),
    "context": (
        lambda: stack(layers="cross_attn ff", cross_attn_dim_head=4),
        {"x": stream(), "context": stream(3), "context_mask": ones(B, 3)},
        {
            "none": {"context": None, "context_mask": None},
            "another width": {"context": stream(3, 7)},
            "another dtype": {"context": stream(3).float()},
            "mask of another shape": {"context_mask": ones(B, 4)},
        },
    ),
    "AutoregressiveWrapper": (
        lambda: AutoregressiveWrapper(model(max_seq_len=8), loss_chunk=3),
        {"x": ids()},
        {
            "too long": {"x": ids(12)},
            "one token": {"x": ids(1)},
            "outside": {"x": FAR},
            "labels outside": {"labels": FAR},
            "lens": {"lens": torch.tensor([3])},
        },
    ),
    "XTransformer": (
        translator,
        {"src": ids(), "tgt": ids(7), "mask": ones(B, N)},
        {
            "source too long": {"src": ids(9), "mask": None},
            "outside": {"tgt": ids(7) + V},
            "mask": {"mask": ones(B, 4)},
        },
    ),
    "ViTransformerWrapper": (vit, {"img": stream(3 * 16, 1).view(B, 3, 4, 4)}, {"size": {"img": stream(3 * 15, 1)}}),
    "BlockRecurrentTransformer": (
        lambda: laws.live(
            xflash.BlockRecurrentTransformer(
                num_tokens=V, dim=D, depth=1, dim_head=4, heads=2, block_width=8, max_seq_len=8, num_state_vectors=3
            )
        ),
        {"x": ids(), "return_loss": True},
        {"outside": {"x": FAR}, "one token": {"x": ids(1)}},
    ),
    "RecurrentMemoryWrapper": (
        lambda: xflash.RecurrentMemoryWrapper(by_relative(), num_memory_tokens=2, segment_len=8),
        {"x": ids()},
        {"outside": {"x": FAR}, "mask": {"mask": ones(B, 4)}},
    ),
}


def said(call, **given):
    """The type and the words of what a call raises."""
    with pytest.raises((TypeError, ValueError)) as caught:
        call(**given)
    return type(caught.value), str(caught.value)


def first(out):
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_refusals(name):
    build, right, wrong = CASES[name]
    built, backend = build(), Runs()
    compiled, expected = torch.compile(built, backend=backend), first(built(**right))
    with torch.no_grad():
        laws.close(first(compiled(**right)), expected, "compiled")
        graphs = backend.runs
        for what, change in wrong.items():
            given = {**right, **change}
            assert said(compiled, **given) == said(built, **given), what
            backend.runs = 0
            laws.close(first(compiled(**right)), expected, f"behind a refusal: {what}")
            assert backend.runs == graphs, f"behind {what} it runs in pieces"
        if name not in ("ids", "stack"):
            return
        again = copy.deepcopy(built)
        laws.close(first(torch.compile(again, backend=backend, fullgraph=True)(**right)), expected, "a new one")


@pytest.mark.slow
def test_steps():
    built, other, backend = stack(), stack(layers="ff"), Runs()
    step = torch.compile(built.step, backend=backend)
    with torch.no_grad():
        _, state = step(stream())
        whole = built(stream(6))
        _, mine = built.step(stream(6)[:, :5])
        laws.close(step(stream(6)[:, 5:], mine)[0], whole[:, 5:], "compiled step")
        for given in (
            {"state": "none"},
            {"state": other.step(stream())[1]},
            {"state": built.step(stream()[:1])[1]},
            {"state": state, "reset": torch.ones(B, dtype=torch.float)},
            {"state": state, "mask": ones(B, 2)},
        ):
            assert said(step, x=stream(1), **given) == said(built.step, x=stream(1), **given)
            laws.close(step(stream(6)[:, 5:], mine)[0], whole[:, 5:], "behind a refusal")


def test_a_state_is_reset_in_a_whole_graph():
    built = stack()
    _, state = built.step(stream())
    step, rows = torch.compile(built.step, backend=Runs(), fullgraph=True), torch.tensor([True, False])
    laws.close(step(stream(1), state, reset=rows)[0], built.step(stream(1), state, reset=rows)[0], "reset")


class Holder(nn.Module):
    """Somebody's own module around a model."""

    def __init__(self):
        super().__init__()
        self.inner = model(max_seq_len=8)

    def forward(self, x):
        return 2 * self.inner(x)


@pytest.mark.slow
def test_a_model_inside_of_another_module():
    built = Holder()
    compiled, expected = torch.compile(built, backend=Runs()), built(ids())
    for n in (9, 12):
        laws.close(compiled(ids()), expected, "compiled")
        assert said(compiled, x=ids(n)) == said(built, x=ids(n))
    laws.close(compiled(ids()), expected, "behind refusals")


IN_PLACE = {
    "a model": (lambda: model(max_seq_len=8), {"too long": {"x": ids(9)}}),
    "SegmentWrapper": (lambda: xflash.SegmentWrapper(by_relative(), 4), {"mask": {"mask": ones(B, 4)}}),
    "XLAutoregressiveWrapper": (
        lambda: xflash.XLAutoregressiveWrapper(by_relative(max_mem_len=4, max_seq_len=4)),
        {"one token": {"x": ids(1)}},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_PLACE)
def test_whole_graphs_refuse_in_the_same_words(name):
    build, wrong = IN_PLACE[name]
    built, eager = build(), build()
    expected = first(eager(ids()))
    built.compile(backend=Runs(), fullgraph=True)
    laws.close(first(built(ids())), expected, "compiled in place")
    for change in ({"x": FAR}, {"x": ids().float()}, *wrong.values()):
        given = {"x": ids(), **change}
        assert said(built, **given) == said(eager, **given)
        laws.close(first(built(ids())), expected, "behind a refusal")


@pytest.mark.slow
def test_compiled_steps_of_a_token():
    built, eager = model(max_seq_len=8), model(max_seq_len=8)
    built.compile_step(backend=Runs(), fullgraph=True)
    with torch.no_grad():
        _, state = built.step(ids(8)[:, :7])
        laws.close(built.step(ids(8)[:, 7:], state)[0], eager(ids(8))[:, 7:], "compiled step")
        full = eager.step(ids(8))[1]
        for x, mine in ((FAR[:, :1], state), (ids(1), full), (ids(1), state.reorder(torch.tensor([0])))):
            assert said(built.step, x=x, state=mine) == said(eager.step, x=x, state=mine)
        laws.close(built.step(ids(8)[:, 7:], state)[0], eager(ids(8))[:, 7:], "behind a refusal")


def test_what_gives_up_for_another_reason_is_compiled_in_pieces():
    """A frame that is given up, though nothing was refused, has what it calls compiled; and its result."""

    class Printing(nn.Module):
        def forward(self, x, ctx):
            try:
                torch._dynamo.graph_break()
            finally:
                x = x + 1
            return x

    built, backend = stack(), Runs()
    built.branches[0].block = nn.Sequential()
    built.final_norm = Printing()
    built.branches = nn.ModuleList()
    built.order = []
    compiled = torch.compile(built, backend=backend)
    for _ in range(3):
        laws.close(compiled(stream()), stream() + 1, "in pieces")
    assert backend.runs > 0


def padded(n, real):
    """Ids of n tokens, and a mask by which the rows have so many real ones, at the end."""
    return ids(n), torch.arange(n) >= n - torch.tensor(real)[:, None]


def test_a_padded_call_longer_than_the_positions_is_right_each_time():
    """What eager decides by looking at the mask, a graph decides when it runs."""
    net = model(max_seq_len=7)
    compiled = torch.compile(net, backend=Runs(), fullgraph=True)
    for n, real in ((9, (7, 3)), (9, (5, 7)), (10, (6, 2))):
        x, mask = padded(n, real)
        laws.close(compiled(x, mask), net(x, mask), f"{n} tokens")
    x, mask = padded(9, (8, 3))
    with pytest.raises(ValueError, match="tokens are more than max_seq_len=7, the number of learned positions"):
        net(x, mask)
    with pytest.raises(ValueError, match="8 tokens are more than max_seq_len=7, the number of learned positions"):
        compiled(x, mask)


@pytest.mark.slow
def test_documents_of_which_nobody_said_how_many_are_right_each_time():
    """A graph cannot size the canvas of such a layer: eager does it, call after call."""
    net = stack(layers="flash", flash_group_size=4, flash_query_key_dim=6)
    compiled = torch.compile(net, backend=Runs())
    for n in (5, 5, 7, 11):
        documents = (torch.arange(n) // 3).expand(B, n)
        laws.close(compiled(stream(n), doc_ids=documents), net(stream(n), doc_ids=documents), f"{n} tokens")


@pytest.mark.slow
def test_more_documents_than_were_said():
    net = stack(layers="flash", flash_group_size=4, flash_query_key_dim=6, flash_max_documents=2)
    compiled = torch.compile(net, backend=Runs(), fullgraph=True)
    for n, documents in ((7, 2), (11, 4)):
        numbers = (torch.arange(n) * documents // n).expand(B, n)
        if documents < 3:
            laws.close(compiled(stream(n), doc_ids=numbers), net(stream(n), doc_ids=numbers), f"{n} tokens")
        else:
            for way in (net, compiled):
                with pytest.raises(ValueError, match="a row of doc_ids has 4 documents, but flash_max_documents=2"):
                    way(stream(n), doc_ids=numbers)


def test_lengths_of_a_compiled_loss():
    loss = AutoregressiveWrapper(model(max_seq_len=N))
    compiled = torch.compile(loss, backend=Runs(), fullgraph=True)
    laws.close(compiled(ids(), lens=torch.tensor([3, N])), loss(ids(), lens=torch.tensor([3, N])), "lens")
    for lens, wrong in (([3, N + 1], N + 1), ([-2, N], -2)):
        for way in (loss, compiled):
            with pytest.raises(ValueError, match=f"lens must be from 0 to {N}, the width of the tensor, not {wrong}"):
                way(ids(), lens=torch.tensor(lens))
