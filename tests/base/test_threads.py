"""One state in several threads, and text from one model in several: each gets what it would get alone."""

import copy
import threading

import laws
import pytest
import torch
from cases import CASES, build
from quick import quick

from xflash import AutoregressiveWrapper, TransformerWrapper
from xflash.wrappers import compiled_step

V = 29
# How long a thread waits for the other before the test fails.
PATIENCE = 60
IDS = torch.randint(V, (3, 11), generator=torch.Generator().manual_seed(0))


def together(*work) -> list:
    """What each call gives, all of them in threads of their own; what one raises is raised."""
    found: dict[int, object] = {}

    def run(i):
        try:
            found[i] = work[i]()
        except BaseException as error:  # handed on to the test
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    for value in found.values():
        if isinstance(value, BaseException):
            raise value
    return [found[i] for i in range(len(work))]


def meeting(parties: int = 2):
    """A hook at which each thread waits, once, until all are there."""
    barrier, met = threading.Barrier(parties), threading.local()

    def wait(*_):
        if not getattr(met, "done", False):
            met.done = True
            barrier.wait(PATIENCE)

    return wait


def onward(stack, state, x) -> torch.Tensor:
    with torch.no_grad():
        return laws.steps(stack, x, [1] * 4 + [3] + [1] * 2, state=state)[0]


def stack_of(case: str):
    return laws.live(build(causal=True, **{"depth": 1, **CASES[case]}))


STACKS = [case for case in CASES if not case.startswith(("norm", "scale"))]


@pytest.mark.parametrize("case", quick(STACKS, lambda _, number: number % 4 == 0))
def test_two_threads_go_on_from_one_state(case):
    """Both are inside their first step, past all that is done with the state before it, when either begins to write."""
    stack = stack_of(case)
    x = laws.sample(stack, 29)
    with torch.no_grad():
        # Behind a single token buffers have room, so that the next step need not make any.
        _, state = laws.go(stack, x[:, :1], laws.go(stack, x[:, :7])[1])
    texts = x[:, 8:17], -x[:, 17:26]
    alone = [onward(stack, copy.deepcopy(state), text) for text in texts]
    handle = stack.branches[0].register_forward_pre_hook(meeting())
    both = together(*(lambda text=text: onward(stack, state, text) for text in texts))
    handle.remove()
    for ours, expected in zip(both, alone, strict=True):
        laws.close(ours, expected, "in two threads")
    laws.close(onward(stack, state, texts[0]), alone[0], "once more")


def test_many_threads_go_on_from_one_state():
    stack = laws.live(build("attn flash recurrent gau", causal=True, depth=1))
    x = laws.sample(stack, 29)
    with torch.no_grad():
        _, state = stack.step(x[:, :1], stack.step(x[:, :7])[1])
    texts = [x[:, 8:17] * (i + 1) for i in range(5)]
    alone = [onward(stack, copy.deepcopy(state), text) for text in texts]
    for ours, expected in zip(
        together(*(lambda text=text: onward(stack, state, text) for text in texts)), alone, strict=True
    ):
        laws.close(ours, expected, "in five threads")


def test_what_is_taken_of_a_state_while_another_thread_steps():
    """Copies, rows and memories of a state that is being written behind."""
    stack = laws.live(build("attn flash recurrent", causal=True, depth=1))
    x = laws.sample(stack, 29)
    with torch.no_grad():
        _, state = stack.step(x[:, :1], stack.step(x[:, :7])[1])
    expected = onward(stack, copy.deepcopy(state), x[:, 8:17])
    inside, done = threading.Event(), threading.Event()

    def pause(*_):
        inside.set()
        assert done.wait(PATIENCE)

    handle = stack.branches[-1].register_forward_pre_hook(pause)

    def take():
        assert inside.wait(PATIENCE)
        handle.remove()
        order = torch.tensor([2, 0, 1])
        taken = [copy.deepcopy(state), laws.saved(state), state.detach()]
        rows = state.reorder(order)
        done.set()
        return [onward(stack, held, x[:, 8:17]) for held in taken], onward(stack, rows, x[order, 8:17])[[1, 2, 0]]

    stepped, (taken, rows) = together(lambda: onward(stack, state, x[:, 8:17]), take)
    for ours in (stepped, *taken, rows):
        laws.close(ours, expected, "taken while another thread steps")


