"""Groups closed late, as on a GPU: here by saying that nobody may look at lengths."""

import copy

import laws
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from xflash import Decoder, TransformerWrapper
from xflash.base.looks import may_look
from xflash.base.state import Ctx
from xflash.layers.kernels import carried, late
from xflash.layers.kernels.carried import FlashState
from xflash.layers.kernels.mixed_chunk import Heads, Spec, mixed_chunk_slow

B, W, K, E, SPARE = 3, 5, 2, 7, 3


@pytest.fixture
def waiting(monkeypatch):
    """Rows that close late, with room for SPARE tokens beside a group."""
    monkeypatch.setattr(late, "closes_late", lambda length: not torch.compiler.is_compiling())
    monkeypatch.setattr(late, "spare", lambda w: SPARE)


def heads(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Heads(*(torch.randn(B, n, size, generator=generator, dtype=torch.float64) for size in (K, K, K, K, E)))


def ctx(length, new=None, in_place=False):
    return Ctx(int(length.max()), length, new, length[:, None], True, in_place)


def begun(t, length, settings):
    """The state behind each row's first tokens, its groups closed in time."""
    states = []
    for row, n in enumerate(length.tolist()):
        part = Heads(*(p[row : row + 1, :n] for p in t))
        where = Ctx(0, None, None, torch.arange(n)[None], True)
        states.append(carried.across(part, settings, where, None)[1][:4])
    return FlashState(*(torch.cat(parts) for parts in zip(*states, strict=True)))


def stepped(t, length, settings, steps, in_place=False):
    """The outputs of tokens after tokens a row, closed late, and the state behind them."""
    state, outputs, used = begun(t, length, settings), [], int(length.max())
    for i in range(steps):
        state = late.reserve(state, W, used + i, used + i + 1, False, length + i)
        part = Heads(*(p[torch.arange(B), length + i][:, None] for p in t))
        y, state = late.step(part, settings, ctx(length + i, in_place=in_place), state)
        outputs.append(y)
    return torch.cat(outputs, 1), state


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copies"])
@pytest.mark.parametrize(
    "settings",
    [
        {"bias": lambda gap: (gap.double() / W).sin()[None]},
        {"fn": "laplace", "divide": 3.0, "normaliser": "sum"},
        {"fn": "softmax"},
    ],
    ids=["relu2", "laplace", "softmax"],
)
def test_late_is_the_definition(settings, in_place, waiting):
    settings, t, length, steps = Spec(W, True, scale=0.4, **settings), heads(31), torch.tensor([1, 4, 10]), 17
    y, state = stepped(t, length, settings, steps, in_place)
    whole = mixed_chunk_slow(t, settings)
    for row, n in enumerate(length):
        torch.testing.assert_close(y[row], whole[row, n : n + steps], rtol=0, atol=1e-12)
    # What is in the buffers and what is in the sums is all there was.
    wanted = begun(t, length + steps, settings)
    for ours, theirs in zip(carried.in_time(state, W)[:4], wanted[:4], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_gradients_of_late_are_those_of_the_definition(waiting):
    settings, length, steps = Spec(W, True, scale=0.4), torch.tensor([1, 4, 10]), 7
    t = Heads(*(p.requires_grad_() for p in heads(17)))
    y, _ = stepped(t, length, settings, steps)
    whole = mixed_chunk_slow(t, settings)
    wanted = torch.stack([whole[row, n : n + steps] for row, n in enumerate(length)])
    found = [torch.autograd.grad(out.sin().sum(), t) for out in (y, wanted)]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_groups_are_closed_once_in_some_tokens_and_nobody_looks(waiting, monkeypatch):
    closed, looks = [], []
    monkeypatch.setattr(late, "tidied", lambda *given: (closed.append(1), carried.tidied(*given))[1])
    monkeypatch.setattr(carried, "may_look", lambda t: (looks.append(1), may_look(t))[1])
    stepped(heads(31), torch.tensor([1, 4, 10]), Spec(W, True), 4 * SPARE)
    assert len(closed) == 4 and not looks


LENGTHS = (7, 3, 12)


def build(**flags):
    torch.manual_seed(0)
    sizes = {"dim": 8, "depth": 2, "flash_group_size": W, "flash_query_key_dim": 4, "pos": "rotary"}
    return laws.live(Decoder(layers="flash", **sizes, **flags))


def following(x, lengths, n):
    """The next n tokens of each row."""
    return torch.stack([x[row, at : at + n] for row, at in enumerate(lengths.tolist())])


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("flags", [{}, {"num_memory_tokens": W + 2, "flash_attn_fn": "laplace"}], ids=["", "memory"])
def test_steps_of_any_kind_are_the_whole(flags, grad, waiting):
    stack, lengths = build(**flags), torch.tensor(LENGTHS)
    x = laws.sample(stack, 32)
    with torch.set_grad_enabled(grad):
        whole = stack(x)
        states = [stack.step(x[:, :12], mask=torch.arange(12) < lengths[:, None])[1]]
        at = [lengths]
        # Tokens one by one, several at once, and one of which the second row has none.
        for n, absent in [(1, False)] * 9 + [(3, False), (1, False), (1, True)] + [(1, False)] * 4:
            new = torch.full_like(lengths, n) * (torch.arange(B) != 1 if absent else 1)
            mask = (torch.arange(n) < new[:, None]) if absent else None
            # From the newest state, then from an older one, whose buffers it shares.
            for i in (-1, len(states) // 2):
                y, after = stack.step(following(x, at[i], n), states[i], mask=mask)
                for row, start in enumerate(at[i].tolist()):
                    kept = int(new[row])
                    torch.testing.assert_close(y[row, :kept], whole[row, start : start + kept], rtol=0, atol=1e-9)
                if i == -1:
                    states, at = [*states, after], [*at, at[-1] + new]
    held = [branch.block.held is not None for branch in states[-1].branches]
    assert all(held)


@pytest.mark.parametrize("memory", [0, W + 2])
def test_rows_begin_anew_and_change_places(memory, waiting):
    stack, lengths = build(num_memory_tokens=memory), torch.tensor(LENGTHS)
    x = laws.sample(stack, 24)
    with torch.no_grad():
        whole = stack(x)
        _, state = stack.step(x[:, :12], mask=torch.arange(12) < lengths[:, None])
        for i in range(SPARE + 1):
            _, state = stack.step(following(x, lengths + i, 1), state)
        lengths = torch.where(torch.tensor([False, True, False]), 0, lengths + SPARE + 1)
        order = torch.tensor([1, 2, 2])
        state = stack.reset(state, torch.tensor([False, True, False])).reorder(order)
        for i in range(7):
            y, state = stack.step(following(x[order], lengths[order] + i, 1), state)
            for row, start in enumerate((lengths[order] + i).tolist()):
                torch.testing.assert_close(y[row, 0], whole[order[row], start], rtol=0, atol=1e-9)


def test_few_graphs_step_all_tokens(waiting):
    model, lengths = TransformerWrapper(num_tokens=11, attn_layers=build()).double().eval(), torch.tensor(LENGTHS)
    ids, backend = torch.arange(B * 32).view(B, 32) ** 2 % 11, CompileCounterWithBackend("eager")
    fast = copy.deepcopy(model)
    fast.compile_step(backend=backend)
    with torch.no_grad():
        _, state = model.step(ids[:, :12], mask=torch.arange(12) < lengths[:, None])
        slow = state
        for i in range(3 * W):
            token = following(ids, lengths + i, 1)
            (wanted, slow), (y, state) = model.step(token, slow), fast.step(token, state)
            torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
    assert backend.frame_count <= 3


def test_sums_are_rounded_once_for_many_tokens():
    stack = build().bfloat16()
    _, state = stack.step(laws.sample(stack, 12).bfloat16())
    for i in range(W):
        _, after = stack.step(laws.sample(stack, 1, seed=i).bfloat16(), state)
        for old, new in zip(state.branches, after.branches, strict=True):
            assert torch.equal(new.block.rounded, new.block.closed.bfloat16())
            same = (state.bound % W) != 0
            assert (new.block.rounded is old.block.rounded) == same
        state = after


def test_who_closes_late():
    assert not late.closes_late(torch.zeros(3, dtype=torch.long))
    assert late.closes_late(torch.zeros(3, dtype=torch.long, device="meta"))
    assert late.spare(256) == 32 and late.spare(5) == 1
