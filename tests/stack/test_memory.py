"""Transformer-XL's memory, windows in bounded memory, attention sinks: against one masked call over the whole text."""

import itertools

import laws
import pytest
import torch
from quick import quick

from xflash import Decoder, Encoder, TransformerWrapper
from xflash.base.state import tensors

N, SEGMENT, MEMORY = 29, 5, 7


def stack(layers: str = "attn ff", **flags):
    torch.manual_seed(0)
    small = {"attn_dim_head": 6} if "attn" in layers else {}
    return laws.live(Decoder(**{"dim": 22, "depth": 2, "heads": 2, "layers": layers, **small, **flags}))


def model(layers: str = "attn ff", max_mem_len: int | None = MEMORY, **flags) -> TransformerWrapper:
    return laws.live(TransformerWrapper(num_tokens=31, attn_layers=stack(layers, **flags), max_mem_len=max_mem_len))


def in_segments(net, ids, mask=None, size: int = SEGMENT):
    """Logits of segment after segment, each with the memory that the ones before have left."""
    outputs, mems = [], None
    for start in range(0, ids.shape[1], size):
        piece = None if mask is None else mask[:, start : start + size]
        logits, mems = net(ids[:, start : start + size], piece, mems=mems, return_mems=True)
        outputs.append(logits)
    return torch.cat(outputs, 1), mems


