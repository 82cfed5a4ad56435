"""What a state holds: its own tensors and no more, however it came about; and who may write into its buffers."""

import copy
import io
import pickle
from typing import ClassVar

import laws
import pytest
import torch
from cases import CASES, build
from quick import quick

import xflash
from xflash import (
    AutoregressiveWrapper,
    BlockRecurrentTransformer,
    Decoder,
    FLASHTransformer,
    RecurrentMemoryWrapper,
    SegmentWrapper,
    TransformerWrapper,
    XLAutoregressiveWrapper,
    XTransformer,
)
from xflash.base.state import Lease, own, tensors
from xflash.layers.kernels.buffers import SPARE

V = 29
IDS = torch.randint(V, (3, 37), generator=torch.Generator().manual_seed(0))
RAGGED = torch.arange(37) < torch.tensor([[37], [5], [0]])


def stack_of(case: str, **flags):
    flags = {"depth": 1, **CASES[case], **flags}
    return laws.live(build(causal=True, **flags))


def model(**flags) -> TransformerWrapper:
    own = {name: flags.pop(name) for name in ("max_seq_len", "max_mem_len") if name in flags}
    stack = build(causal=True, **{"depth": 1, "pos": "rotary", **flags})
    return laws.live(TransformerWrapper(num_tokens=V, attn_layers=stack, **own))


def bytes_of(state) -> int:
    """What a state keeps alive."""
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(state)}
    return sum(held.values())


def written(state) -> int:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.tell()


@pytest.mark.parametrize("case", quick(CASES, lambda _, number: number % 3 == 0))
def test_what_is_saved_is_what_is_held(case):
    """A prompt of many tokens leaves its state, alive and on disk; so do single tokens behind it."""
    stack = stack_of(case)
    x = laws.sample(stack, 41)
    for mask in (None, torch.arange(41) < torch.tensor([[41], [7], [0]])):
        with torch.no_grad():
            _, state = laws.go(stack, x, None, mask)
            for n in (1, 7, 1):
                laws.holds_its_own(stack, state)
                # The archive takes some 300 bytes a tensor for names and padding.
                assert written(state) <= sum(t.nbytes for t in tensors(state)) + 400 * len(tensors(state)) + 4000
                _, state = laws.go(stack, x[:, :n], state, None if mask is None else mask[:, -n:])
        _, state = laws.go(stack, x, None, mask)
        laws.holds_its_own(stack, state)


def test_a_long_prompt_leaves_what_the_shift_reads():
    with torch.no_grad():
        _, state = Decoder(dim=64, layers="ff", depth=1, heads=2, shift_tokens=1).step(torch.randn(1, 512, 64))
    assert bytes_of(state) == 64 * 4


BOUNDED = ("block flash", "block block_attn", "block recurrent", "compress loss", "retrieve", "sliding", "sinks")


