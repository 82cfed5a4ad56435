"""What the search checks of states: pieces are the whole, and a state is a value."""

import copy
from typing import Any

import laws
import torch
from laws import joined, of_tokens
from search_measure import Call, close, forward, law, measure, pooled, real_outputs, same, stack_of

from xflash.base.state import tensors

BEFORE = ("condition", "context", "context_mask", "context_pos", "prefix_attn_len", "prepend_embeds", "prepend_mask")


def steppable(model, call: Call) -> bool:
    stack = stack_of(model)
    able = (
        stack.causal
        and not pooled(model)
        and getattr(model, "passes", None) is None
        and not any(block.refuses_step() for block in stack.blocks())
    )
    return able and "attn_mask" not in call and "doc_ids" not in call


def first_length(x, call: Call) -> int:
    """How many tokens the first piece has at least: a prefix is all there at once."""
    if "prefix_attn_len" not in call:
        return 1
    keep = real_outputs(x, call)
    p = keep.shape[1] - x.shape[1]
    wanted = torch.minimum(torch.as_tensor(call["prefix_attn_len"]).expand(len(x)), keep.sum(1))
    longest = int(torch.as_tensor(call["prefix_attn_len"]).max())
    return next(i for i in range(1, x.shape[1] + 1) if p + i >= longest and (keep[:, : p + i].sum(1) >= wanted).all())


def sizes_of(plan, n: int, first: int) -> list[int]:
    """The pieces that n tokens are cut into: the sizes of the plan, again and again."""
    sizes = [max(plan["cuts"][0], first)]
    while sum(sizes) < n:
        sizes.append(plan["cuts"][len(sizes) % len(plan["cuts"])])
    sizes[-1] -= sum(sizes) - n
    return sizes


def step(model, x, state, call: Call, at: slice, **more: Any):
    """One piece; the first is given what stands beside a sequence."""
    beside = {k: v for k, v in call.items() if k in BEFORE} if state is None else {}
    mask = call["mask"][:, at] if "mask" in call else None
    return joined(model.step(x[:, at], state, mask, **beside, **more, **of_tokens(model, x[:, at])))


def stepped(plan, first: int):
    """A run in pieces."""

    def run(model, x, call: Call) -> torch.Tensor:
        found, state, at = [], None, 0
        for size in sizes_of(plan, x.shape[1], first):
            y, state = step(model, x, state, call, slice(at, at + size))
            found.append(y)
            at += size
        return torch.cat(found, 1)

    return run


@law(steppable)
def chunks(model, x, call: Call, plan) -> None:
    """3: cut anywhere, outputs and gradients are those of one call."""
    same(measure(model, x, call, stepped(plan, first_length(x, call))), measure(model, x, call), "chunks")


@law(steppable)
def decoding(model, x, call: Call, plan) -> None:
    """3: the same without gradients, where buffers are written in place, and in inference mode."""
    with torch.no_grad():
        right = forward(model, x, call)
        for cuts in ((1,), plan["cuts"]):
            run = stepped({**plan, "cuts": cuts}, first_length(x, call))
            close(run(model, x, call), right, f"decoding in pieces of {cuts}")
    with torch.inference_mode():
        close(run(model, x, call).clone(), right, "decoding in inference mode")


def halves(model, x, call: Call, plan) -> tuple[Any, slice] | None:
    """The state behind the first pieces, and the tokens that are left."""
    cut = max(plan["cuts"][0], first_length(x, call))
    if cut >= x.shape[1]:
        return None
    return step(model, x, None, call, slice(0, cut))[1], slice(cut, x.shape[1])


@law(steppable)
def values(model, x, call: Call, plan) -> None:
    """5: a state is a value: forked, copied, saved, permuted, detached, and continued with nothing."""
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            if (found := halves(model, x, call, plan)) is None:
                return
            state, rest = found
            right, _ = step(model, x, state, call, rest)
            middle = (rest.start + rest.stop) // 2
            _, after = step(model, x, state, call, slice(rest.start, middle)) if middle > rest.start else (None, state)
            step(model, x.flip(1), state, call, rest)
            onward, _ = step(model, x, after, call, slice(middle, rest.stop))
            close(onward, right[:, middle - rest.start :], f"values: another continuation, grad={grad}")
            others = {"forked": state, "copied": copy.deepcopy(state), "cast": state.to(torch.float64)}
            others |= {"detached": state.detach()} if grad else {"saved": laws.saved(state)}
            none = {"mask": torch.zeros(x.shape[:2], dtype=torch.bool)}
            others["behind a call without tokens"] = step(model, x, state, none, rest)[1]
            for name, other in others.items():
                close(step(model, x, other, call, rest)[0], right, f"values: {name}, grad={grad}")
            order = torch.tensor(plan["order"]) % len(x)
            mine = {k: v[order] for k, v in call.items() if k == "mask"}
            close(step(model, x[order], state.reorder(order), mine, rest)[0], right[order], f"values: permuted, {grad}")
    assert not any(t.requires_grad for t in tensors(state.detach())), "values: detach leaves a graph"


@law(steppable)
def reset(model, x, call: Call, plan) -> None:
    """5: a reset row is as good as new, with its context; its neighbours go on."""
    rows = torch.tensor([bool(plan["reset"][i % len(plan["reset"])]) for i in range(len(x))])
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            if (found := halves(model, x, call, plan)) is None:
                return
            state, rest = found
            kept = step(model, x, state, call, rest)[0]
            beside = {k: v for k, v in call.items() if k.startswith(("context", "condition"))}
            beside |= {"mask": call["mask"][:, rest]} if "mask" in call else {}
            new = forward(model, x[:, rest], beside)
            head, after = step(model, x, state, call, slice(rest.start, rest.start + 1), reset=rows)
            parts = [head]
            for at in range(rest.start + 1, x.shape[1], 3):
                y, after = step(model, x, after, call, slice(at, min(at + 3, x.shape[1])))
                parts.append(y)
            mine = torch.cat(parts, 1)
            close(mine[rows], new[rows], f"reset: a row that starts anew, grad={grad}")
            close(mine[~rows], kept[~rows], f"reset: a neighbour, grad={grad}")


@law(lambda model, call: steppable(model, call) and getattr(model, "max_mem_len", None) is not None and not call)
def memories(model, x, call: Call, plan) -> None:
    """A memory that covers the text makes of its segments the text."""
    found, mems = [], None
    if model.max_mem_len < x.shape[1]:
        return
    for piece in x.split(plan["cuts"][0], 1):
        y, mems = model(piece, mems=mems, return_mems=True, **of_tokens(model, piece))
        found.append(y)
    close(torch.cat(found, 1), forward(model, x, call), "memories")
