"""What the search checks of masks: what hides a token is as if it were not there, however it is said."""

import torch
from search_checks import rebuilt
from search_measure import Call, by_length, forward, law, measure, real_tokens, same, same_document, stack_of

import xflash
from xflash.layers.positions.distance import T5Bias
from xflash.layers.scores.step import ScoreStep


def attends_only(stack) -> bool:
    """Whether an attn_mask can say what each token of a stack sees: nothing else mixes them."""
    mixing = [block for block in stack.blocks() if block.mixes_tokens]
    return bool(mixing) and all("attn_mask" in block.honours for block in stack.blocks())


def shifts(stack) -> bool:
    return any(branch.shift is not None for branch in stack.branches)


def placed(stack) -> bool:
    """Whether it matters how far from each other tokens stand, or what stands between them."""
    configs = [block.config for block in stack.blocks()]
    near = any(getattr(c, "window", None) is not None or getattr(c, "rel_pos_bias", None) for c in configs)
    return bool(len(stack.positions)) or near or shifts(stack) or looks_back(stack)


def looks_back(model) -> bool:
    """Whether steps on scores count what stands between a query and a key, hidden or not."""
    return any("causal" in module.needs for module in model.modules() if isinstance(module, ScoreStep))


@law(lambda model, call: model is stack_of(model) and attends_only(model) and "prefix_attn_len" not in call)
def hidden(model, x, call: Call, plan) -> None:
    """Keys that an attn_mask hides from everyone are as if they were not there."""
    n, beside = x.shape[1], {k: v for k, v in call.items() if k.startswith(("context", "condition"))}
    if model.memory_tokens is not None or by_length(model) or (shifts(model) and not model.causal):
        return
    keep = torch.tensor([bool(plan["kept"][i % len(plan["kept"])]) for i in range(n)])
    if placed(model):
        keep = torch.arange(n) < max(int(keep.sum()), 1)
    if not keep.any():
        return
    some = {"attn_mask": keep[None].expand(n, n)}
    run = lambda m, given, called: forward(m, given, called)[:, keep]  # noqa: E731
    mine = measure(model, x, {**beside, **some}, run)
    right = measure(model, x, beside, lambda m, given, called: forward(m, given[:, keep], called))
    same(mine, right, "hidden")


@law(lambda model, call: model is stack_of(model) and attends_only(model))
def said_by_mask(model, x, call: Call, plan) -> None:
    """Documents, a prefix and causality are what the same attn_mask says, where positions don't start anew."""
    if model.memory_tokens is not None or shifts(model) or by_length(model):
        return
    configs = [block.config for block in model.blocks()]
    if any(getattr(c, "sinks", 0) for c in configs) and ("doc_ids" in call or "prefix_attn_len" in call):
        return
    if "doc_ids" in call and len(model.positions) and any(getattr(c, "num_mem_kv", 0) for c in configs):
        return
    real, n = real_tokens(x, call), x.shape[1]
    seen = torch.ones(1, 1, n, n, dtype=torch.bool)
    rest = {k: v for k, v in call.items() if k not in ("doc_ids", "prefix_attn_len", "attn_mask")}
    other = model
    if model.causal and both_ways(model):
        other = rebuilt(model, xflash.Encoder)
        seen = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
        if "prefix_attn_len" in call:
            first = torch.as_tensor(call["prefix_attn_len"]).view(-1, 1, 1, 1)
            seen = seen | ((real.cumsum(1) - 1)[:, None, None] < first)
    elif "prefix_attn_len" in call:
        return
    if "doc_ids" in call:
        if len(model.positions) and "context_pos" in call:
            return
        seen = seen & same_document(real, call["doc_ids"])[:, None]
    if "attn_mask" in call:
        seen = seen & call["attn_mask"]
    same(measure(other, x, {**rest, "attn_mask": seen}), measure(model, x, call), "said by attn_mask")


def both_ways(model) -> bool:
    """Whether the same weights mean the same in a bidirectional stack: not T5's buckets, nor xPos, nor steps back."""
    spread = any(getattr(p.config, "xpos", False) for p in model.positions.values())
    t5 = any(isinstance(module, T5Bias) for module in model.modules())
    return not (spread or t5 or looks_back(model))