@pytest.mark.parametrize("case", [*BOUNDED, "window"])
@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
def test_bounded_states_do_not_grow_with_the_prompt(case, ragged):
    stack = laws.live(build("attn(window=5)", causal=True, pos="rotary")) if case == "window" else stack_of(case)
    x = laws.sample(stack, 211)
    # What blocks of 5 (the memory of 10) and windows of at most 5 leave; the open group may be full or empty.
    with torch.no_grad():
        most = bytes_of(laws.go(stack, x[:, :31])[1])
        for n in (41, 211):
            mask = torch.arange(n) < torch.tensor([[n], [n // 2], [n - 1]]) if ragged else None
            _, state = laws.go(stack, x[:, :n], None, mask)
            assert bytes_of(state) <= most + 24
            for i in (1, 1, 61, 1):
                _, state = laws.go(stack, x[:, :i], state)
                assert bytes_of(state) <= 4 * most + 500
            slots = [t.shape[2] for t in tensors(state) if t.dim() == 4 and case in ("window", "sinks")]
            assert all(count <= 4 * 5 + 2 * SPARE for count in slots)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
def test_a_window_gives_up_what_no_token_will_see(ragged, grad):
    """The same as with all keys there, in calls of any size."""
    stack = laws.live(build("attn(window=5,sinks=2) attn(window=3)", causal=True, pos=("rotary", "rel_pos"), depth=1))
    x = laws.sample(stack, 67)
    mask = torch.rand(3, 67, generator=torch.Generator().manual_seed(4)) < 0.6 if ragged else None
    with torch.set_grad_enabled(grad):
        pieces, state = laws.steps(stack, x, [31, 1, 1, 13, 1, 17, 3], mask)
        laws.close(pieces, laws.run(stack, x, mask), "window")
    assert all(t.shape[2] <= 4 * 5 + 2 * 2 + 2 * SPARE for t in tensors(state) if t.dim() == 4)


@pytest.mark.parametrize("layers", ["attn", "gau"])
def test_growing_buffers_have_at_most_as_much_room_again(layers):
    stack = laws.live(build(layers, causal=True))
    x, state, seen = laws.sample(stack, 37), None, 0
    with torch.no_grad():
        for n in (37, 1, 1, 5, 1, 37, 1):
            _, state = stack.step(x[:, :n], state)
            seen += n
            slots = {t.shape[2] for t in tensors(state) if t.dim() == 4}
            assert max(slots) <= 2 * seen + SPARE, f"{slots} slots for {seen} tokens"


class Held:
    """The state of each wrapper, ids and a mask given: as it is handed on from call to call."""

    cases: ClassVar[dict] = {
        "TransformerWrapper": (lambda: model(shift_tokens=1), lambda m, ids, mask: m.step(ids, None, mask)[1]),
        "memory of a segment": (
            lambda: model(layers="attn gau ff", max_mem_len=7),
            lambda m, ids, mask: m(ids, mask, return_mems=True)[1],
        ),
        "RecurrentMemoryWrapper": (
            lambda: laws.live(RecurrentMemoryWrapper(model(shift_tokens=1), 2, 11)),
            lambda m, ids, mask: m.step(ids, None, mask)[1],
        ),
        "SegmentWrapper": (
            lambda: laws.live(SegmentWrapper(model(layers="flash recurrent"), 7)),
            lambda m, ids, mask: m(ids, mask, return_state=True)[1],
        ),
        "XLAutoregressiveWrapper": (
            lambda: laws.live(XLAutoregressiveWrapper(model(max_seq_len=11, max_mem_len=13))),
            lambda m, ids, mask: m(ids, None, mask, return_mems=True)[1],
        ),
        "FLASHTransformer": (
            lambda: laws.live(
                FLASHTransformer(
                    num_tokens=V, dim=22, depth=1, group_size=5, query_key_dim=6, causal=True, shift_tokens=True
                )
            ),
            lambda m, ids, mask: m.step(ids, None, mask)[1],
        ),
        "BlockRecurrentTransformer": (
            lambda: laws.live(
                BlockRecurrentTransformer(
                    num_tokens=V, dim=22, depth=2, heads=2, dim_head=6, max_seq_len=8, block_width=4
                )
            ),
            # Shorter than a block, so that the state vectors are those that are learned.
            lambda m, ids, mask: m(ids[:, :3], None if mask is None else mask[:, :3])[1:],
        ),
        "XTransformer": (
            lambda: laws.live(
                XTransformer(
                    dim=22,
                    **{f"{side}_{name}": n for side in ("enc", "dec") for name, n in (("depth", 1), ("heads", 2))},
                    **{f"{side}_{name}": 43 for side in ("enc", "dec") for name in ("num_tokens", "max_seq_len")},
                )
            ),
            lambda m, ids, mask: decoded(m, ids, m.encode(ids, mask)),
        ),
    }


def decoded(net, ids, source):
    return net.decoder.net.step(ids, context=source.context, context_mask=source.mask)[1]


@pytest.mark.parametrize("name", Held.cases)
@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
def test_what_wrappers_hand_on_is_its_own(name, ragged):
    make, give = Held.cases[name]
    wrapper = make()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            state = give(wrapper, IDS, RAGGED if ragged else None)
        laws.holds_its_own(wrapper, state)
        assert len(tensors(state)) > 1


def test_state_vectors_that_were_handed_out_stay_as_they_were():
    """Not even those that a row starts with, when the optimizer moves the parameter they come from."""
    net = Held.cases["BlockRecurrentTransformer"][0]()
    states = net(IDS[:1, :3])[2]
    before = states[0].clone()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    assert torch.equal(states[0], before)


def test_a_context_mask_stays_as_it_was_given():
    stack = stack_of("block cross_attn")
    context, seen = torch.randn(3, 7, 22).double(), torch.arange(7) < torch.tensor([[7], [4], [2]])
    x = laws.sample(stack, 3)
    _, state = stack.step(x, context=context, context_mask=seen)
    expected, _ = stack.step(x, state)
    seen.fill_(True)
    assert torch.equal(stack.step(x, state)[0], expected)


class Last(xflash.Block):
    """Adds the token before: its state is the last one, as a view of the whole call."""

    wrong = False

    def forward(self, x, ctx, state=None):
        before = torch.zeros_like(x[:, :1]) if state is None else state[0]
        around = torch.cat((before, x), 1)
        last = around[:, -1:]
        return around[:, :-1], ([last] if self.wrong else (last, 3)) if ctx.keep_state else None


@pytest.fixture
def last(monkeypatch):
    monkeypatch.setattr(xflash.blocks, "_parts", {**xflash.blocks._parts, "last": Last})
    return Decoder(dim=10, depth=2, heads=2, layers="last")


def test_a_block_of_ones_own_may_give_a_view(last):
    x = torch.randn(1, 53, 10)
    with torch.no_grad():
        whole, state = last.step(x)
        laws.holds_its_own(last, state)
        _, state = last.step(x[:, :1], last.step(x[:, :52])[1])
        laws.holds_its_own(last, state)
    assert bytes_of(state) == 2 * 10 * 4
    assert torch.equal(whole, last(x))


def test_a_state_is_made_of_tuples(last):
    for block in last.blocks():
        block.wrong = True
    with pytest.raises(TypeError, match=r"is made of tensors and plain values in \(named\) tuples, not of list"):
        last.step(torch.randn(1, 5, 10))
    assert last(torch.randn(1, 5, 10)).shape == (1, 5, 10)


def test_what_is_its_own_is_not_copied():
    held = (torch.ones(3, 5), (None, 2, torch.ones(7)))
    assert own(held) is held
    part = torch.ones(3, 5)[:, 1:]
    first, (second, number) = own((part, (part.expand(3, 4), 1)))
    assert first.data_ptr() != part.data_ptr() and second.untyped_storage().nbytes() == second.nbytes and number == 1
    # A part of the state before is not looked at.
    assert own((part, 1), (part, 2))[0] is part
    assert own(torch.ones(1, 5).expand(3, 5)).untyped_storage().nbytes() == 3 * 5 * 4


MODES = {"N": torch.no_grad, "I": torch.inference_mode, "G": torch.enable_grad}


@pytest.mark.parametrize("modes", ["NIN", "NIG", "IIG", "GIN", "ING"])
def test_states_cross_modes(modes):
    """Made in one mode, stepped in inference mode, which leaves some of its tensors as they are, and gone on from."""
    stack = laws.live(build("block_attn(block_width=7) recurrent attn gau flash", causal=True, depth=1))
    x = laws.sample(stack, 23)
    whole = laws.run(stack, x)
    state, outputs = None, []
    for mode, sizes in zip(modes, ([6], [1, 1, 1, 1], [1, 1, 1, 10]), strict=True):
        for n in sizes:
            at = sum(y.shape[1] for y in outputs)
            with MODES[mode]():
                y, state = stack.step(x[:, at : at + n], state)
                outputs.append(y.clone())
    laws.close(torch.cat([y.detach() for y in outputs], 1), whole, modes)
    if modes[-1] == "G":
        outputs[-1].sum().backward()


def test_memory_of_inference_mode_takes_part_in_training():
    net = laws.live(RecurrentMemoryWrapper(model(), 2, 5))
    with torch.inference_mode():
        _, state = net.step(IDS[:, :13])
    logits, _ = net.step(IDS[:, 13:], state)
    logits.sum().backward()
    laws.close(logits.detach(), net(IDS)[:, 13:].detach(), "memory")


@pytest.mark.parametrize("layers", ["attn", "gau", "flash", "block_attn", "recurrent"])
def test_a_state_inside_a_transform(layers):
    """torch.func hides storages: gradients through a state are those of the whole text."""
    stack = laws.live(build(layers, causal=True, depth=1, shift_tokens=1))
    x = laws.sample(stack, 13)

    def pieces(x):
        y, state = stack.step(x[:, :7])
        return (torch.cat((y, stack.step(x[:, 7:], state)[0]), 1) ** 2).sum()

    laws.close(torch.func.grad(pieces)(x), torch.func.grad(lambda x: (stack(x) ** 2).sum())(x), "torch.func")


def fails(*_):
    raise RuntimeError("out of luck")


@pytest.mark.parametrize("case", ["block attn", "block flash", "block block_attn", "retrieve", "shift", "sinks"])
def test_a_step_that_fails_leaves_the_state_as_it_was(case):
    """The first layer has written by then; a later step copies rather than writing into the same buffers."""
    stack = stack_of(case, depth=2)
    x = laws.sample(stack, 19)
    with torch.no_grad():
        _, state = stack.step(x[:, :10], stack.step(x[:, :9])[1])
        expected = laws.steps(stack, x[:, 10:], [1, 1, 7], state=copy.deepcopy(state))[0]
        handle = stack.branches[-1].register_forward_pre_hook(fails)
        with pytest.raises(RuntimeError, match="out of luck"):
            stack.step(x[:, 10:11] * 3, state)
        handle.remove()
        buffers = {t.data_ptr() for t in tensors(state)}
        before = [t.clone() for t in tensors(state)]
        laws.close(laws.steps(stack, x[:, 10:], [1, 1, 7], state=state)[0], expected, "after a failure")
        assert all(torch.equal(a, b) for a, b in zip(before, tensors(state), strict=True))
        assert buffers == {t.data_ptr() for t in tensors(state)}


def test_leases_are_saved_as_they_are():
    lease = Lease(7)
    assert lease.claim(7) and not lease.claim(7)
    assert not pickle.loads(pickle.dumps(lease)).claim(7)
    lease.release(9)
    again = pickle.loads(pickle.dumps(lease))
    assert not again.claim(7) and again.claim(9) and not again.inference
    # One that was saved before there were others in it.
    old = Lease.__new__(Lease)
    old.__dict__["fill"] = 5
    assert old.claim(5) and not old.inference


def test_generated_text_does_not_keep_the_prompt():
    """The state that generation goes on from holds a window, however long the prompt was."""
    net = AutoregressiveWrapper(model(layers="attn(window=5) ff", shift_tokens=1))
    sizes = []
    step = net.net.step

    def noting(*args, **kwargs):
        out = step(*args, **kwargs)
        sizes.append(bytes_of(out[1]))
        return out

    net.net.step = noting
    net.generate(IDS, 3, temperature=0.0)
    net.generate(IDS.repeat(1, 9), 3, temperature=0.0)
    assert sizes[:3] == sizes[3:]