def remembered(n: int = N, size: int = SEGMENT, memory: int = MEMORY, front: int = 0) -> torch.Tensor:
    """(n, n): token i sees those of its segment up to itself, `memory` before the segment, and the first `front`."""
    i, j = torch.arange(n)[:, None], torch.arange(n)
    return (j <= i) & ((j >= i // size * size - memory) | (j < front))


def tokens(rows: int = 3, n: int = N) -> torch.Tensor:
    return torch.randint(1, 31, (rows, n), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("pos", ["rotary", "rel_pos", "alibi", ("rotary", "rel_pos")])
@pytest.mark.parametrize("layers", ["attn ff", "attn gau", "flash attn"])
def test_segments_with_memory_are_one_masked_call(layers, pos):
    net = model(layers, pos=pos)
    ids = tokens()
    if "flash" in layers:
        # FLASH cannot be masked; where the memory covers the text it need not be.
        net.max_mem_len = N
        laws.close(in_segments(net, ids)[0], net(ids), "memory")
        return
    laws.close(in_segments(net, ids)[0], net(ids, attn_mask=remembered()), "memory")


def test_gau_divides_by_the_tokens_it_remembers():
    net = model("gau", gau_rel_pos_bias=None, pos="rotary")
    ids = tokens()
    block, x = net.attn_layers.blocks()[0], torch.randn(1, 12, 22, dtype=torch.float64)
    _, state = net.attn_layers.step(x)
    state = net.attn_layers.shorten(state, 7)
    seen = []
    block.divisor = lambda count, padded: (seen.append(count), count)[1]
    net.attn_layers.step(x[:, :3], state)
    assert seen[0].tolist() == [[8, 9, 10]]
    assert net(ids, mems=None, return_mems=True)[0].isfinite().all()


def test_memory_tokens_stay():
    net = model("attn ff", pos="rel_pos", num_memory_tokens=3)
    ids = tokens()
    mask = remembered()
    laws.close(in_segments(net, ids)[0], net(ids, attn_mask=mask), "memory tokens")
    wide = model("attn(window=4) ff", pos="rotary", num_memory_tokens=3, max_mem_len=9)
    laws.close(in_segments(wide, ids)[0], wide(ids), "memory tokens in a window")


@pytest.mark.parametrize("pos", ["rotary", "rel_pos"])
@pytest.mark.parametrize("memory", [0, 3])
def test_rows_of_different_lengths_have_their_own_memory(pos, memory):
    net = model("attn gau ff", pos=pos, num_memory_tokens=memory)
    ids = tokens()
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(9)) < 0.7
    mask[2, 4:] = False
    together, mems = in_segments(net, ids, mask)
    for row in range(3):
        state, outputs = None, []
        for start in range(0, N, SEGMENT):
            piece = ids[row : row + 1, start : start + SEGMENT][:, mask[row, start : start + SEGMENT]]
            if piece.shape[1]:
                logits, state = net(piece, mems=state, return_mems=True)
                outputs.append(logits)
        laws.close(together[row, mask[row]][None], torch.cat(outputs, 1), f"row {row}")
    fresh = net(ids)
    renewed, _ = net.step(ids, mems, reset=torch.tensor([True, False, False]))
    laws.close(renewed[0], fresh[0], "a reset row equals a fresh one")


WINDOWS = [(None, 0), *itertools.product((1, 2, 3, 4, 5, 7), (0, 1, 3))]


@pytest.mark.parametrize(("window", "sinks"), quick(WINDOWS, lambda _, number: number % 5 == 0))
@pytest.mark.parametrize("memory", [0, 2, 5])
def test_a_reset_row_has_its_memory_tokens_whatever_the_others_have_given_up(window, memory, sinks):
    flags = {"attn_window": window, "attn_sinks": sinks} if window else {}
    net = stack("attn gau", pos="rotary", num_memory_tokens=memory, depth=1, **flags)
    x = torch.randn(3, 17, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    rows, fresh = torch.tensor([False, True, False]), net(x[:, 12:])
    for cut in (1, 2, 7, 12):
        state = net.step(x[:, :cut])[1]
        for held in (state, net.step(x[:, cut : cut + 1], state)[1], net.shorten(state, 2)):
            kept = net.step(x[:, 12:], held)[0]
            outputs, after = [], net.reset(held, rows)
            for piece in x[:, 12:].split((2, 1, 2), 1):
                y, after = net.step(piece, after)
                outputs.append(y)
            laws.close(torch.cat(outputs, 1)[1], fresh[1], "the row that starts anew")
            laws.close(torch.cat(outputs, 1)[0], kept[0], "its neighbour")


def test_the_memory_is_detached_and_bounded():
    net = model("attn gau ff", pos="rotary")
    _, mems = in_segments(net, tokens())
    held = tensors(mems.stack)
    assert not any(t.requires_grad for t in held)
    assert {t.shape[2] for t in held if t.dim() == 4} == {MEMORY}
    again, _ = net.step(tokens()[:, :2], mems)
    assert again.shape == (3, 2, 31)


def test_without_a_length_the_memory_is_everything():
    net = model("attn ff", max_mem_len=None, pos="rotary")
    ids = tokens()
    laws.close(in_segments(net, ids)[0], net(ids), "memory")


@pytest.mark.parametrize("pos", [None, "rotary", "rel_pos", "alibi"])
@pytest.mark.parametrize("window", ["attn(window=4)", "attn(window=3,sinks=2)"])
def test_windows_take_bounded_memory(window, pos):
    net = stack(f"{window} ff", pos=pos)
    x = laws.sample(net, 61)
    whole = net(x)
    with torch.no_grad():
        state, room = None, []
        for i in range(61):
            y, state = net.step(x[:, i : i + 1], state)
            laws.close(y[:, 0], whole[:, i], f"token {i}")
            room.append(max(t.shape[2] for t in tensors(state) if t.dim() == 4))
    assert max(room) <= 16
    pieces, _ = laws.steps(net, x, [11, 7, 1, 1, 13, 1, 1, 1, 25])
    laws.close(pieces, whole, "pieces")
    mask = torch.rand(3, 61, generator=torch.Generator().manual_seed(3)) < 0.6
    ragged, _ = laws.steps(net, x, [9, *[1] * 20, 11, *[1] * 21], mask)
    laws.close(ragged, net(x, mask), "ragged")


def test_sinks_stay_visible():
    net = stack("attn(window=4,sinks=2) ff", depth=1)
    i, j = torch.arange(N)[:, None], torch.arange(N)
    slow = stack("attn ff", depth=1)
    slow.load_state_dict(net.state_dict())
    x = laws.sample(net, N)
    laws.close(net(x), slow(x, attn_mask=(i - j < 4) | (j < 2)), "sinks")
    ids = torch.tensor([0] * 9 + [1] * 20).expand(3, -1)
    first = (j < 2) | ((j >= 9) & (j < 11))
    laws.close(net(x, doc_ids=ids), slow(x, doc_ids=ids, attn_mask=(i - j < 4) | first), "sinks of documents")
    torch.manual_seed(0)
    flags = {"dim": 22, "depth": 1, "heads": 2, "attn_dim_head": 6}
    both = laws.live(Encoder(layers="attn(window=4,sinks=2) ff", **flags))
    plain = Encoder(layers="attn ff", **flags).double().eval()
    plain.load_state_dict(both.state_dict())
    laws.close(both(x), plain(x, attn_mask=((i - j).abs() < 4) | (j < 2)), "sinks both ways")


def test_an_older_state_goes_on_after_the_newer_gave_up_tokens():
    net = stack("attn(window=4) ff")
    x = laws.sample(net, 40)
    with torch.no_grad():
        _, old = net.step(x[:, :9])
        expected, _ = net.step(x[:, 30:33], old)
        state = old
        for i in range(9, 30):
            _, state = net.step(x[:, i : i + 1], state)
        laws.close(net.step(x[:, 30:33], old)[0], expected, "older state")


def test_what_cannot_be_remembered_is_refused():
    with pytest.raises(ValueError, match=r"max_mem_len=7, but the state of the layout .* bounded anyway .*attn, gau"):
        TransformerWrapper(num_tokens=31, attn_layers=stack("flash"), max_mem_len=7)
    with pytest.raises(ValueError, match="max_mem_len=7: a bidirectional stack carries nothing on"):
        TransformerWrapper(num_tokens=31, attn_layers=Encoder(dim=22, depth=1), max_mem_len=7)
    with pytest.raises(ValueError, match="max_mem_len must be at least 0, not -1"):
        TransformerWrapper(num_tokens=31, attn_layers=stack(), max_mem_len=-1)
    with pytest.raises(ValueError, match="attn_sinks=2 is set, but attn_window is None"):
        stack(attn_sinks=2)
    net, ids = model("attn ff", pos="rotary"), tokens()
    for name, value in {"doc_ids": torch.zeros_like(ids), "return_embeddings": True, "return_attn": True}.items():
        with pytest.raises(ValueError, match=f"{name} cannot be given together with mems and return_mems"):
            net(ids, return_mems=True, **{name: value})
    with pytest.raises(TypeError, match="state must be what step"):
        net(ids, mems=[torch.zeros(2)])
    learned = laws.live(TransformerWrapper(num_tokens=31, max_seq_len=11, attn_layers=stack(), max_mem_len=7))
    with pytest.raises(ValueError, match="11"):
        in_segments(learned, ids)
