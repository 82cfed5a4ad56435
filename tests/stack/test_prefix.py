"""PrefixDecoder: the first tokens see each other, the rest is causal; stepped, padded, generated from."""

import laws
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from xflash import AutoregressiveWrapper, Decoder, PrefixDecoder, SegmentWrapper, TransformerWrapper
from xflash.layers.kernels import gated

DIM, BATCH, N, HEADS = 26, 3, 13, 2
STACKS = {
    "attn": {"layers": "attn ff"},
    "attn, plain kernel": {"layers": "attn", "attn_flash": False, "attn_num_mem_kv": 2, "pos": "alibi"},
    "window": {"layers": "attn", "attn_window": 3},
    "gau": {"layers": "gau"},
    "gau, softmax": {"layers": "gau", "gau_attn_fn": "softmax_plus", "pos": "rotary"},
    "gau, row_sum": {"layers": "gau ff", "gau_normaliser": "row_sum", "gau_heads": 2, "pos": "rel_pos"},
    "shift, memory tokens": {"layers": "attn gau", "shift_tokens": 1, "num_memory_tokens": 2, "pos": "rotary"},
}
every_stack = pytest.mark.parametrize("name", STACKS)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setitem(gated.ROWS, "cpu", 5)


def stack(name="attn", **flags):
    torch.manual_seed(0)
    flags = {"dim": DIM, "depth": 2, "heads": HEADS, **STACKS[name], **flags}
    for block, size in (("attn", {"attn_dim_head": 6}), ("gau", {"gau_query_key_dim": 10})):
        flags |= size if block in flags["layers"].split() else {}
    return laws.live(PrefixDecoder(**flags))


