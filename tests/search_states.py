"""What the search checks of states, losses and generation; see search_checks.py."""

import copy
from typing import Any

import laws
import torch
from laws import embed_ids_for
from search_checks import Call, by_length, close, forward, law, measure, pooled, real_outputs, real_tokens, same, stack_of

import xflash
from xflash.state import tensors

BEFORE = ("context", "context_mask", "context_pos", "prefix_attn_len", "prepend_embeds", "prepend_mask")


def steppable(model, call: Call) -> bool:
    stack = stack_of(model)
    able = stack.causal and not pooled(model) and not any(block.refuses_step() for block in stack.blocks())
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
    return model.step(x[:, at], state, mask, **beside, **more, **embed_ids_for(model, x[:, at]))


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
            step(model, x.flip(1), state, call, rest)
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
            beside = {k: v for k, v in call.items() if k.startswith("context")}
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


def tells_tokens(model) -> bool:
    """Whether a model of token ids makes a logit for each of them."""
    if model is stack_of(model) or pooled(model) or model.return_only_embed:
        return False
    return model.tie_embedding or model.to_logits.out_features == model.num_tokens


def trains(model, call: Call) -> bool:
    """Whether a causal model is trained by the call."""
    return tells_tokens(model) and model.causal and "prefix_attn_len" not in call and not by_length(model)


def loss_of(trainer, x, call: Call, **more: Any) -> torch.Tensor:
    return trainer(x, **call, **more, **embed_ids_for(trainer.net, x))


def losses(trainer, parts, call: Call):
    """The mean over all targets of the losses of parts, each called alone."""

    def run(net, x, given: Call) -> torch.Tensor:
        total, count = torch.zeros((), dtype=torch.float64), 0
        for row, keep in parts:
            alone = {k: v[row : row + 1] for k, v in given.items() if k in ("context", "context_mask")}
            alone |= {k: v for k, v in given.items() if k == "context_pos"}
            if keep.sum() > 1:
                total = total + loss_of(trainer, x[row : row + 1, keep], alone) * (keep.sum() - 1)
                count += int(keep.sum()) - 1
        return total / max(count, 1)

    return run


@law(lambda model, call: trains(model, call) and "attn_mask" not in call and "prepend_embeds" not in call)
def next_token_losses(model, x, call: Call, plan) -> None:
    """The loss is the mean over what each document predicts alone; computed in chunks it is the same."""
    if x.shape[1] < 2:
        return
    trainer = xflash.AutoregressiveWrapper(model)
    whole = measure(model, x, call, lambda net, ids, given: loss_of(trainer, ids, given))
    right = measure(model, x, call, losses(trainer, documents_of(x, call), call))
    same(whole, right, "loss")
    chunked = xflash.AutoregressiveWrapper(model, loss_chunk=plan["cuts"][0])
    same(measure(model, x, call, lambda net, ids, given: loss_of(chunked, ids, given)), whole, "loss in chunks")


def documents_of(x, call: Call) -> list[tuple[int, torch.Tensor]]:
    """The real tokens of each document of each row."""
    from search_checks import same_document

    real = real_tokens(x, call)
    if "doc_ids" not in call:
        return [(row, real[row]) for row in range(len(x))]
    among = same_document(real, call["doc_ids"])
    firsts = among.long().argmax(2)
    return [(row, real[row] & (firsts[row] == i)) for row in range(len(x)) for i in set(firsts[row][real[row]].tolist())]


@law(lambda model, call: trains(model, call) and steppable(model, call) and not set(call) - {"mask"} and model.max_mem_len is None)
def segments(model, x, call: Call, plan) -> None:
    """A text read segment by segment has the loss of the text read whole."""
    if x.shape[1] < 2 or model.embedding.embed_num_tokens:
        return
    whole, reader = xflash.AutoregressiveWrapper(model), xflash.SegmentWrapper(model, segment_len=plan["cuts"][0])
    mine = measure(model, x, call, lambda net, ids, given: reader(ids, **given))
    same(mine, measure(model, x, call, lambda net, ids, given: whole(ids, **given)), "segments")


@law(lambda model, call: trains(model, call) and steppable(model, call) and not set(call) - {"mask", "context", "context_mask", "context_pos"})
def generation(model, x, call: Call, plan) -> None:
    """The likeliest tokens behind prompts of any lengths: with a state, without one, and each row alone."""
    if model.embedding.embed_num_tokens or not real_tokens(x, call).any(1).all():
        return
    sampler = xflash.AutoregressiveWrapper(model)
    options = {"temperature": 0.0, "filter_logits_fn": "none"}
    right = sampler.generate(x, 4, **call, **options)
    assert torch.equal(sampler.generate(x, 4, **call, **options, cache_kv=False), right), "generation: without a state"
    for row in range(len(x)):
        alone = {k: v[row : row + 1] if k != "context_pos" else v for k, v in call.items() if k != "mask"}
        mine = sampler.generate(x[row : row + 1, real_tokens(x, call)[row]], 4, **alone, **options)
        assert torch.equal(mine[0], right[row]), f"generation: row {row} alone"


@law(lambda model, call: steppable(model, call) and getattr(model, "max_mem_len", None) is not None and not call)
def memories(model, x, call: Call, plan) -> None:
    """A memory that covers the text makes of its segments the text."""
    found, mems = [], None
    if model.max_mem_len < x.shape[1]:
        return
    for piece in x.split(plan["cuts"][0], 1):
        y, mems = model(piece, mems=mems, return_mems=True, **embed_ids_for(model, piece))
        found.append(y)
    close(torch.cat(found, 1), forward(model, x, call), "memories")


@law(lambda model, call: tells_tokens(model) and not model.causal)
def masked_losses(model, x, call: Call, plan) -> None:
    """The loss of hidden tokens: in chunks and whole, whatever stands at masked tokens."""
    real, found = real_tokens(x, call), []
    other = {**call, "doc_ids": torch.where(real, call["doc_ids"], 5)} if "doc_ids" in call else call
    for given, ids, chunk in ((call, x, None), (other, torch.where(real, x, 0), None), (call, x, plan["cuts"][0])):
        trainer = xflash.MaskedLMWrapper(model, mask_token_id=1, loss_chunk=chunk)

        def run(net, ids, given, trainer=trainer):
            return loss_of(trainer, ids, given, generator=torch.Generator().manual_seed(5))

        found.append(measure(model, ids, given, run))
    assert all(value.isfinite().all() for value in found[0].values()), "hidden tokens' loss: not finite"
    same(found[1], found[0], "hidden tokens' loss: what stands at masked tokens shows")
    same(found[2], found[0], "hidden tokens' loss in chunks")
