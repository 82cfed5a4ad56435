"""The laws every stack keeps, as functions of a built stack; tests call them over the registry and over flags.

Inputs are float64 (tolerance 1e-9) unless a law is about another precision. `live` first moves every parameter a
little, so that parts which start at zero take part.
"""

import copy
import io

import torch
from torch import nn

import xflash
from xflash.base.state import State, tensors

CLOSE = 1e-9
BATCH = 3
# Where padding may be.
KINDS = ("right", "left", "holes")
# The dtypes that autocast is tried with.
HALVES = (torch.bfloat16, torch.float16)


def live(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64, in eval mode, with every parameter moved."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return module


def sample(stack, n: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(BATCH, n, stack.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def beside(stack, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a call must be given, alike in every row: a context that is partly padding, a condition; nothing mostly."""
    return context_for(stack, x) | condition_for(stack, x)


def condition_for(stack, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """A condition for the stacks that need one."""
    layers = getattr(stack, "attn_layers", stack)
    if "condition" not in layers.heeded:
        return {}
    one = torch.randn(layers.dim_condition, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    dtype = x.dtype if x.is_floating_point() else next(stack.parameters()).dtype
    return {"condition": one.to(dtype).expand(x.shape[0], -1)}


def context_for(stack, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """A context for the blocks that attend to one."""
    widths = {block.context_width() for block in getattr(stack, "attn_layers", stack).blocks()} - {None}
    if not widths:
        return {}
    shape = (1, 7, *widths)
    context = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    real = torch.tensor([[True, True, False, True, True, True, False]])
    dtype = x.dtype if x.is_floating_point() else next(stack.parameters()).dtype
    rows = x.shape[0]
    return {"context": context.to(dtype).expand(rows, -1, -1), "context_mask": real.expand(rows, -1)}


def embed_ids_for(model, ids) -> dict[str, dict[str, torch.Tensor]]:
    """Ids for the further embeddings of a model, made of its token ids so that they are cut as these are."""
    counts = getattr(getattr(model, "embedding", None), "embed_num_tokens", {})
    return {"embed_ids": {name: ids * 5 % count for name, count in counts.items()}} if counts else {}


def of_tokens(model, x) -> dict:
    """What a call must be given for each token, made of the tokens so that it is cut and moved as these are."""
    return embed_ids_for(model, x) | grid_for(model, x) | numbers_for(model, x)


def numbers_for(model, x) -> dict[str, torch.Tensor]:
    """Numbers of the tokens that stand for some, no numbers elsewhere."""
    if not hasattr(model, "numerical_token_id"):
        return {}
    numbers = torch.full(x.shape, 1.7, dtype=next(model.parameters()).dtype)
    return {"x_num": numbers.masked_fill(x != model.numerical_token_id, torch.nan)}


def grid_for(model, x) -> dict[str, torch.Tensor]:
    """A row and a column for each token; an image says itself where its patches are."""
    if "grid" not in getattr(getattr(model, "attn_layers", model), "heeded", ()) or x.dim() == 4:
        return {}
    seed = (x[..., 0].detach().nan_to_num() * 97).long() if x.is_floating_point() else x
    return {"grid": torch.stack((seed * 5 % 7, seed * 3 % 11), -1)}


def joined(out):
    """What a call gives, several heads (a tuple or a dict of tensors) as one tensor side by side."""
    out = tuple(out.values()) if isinstance(out, dict) else out
    if not isinstance(out, tuple) or isinstance(out, State):
        return out
    if all(isinstance(t, torch.Tensor) for t in out):
        most = max(t.dim() for t in out)
        return torch.cat([t if t.dim() == most else t[..., None] for t in out], -1)
    return tuple(map(joined, out))


def run(stack, x, mask=None, **given):
    """The whole stack, given a context and ids of further embeddings if it wants them."""
    return joined(stack(x, mask=mask, **given, **of_tokens(stack, x), **beside(stack, x)))


def go(stack, x, state=None, mask=None, **given):
    """A step of the stack, given ids of further embeddings, and the first one a context, if it wants them."""
    first = beside(stack, x) if state is None else {}
    return joined(stack.step(x, state=state, mask=mask, **given, **of_tokens(stack, x), **first))


def close(a: torch.Tensor, b: torch.Tensor, law: str) -> None:
    assert a.shape == b.shape, f"{law}: {tuple(a.shape)} against {tuple(b.shape)}"
    gap = (a - b).abs().max().item() if a.numel() else 0.0
    assert gap <= CLOSE, f"{law}: off by {gap:.2e}"


def shape(stack, n: int = 11) -> None:
    """1: y has x's shape, dtype and device."""
    x = sample(stack, n)
    y = run(stack, x)
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
    assert y.isfinite().all()
    one = run(stack, x[:1, :1])
    assert one.shape == (1, 1, stack.dim) and one.isfinite().all()


def causal(stack, n: int = 17) -> None:
    """2: nothing at or before i depends on anything after i."""
    x = sample(stack, n).requires_grad_()
    y = run(stack, x)
    for i in (0, 4, 5, n - 2):
        (grad,) = torch.autograd.grad(y[:, i].square().sum(), x, retain_graph=True)
        assert grad[:, i + 1 :].abs().max() == 0, f"causal: token {i} sees a later one"
        # A stream that doubles in each layer, as that of a peer, is flat behind a clamp: docs/laws.md.
        flags = getattr(stack, "arguments", {})
        flat = flags.get("hyper_mixing") == "sum" and flags.get("softclamp_output")
        assert flat or grad[:, i].abs().max() > 0, f"causal: token {i} does not see itself"


def chunk(stack, n: int = 17, cuts=None, grads=(False, True)) -> None:
    """3: f(x) equals f(x[:, :i]) followed by f(x[:, i:], state), at every cut, and one token at a time.

    Where `cuts` are given tokens come one at a time only at the start, over the first end of a group or window, and
    after a longer piece. Where they are not, every cut is tried in the first way of `grads`, a few in the second.
    """
    x = sample(stack, n)
    for grad in grads:
        every = range(1, n) if grad == grads[0] else (1, 4, 5, 10)
        with torch.set_grad_enabled(grad):
            whole = run(stack, x)
            for i in cuts or every:
                head, state = go(stack, x[:, :i])
                tail, _ = go(stack, x[:, i:], state)
                close(torch.cat((head, tail), 1), whole, f"chunk: cut at {i}, grad={grad}")
            close(steps(stack, x, [1] * 6 + [3, 1, 5, n - 15])[0], whole, f"chunk: in pieces, grad={grad}")
            if cuts is None:
                close(steps(stack, x, [1] * n)[0], whole, f"chunk: token by token, grad={grad}")


def steps(stack, x, sizes, mask=None, state=None):
    """x in pieces of the given sizes: the outputs joined, and the last state."""
    outputs, at = [], 0
    for size in sizes:
        if size <= 0:
            continue
        piece = None if mask is None else mask[:, at : at + size]
        y, state = go(stack, x[:, at : at + size], state, piece)
        outputs.append(y)
        at += size
    return torch.cat(outputs, 1), state


def masks(n: int) -> dict[str, torch.Tensor]:
    """Right-padded, left-padded and holed masks of BATCH rows, an empty row among them."""
    lengths = torch.tensor([n, n // 3, 0])
    right = torch.arange(n) < lengths[:, None]
    holes = torch.rand(BATCH, n, generator=torch.Generator().manual_seed(7)) < 0.6
    holes[:, 5] = True
    return {"right": right, "left": right.flip(1), "holes": holes}


def padding(stack, n: int = 13, kinds=KINDS) -> None:
    """4: a row's real tokens give what the row alone gives; zeros elsewhere; an empty row is fine."""
    x = sample(stack, n)
    for name in kinds:
        mask = masks(n)[name]
        poisoned = x.masked_fill(~mask[..., None], float("nan"))
        y = run(stack, poisoned, mask)
        assert (y[~mask] == 0).all(), f"padding: {name} does not give zeros"
        for row in range(BATCH):
            if mask[row].any():
                alone = run(stack, x[row : row + 1, mask[row]])[0]
                close(y[row, mask[row]], alone, f"padding: {name}, row {row}")


def ragged(stack, n: int = 23, grads=(False, True), kinds=KINDS) -> None:
    """3 and 4 together: rows of different lengths carried on in pieces, with and without grad."""
    x = sample(stack, n)
    for name in kinds:
        mask = masks(n)[name]
        for grad in grads:
            with torch.set_grad_enabled(grad):
                whole = run(stack, x, mask)
                pieces, _ = steps(stack, x, [4, 1, 1, 7, 3, n - 16], mask)
                close(pieces, whole, f"ragged: {name}, grad={grad}")


def state_is_a_value(stack, n: int = 13, padded=(False, True)) -> None:
    """5: permuted, forked, reset, copied, saved and detached states behave as values."""
    x = sample(stack, 2 * n)
    first, second = x[:, :n], x[:, n:]
    order = torch.tensor([2, 0, 1])
    for mask in (masks(n)["left"] | masks(n)["right"] if way else None for way in padded):
        _, state = go(stack, first, None, mask)
        with torch.no_grad():
            plain, after = go(stack, second[:, :5], state)
            for held in (state, after, state.reorder(order), state.detach(), copy.deepcopy(after), saved(after)):
                holds_its_own(stack, held)
            close(go(stack, second[order, :5], state.reorder(order))[0], plain[order], "state: permuted")
            go(stack, second[:, 5:11] * 2, state)
            close(go(stack, second[:, :5], state)[0], plain, "state: forked")
            onward, _ = go(stack, second[:, 5:], after)
            close(go(stack, second[:, 5:], copy.deepcopy(after))[0], onward, "state: deepcopy")
            close(go(stack, second[:, 5:], saved(after))[0], onward, "state: saved")
        rows = torch.tensor([True, False, True])
        fresh = run(stack, second)
        renewed, _ = go(stack, second, state, reset=rows)
        kept, _ = go(stack, second, state)
        close(renewed[rows], fresh[rows], "state: a reset row equals a fresh one")
        close(renewed[~rows], kept[~rows], "state: a neighbour of a reset row goes on")
        holds_its_own(stack, stack.reset(state, rows))
        # Behind memory tokens, which stay, some cannot give anything up, and say so.
        if stack.memory_tokens is None or not any(block.refuses_gap() for block in stack.blocks()):
            holds_its_own(stack, stack.shorten(state, 5))
    masked_tail(stack, x[:, :n], second)
    through_state(stack, first, second)


def own_loss(stack, x, expected) -> None:
    """The loss that layers have of a call, and its gradients, are those of a definition; checkpoints change nothing."""
    weights = [p for p in stack.parameters() if p.requires_grad]
    right = torch.autograd.grad(expected, weights, allow_unused=True, materialize_grads=True)
    for checkpointed in (False, True):
        for branch in stack.branches:
            branch.grad_checkpoint = checkpointed
        stack.train()
        y, loss = stack(x, return_auxiliary_loss=True)
        close(loss, expected, "loss")
        close(y, stack(x), "output")
        got = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        for a, b in zip(got, right, strict=True):
            close(a, b, "gradient")


def holds_its_own(module, state) -> None:
    """5: a state keeps nothing alive, and saves nothing, but its own tensors: no whole call, nothing of the module."""
    weights = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    for t in tensors(state):
        storage = t.untyped_storage()
        assert storage.nbytes() == t.nbytes, f"state: {t.nbytes} bytes keep {storage.nbytes()} alive"
        assert not t.numel() or storage.data_ptr() not in weights, "state: it holds a weight of the module"


def saved(thing):
    """A state or a module as it is when it has been written and read."""
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def masked_tail(stack, x, after) -> None:
    """What a masked tail contains never reaches the state; a call without real tokens changes nothing."""
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    mask[:, -4:] = False
    _, a = go(stack, x, None, mask)
    _, b = go(stack, x.masked_fill(~mask[..., None], 100.0), None, mask)
    expected = go(stack, after, go(stack, x[:, :-4])[1])[0]
    close(go(stack, after, a)[0], expected, "state: masked tail")
    close(go(stack, after, b)[0], expected, "state: masked tail, other contents")
    _, c = go(stack, x, a, torch.zeros_like(mask))
    close(go(stack, after, c)[0], expected, "state: a call without real tokens")


def through_state(stack, first, second) -> None:
    """Gradients flow through a state until it is detached."""
    x = first.clone().requires_grad_()
    _, state = go(stack, x)
    (grad,) = torch.autograd.grad(go(stack, second, state)[0].square().sum(), x, allow_unused=True)
    joined = first.clone().requires_grad_()
    whole = run(stack, torch.cat((joined, second), 1))[:, first.shape[1] :]
    (expected,) = torch.autograd.grad(whole.square().sum(), joined)
    close(torch.zeros_like(x) if grad is None else grad, expected, "state: gradient through it")
    assert not any(t.requires_grad for t in tensors(state.detach())), "state: detach leaves a graph"


def saved_as_built(stack, folder, n: int = 13) -> None:
    """8: configs round-trip, save and load give bit-equal outputs, deepcopy and pickle share nothing."""
    x = sample(stack, n)
    y = run(stack, x)
    stack.save(folder)
    # It is built of its config by the way.
    again = xflash.load(folder).eval()
    assert again.to_config() == stack.to_config()
    assert torch.equal(run(again, x), y), "saved: load differs"
    pickled = saved(stack)
    twin = copy.deepcopy(pickled)
    with torch.no_grad():
        for p in (*stack.parameters(), *pickled.parameters()):
            p.add_(1.0)
    assert torch.equal(run(twin, x), y), "saved: a copy shares with the original"
    with torch.no_grad():
        for p in stack.parameters():
            p.sub_(1.0)


def sane_start(stack, n: int = 31, train: bool = True, most: float = 3, halves=HALVES) -> None:
    """9: the stream's rms stays below `most`, every parameter has a gradient, autocast is finite."""
    stack = stack.float().train(train)
    x = torch.randn(2, n, stack.dim, generator=torch.Generator().manual_seed(3))
    seen = []
    hooks = [
        b.register_forward_hook(lambda _m, _i, out: seen.append(out[0].square().mean().sqrt().item()))
        for b in stack.branches
    ]
    y = run(stack, x)
    for hook in hooks:
        hook.remove()
    assert max(seen) < most, f"sane start: the stream's rms reaches {max(seen):.2f}"
    y.square().sum().backward()
    without = [name for name, p in stack.named_parameters() if p.grad is None]
    assert not without, f"sane start: no gradient reaches {without}"
    assert all(p.grad.isfinite().all() for p in stack.parameters()), "sane start: a gradient is not finite"
    stack.zero_grad()
    for dtype in halves:
        with torch.autocast("cpu", dtype=dtype):
            assert run(stack, x).isfinite().all(), f"sane start: not finite under autocast {dtype}"
    stack.double().eval()


def trained(stack, call) -> list[torch.Tensor]:
    """What `call` gives of a training stack, each time with the same chance, and the gradients of all parameters."""
    torch.manual_seed(4)
    outputs = call()
    params = list(stack.parameters())
    grads = torch.autograd.grad(sum(y.square().sum() for y in outputs), params, allow_unused=True)
    return [*outputs, *(torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True))]


def recomputed(stack, call=None, n: int = 13) -> None:
    """6: a training stack that computes its layers again gives what one that keeps them gives, dropout included."""
    x = sample(stack, n)
    call = call or (lambda: [run(stack, x, masks(n)["holes"])])
    live(stack).train()
    for branch in stack.branches:
        branch.grad_checkpoint = True
    again = trained(stack, call)
    for branch in stack.branches:
        branch.grad_checkpoint = False
    for ours, kept in zip(again, trained(stack, call), strict=True):
        close(ours, kept, "computed again")
    stack.eval()


def all_laws(stack, folder, cuts=None, ways=(False, True), lengths=True, values=True) -> None:
    """Every law that holds without compiling, on one stack.

    `ways`: whether pieces are run with grad, and whether the rows of the states that are handled differ in length. One
    way has padding to one side and in holes, both have all kinds. `lengths`, `values`: whether rows of unlike lengths
    are gone on with, and whether states are handled as values.
    """
    kinds = KINDS if len(ways) > 1 else ("holes", "left" if ways[0] else "right")
    live(stack)
    shape(stack)
    padding(stack, kinds=kinds)
    if stack.causal:
        causal(stack)
        chunk(stack, cuts=cuts, grads=ways)
        if lengths:
            ragged(stack, grads=ways, kinds=kinds)
        if values:
            state_is_a_value(stack, padded=ways)
    saved_as_built(stack, folder)