def tokens(n=N, seed=1):
    return torch.randn(BATCH, n, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(net, x, i, **given):
    (grad,) = torch.autograd.grad(net(x, **given)[0, i].square().sum(), x)
    return (grad[0].abs().amax(-1) > 0).tolist()


def test_tokens_of_the_prefix_see_each_other():
    for name, reach in (("attn", N), ("window", 3)):
        net, x = stack(name, depth=1), tokens().requires_grad_()
        for i in range(N):
            expected = [(j <= i or (j < 5)) and abs(i - j) < reach for j in range(N)]
            assert seen(net, x, i, prefix_attn_len=5) == expected, (name, i)
        rows = torch.tensor([7, 0, N])
        assert seen(net, x, 1, prefix_attn_len=rows) == [j < 7 and abs(1 - j) < reach for j in range(N)]
    gau, x = stack("gau", depth=1), tokens().requires_grad_()
    # relu^2 gives no weight to some scores.
    assert not any(s and j >= 5 for j, s in enumerate(seen(gau, x, 2, prefix_attn_len=5)))
    assert any(s for j, s in enumerate(seen(gau, x, 2, prefix_attn_len=5)) if j > 2)


@every_stack
def test_without_a_prefix_it_is_a_decoder(name, tmp_path):
    net, x = stack(name), tokens()
    plain = Decoder(**net.arguments).double().eval()
    plain.load_state_dict(net.state_dict())
    laws.close(net(x), plain(x), "no prefix")
    laws.close(net(x, prefix_attn_len=0), plain(x), "none")
    if not net.memory_tokens:
        laws.close(net(x, prefix_attn_len=1), plain(x), "one token")
    assert (net(x, prefix_attn_len=4) - plain(x)).abs().max() > 1e-4
    laws.all_laws(stack(name), tmp_path, cuts=(1, 5, 12))


@every_stack
def test_the_maps_are_the_causal_ones_with_a_block_in_front(name):
    net, x = stack(name, depth=1, attn_flash=False) if "attn" in STACKS[name]["layers"] else stack(name), tokens()
    y, maps = net.attention_maps(x, prefix_attn_len=4)
    laws.close(y, net(x, prefix_attn_len=4), "with maps")
    allowed = torch.ones(N, N).tril().bool() | (torch.arange(N) < 4)
    for weights in maps:
        assert (weights[..., ~allowed] == 0).all()
        assert (weights[..., :4, :4][..., torch.ones(4, 4).triu(1).bool()] > 0).any()


@pytest.mark.parametrize("grad", [True, False])
@every_stack
def test_stepping_gives_the_same(name, grad):
    net, x = stack(name), tokens()
    rows = torch.tensor([6, 0, 3])
    with torch.set_grad_enabled(grad):
        for prefix, size in ((6, 6), (6, 9), (rows, 6), (rows, 11)):
            whole = net(x, prefix_attn_len=prefix)
            y, state = net.step(x[:, :size], prefix_attn_len=prefix)
            outputs = [y]
            for i in range(size, N):
                y, state = net.step(x[:, i : i + 1], state)
                outputs.append(y)
            laws.close(torch.cat(outputs, 1), whole, f"prefix {prefix}, {size} tokens at once")


@every_stack
def test_a_padded_prefix_counts_real_tokens(name):
    net, x, lengths = stack(name), tokens(), [N, 6, 2]
    right = torch.arange(N) < torch.tensor(lengths)[:, None]
    holes = torch.rand(BATCH, N, generator=torch.Generator().manual_seed(7)) < 0.6
    holes[2] = False
    for mask in (right, right.flip(1), holes):
        poisoned = x.masked_fill(~mask[..., None], float("nan"))
        # A row that is shorter than the prefix is all prefix.
        for prefix in (4, torch.tensor([5, 3, 1])):
            y = net(poisoned, mask, prefix_attn_len=prefix)
            assert (y[~mask] == 0).all()
            for row in range(BATCH):
                own = prefix if isinstance(prefix, int) else int(prefix[row])
                if n := int(mask[row].sum()):
                    alone = net(x[row : row + 1, mask[row]], prefix_attn_len=min(own, n))[0]
                    laws.close(y[row, mask[row]], alone, f"row {row}")
            head, state = net.step(poisoned, None, mask, prefix_attn_len=prefix)
            laws.close(head, y, "stepped")
            after = tokens(4, seed=5)
            tail, _ = net.step(after, state)
            if n := int(mask[0].sum()):
                joined = torch.cat((x[:1, mask[0]], after[:1]), 1)
                laws.close(tail[0], net(joined, prefix_attn_len=int(torch.as_tensor(prefix).flatten()[0]))[0, n:], "on")


def test_attn_mask_is_heeded_too():
    net, x = stack(depth=1), tokens().requires_grad_()
    hidden = torch.ones(N, N).bool()
    hidden[:, 3] = False
    assert seen(net, x, 1, prefix_attn_len=5, attn_mask=hidden) == [j < 5 and j != 3 for j in range(N)]


def model(name="attn", **arguments):
    return laws.live(
        TransformerWrapper(**{"num_tokens": 31, "max_seq_len": 40, "attn_layers": stack(name), **arguments})
    )


@pytest.mark.parametrize("name", ["attn", "gau", "shift, memory tokens"])
def test_generating_goes_on_from_the_prefix(name):
    wrapper = AutoregressiveWrapper(model(name)).eval()
    prompts = torch.randint(31, (BATCH, 6), generator=torch.Generator().manual_seed(2))
    for prefix in (6, 4, torch.tensor([6, 0, 3])):
        made = wrapper.generate(prompts, 5, temperature=0.0, prefix_attn_len=prefix)
        ids = prompts
        for _ in range(5):
            ids = torch.cat((ids, wrapper.net(ids, prefix_attn_len=prefix)[:, -1:].argmax(-1)), 1)
        assert torch.equal(made, ids[:, 6:])
        assert torch.equal(wrapper.generate(prompts, 5, temperature=0.0, prefix_attn_len=prefix, cache_kv=False), made)
        beams = wrapper.beam_search(prompts, 3, beams=1, prefix_attn_len=prefix)
        assert torch.equal(beams, made[:, :3])
    loss = wrapper(prompts, prefix_attn_len=3)
    assert loss.isfinite()


def test_a_prefix_moves_out_of_the_window_with_its_tokens():
    wrapper = AutoregressiveWrapper(model("attn", max_seq_len=7)).eval()
    prompts = torch.randint(31, (BATCH, 6), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(6) >= torch.arange(BATCH)[:, None] % 3
    options = {"temperature": 0.0, "restrict_to_max_seq_len": True}
    for prefix in (0, 5, torch.tensor([6, 0, 3])):
        made = wrapper.generate(prompts, 8, prefix_attn_len=prefix, **options)
        ids = prompts
        for gone in (0, 0, 1, 2, 3, 4, 5, 6):
            left = torch.as_tensor(prefix - gone).clamp(min=0).expand(BATCH)
            ids = torch.cat((ids, wrapper.net(ids[:, -7:], prefix_attn_len=left)[:, -1:].argmax(-1)), 1)
        assert torch.equal(made, ids[:, 6:])
    made = wrapper.generate(prompts, 8, prefix_attn_len=3, mask=mask, **options)
    for row in range(BATCH):
        # Alone a shorter prompt fills the window later: its first tokens are shown longer.
        shown = wrapper.generate(prompts[row : row + 1, mask[row]], 2, prefix_attn_len=3, temperature=0.0)
        assert torch.equal(made[row, :2], shown[0])


def test_a_prefix_longer_than_a_rows_first_segment_is_refused():
    net = model()
    ids = torch.randint(31, (BATCH, 12), generator=torch.Generator().manual_seed(4))
    mask = torch.ones(BATCH, 12, dtype=torch.bool)
    mask[1, 1:4] = False
    whole, parts = AutoregressiveWrapper(net), SegmentWrapper(net, 6)
    laws.close(parts(ids, mask, prefix_attn_len=3), whole(ids, mask=mask, prefix_attn_len=3), "inside")
    with pytest.raises(
        ValueError, match=r"prefix_attn_len goes beyond the 3 real tokens .* in row 1: a prefix is read"
    ):
        parts(ids, mask, prefix_attn_len=4)
    mask[1, 4:] = False
    laws.close(parts(ids, mask, prefix_attn_len=4), whole(ids, mask=mask, prefix_attn_len=4), "nothing follows")


def test_embeddings_in_front_belong_to_the_prefix():
    net, ids = model(), torch.arange(BATCH * 5).reshape(BATCH, 5)
    front = tokens(4, seed=3)
    whole = net(ids, prepend_embeds=front, prefix_attn_len=4)
    head, state = net.step(ids[:, :1], prepend_embeds=front, prefix_attn_len=4)
    laws.close(torch.cat((head, net.step(ids[:, 1:], state)[0]), 1), whole, "captions")
    assert (net(ids, prepend_embeds=front) - whole).abs().max() > 1e-6


@pytest.mark.slow
def test_it_compiles():
    net = stack("gau", depth=1)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(net, fullgraph=True, backend=counter)
    with torch.no_grad():
        for n in (7, 12, 9, 5):
            x = tokens(n)
            laws.close(fast(x, prefix_attn_len=n // 2), net(x, prefix_attn_len=n // 2), f"compiled at {n}")
    assert counter.frame_count <= 3


REFUSED = [
    ("call", {"prefix_attn_len": -1}, ValueError, "prefix_attn_len must be from 0 to the 13 tokens of the .* not -1"),
    ("call", {"prefix_attn_len": N + 1}, ValueError, "must be from 0 to the 13 tokens of the call, not 14"),
    ("call", {"prefix_attn_len": torch.tensor([3, 15, 2])}, ValueError, "from 0 to the 13 tokens of the call, not 15"),
    ("call", {"prefix_attn_len": True}, TypeError, r"must be a number or \(3,\) integers, not bool"),
    ("call", {"prefix_attn_len": 2.0}, TypeError, r"must be a number or \(3,\) integers, not float"),
    ("call", {"prefix_attn_len": torch.ones(BATCH)}, TypeError, r"\(3,\) integers, not torch.float32"),
    ("call", {"prefix_attn_len": torch.tensor([3, 2])}, ValueError, r"must be a number or \(3,\), not \(2,\)"),
    (
        "call", {"prefix_attn_len": 2, "doc_ids": torch.zeros(BATCH, N).long()}, ValueError,
        "doc_ids and prefix_attn_len exclude each other",
    ),
    (
        "build", {"layers": "attn flash"}, ValueError,
        "MixedChunkAttention cannot honour the prefix of a PrefixDecoder; blocks that can: attn, ff, gau",
    ),
    ("build", {"layers": "attn", "rotary_xpos": True}, ValueError, "rotary_xpos=True in a PrefixDecoder: its decay"),
    ("build", {"causal": False}, ValueError, r"causal=False contradicts PrefixDecoder; use AttentionLayers\(causal"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "given", "error", "match"), REFUSED, ids=[row[3][:40] for row in REFUSED])
def test_what_is_refused(what, given, error, match):
    net, x = stack(), tokens()
    attempt = (lambda: PrefixDecoder(dim=DIM, depth=1, **given)) if what == "build" else (lambda: net(x, **given))
    with pytest.raises(error, match=match) as caught:
        attempt()
    assert type(caught.value) is error


def test_a_prefix_is_for_a_prefix_decoder_and_for_the_beginning():
    with pytest.raises(ValueError, match="prefix_attn_len is given, but Decoder has no prefix; use PrefixDecoder"):
        Decoder(dim=DIM, depth=1)(tokens().float(), prefix_attn_len=2)
    net, x = stack(), tokens()
    _, state = net.step(x, prefix_attn_len=2)
    with pytest.raises(ValueError, match="how a sequence begins: give prefix_attn_len in the first call only"):
        net.step(x, state, prefix_attn_len=2)