@pytest.mark.slow
def test_compiled_steps_in_two_threads(monkeypatch):
    net = laws.live(TransformerWrapper(num_tokens=V, attn_layers=build("flash", causal=True, depth=1, pos="rotary")))
    with torch.no_grad():
        _, state = net.step(IDS[:, :1], net.step(IDS)[1])
        texts = [IDS[:, :5], IDS[:, 5:10]]
        alone = [laws.steps(net, ids, [1] * 5, state=copy.deepcopy(state))[0] for ids in texts]
    net.compile_step(backend="eager")
    meet, lend = meeting(), compiled_step.lend

    def lent(*args):
        found = lend(*args)
        meet()
        return found

    def go(ids):
        with torch.no_grad():
            return laws.steps(net, ids, [1] * 5, state=state)[0]

    with torch.no_grad():
        net.step(IDS[:, :1], copy.deepcopy(state))  # compiled by one thread
    monkeypatch.setattr(compiled_step, "lend", lent)
    for ours, expected in zip(together(*(lambda ids=ids: go(ids) for ids in texts)), alone, strict=True):
        laws.close(ours, expected, "compiled, in two threads")


@pytest.mark.slow
def test_a_graph_of_ones_own_claims_nothing():
    """What it was told of the lease when it was made would hold whenever it runs, so it writes into nothing given."""
    stack = laws.live(build("gau", causal=True, depth=1))
    x = laws.sample(stack, 29)
    with torch.no_grad():
        _, state = stack.step(x[:, :1], stack.step(x[:, :7])[1])
        before = [t.clone() for t in laws.tensors(state)]
        step = torch.compile(stack.step, backend="eager", dynamic=True, fullgraph=True)
        y, after = step(x[:, 8:9], state)
        laws.close(y, stack.step(x[:, 8:9], copy.deepcopy(state))[0], "compiled")
        assert all(torch.equal(a, b) for a, b in zip(before, laws.tensors(state), strict=True))
        laws.close(step(x[:, 9:10], after)[0], onward(stack, state, x[:, 8:17])[:, 1:2], "compiled, once more")


def trained_model() -> AutoregressiveWrapper:
    """A model in training mode, one of its layers frozen in eval mode."""
    stack = build("attn ff", causal=True, depth=2, pos="rotary", attn_dropout=0.5, ff_dropout=0.5)
    model = laws.live(AutoregressiveWrapper(TransformerWrapper(num_tokens=V, attn_layers=stack))).train()
    stack.branches[1].eval()
    return model


@pytest.mark.parametrize("how", ["generate", "stream", "beam_search"])
def test_text_of_a_training_model_in_two_threads(how):
    """The one that begins first ends first: the other goes on without dropout, and modes come back behind it."""
    model = trained_model()
    modes = [m.training for m in model.modules()]
    expected = copy.deepcopy(model).eval().generate(IDS, 6, temperature=0.0)
    one_is_in, other_is_in, one_is_out = (threading.Event() for _ in range(3))
    steps = threading.local()

    def pause(*_):
        steps.count = getattr(steps, "count", 0) + 1
        if steps.count != 2:
            return
        first = threading.current_thread().name.endswith("one")
        (one_is_in if first else other_is_in).set()
        assert (other_is_in if first else one_is_out).wait(PATIENCE)

    def make():
        if how == "stream":
            return torch.stack(list(model.stream(IDS, 6, temperature=0.0)), -1)
        return model.generate(IDS, 6, temperature=0.0) if how == "generate" else model.beam_search(IDS, 6, 1)

    def one():
        threading.current_thread().name = "one"
        made = make()
        one_is_out.set()
        return made

    def other():
        assert one_is_in.wait(PATIENCE)
        return make()

    handle = model.net.attn_layers.branches[0].register_forward_pre_hook(pause)
    made = together(one, other)
    handle.remove()
    assert torch.equal(made[0], expected) and torch.equal(made[1], expected)
    assert [m.training for m in model.modules()] == modes


def test_modes_come_back_behind_a_failure():
    model = trained_model()
    modes = [m.training for m in model.modules()]
    running = model.stream(IDS, 6)
    next(running)
    assert [m.training for m in model.modules()] == modes  # in between it is as it was

    def fails(*_):
        raise RuntimeError("out of luck")

    handle = model.net.attn_layers.branches[0].register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="out of luck"):
        model.generate(IDS, 6)
    handle.remove()
    assert [m.training for m in model.modules()] == modes
    next(running)
    assert [m.training for m in model.modules()] == modes
