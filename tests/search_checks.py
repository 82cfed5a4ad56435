"""What the search checks: laws as functions of a model in float64, its input, the rest of a call, and a plan.

Outputs are compared with gradients of everything that has one: inputs, contexts, parameters. `LAWS` has each law with
what it holds for; a law that does not hold for a call is not tried on it.
"""

from collections.abc import Callable
from typing import Any

import laws
import torch
from laws import embed_ids_for
from search_case import noise, sentence

import xflash

Call = dict[str, Any]
LAWS: dict[str, tuple[Callable, Callable]] = {}
# Gradients are sums of many terms.
CLOSE = 1e-9
LEAVES = ("context", "prepend_embeds")


def law(holds: Callable[[Any, Call], bool] = lambda model, call: True, kinds: tuple[str, ...] = ("stack", "model")):
    """Enters a law, with the kinds of models and the calls it holds for."""

    def enter(fn):
        LAWS[fn.__name__] = (lambda case, model, call: case.kind in kinds and holds(model, call), fn)
        return fn

    return enter


EVERY = ("stack", "model", "seq2seq", "vit")


def stack_of(model) -> xflash.AttentionLayers:
    return getattr(model, "attn_layers", model)


def pooled(model) -> bool:
    return getattr(model, "pooled", None) is not None


def by_length(model) -> bool:
    """Whether something is divided by the length of the tensor, padding included, as a peer does."""
    parts = (m for m in model.modules() if isinstance(m, xflash.Block))
    return any("padded_length" in vars(part.config).values() for part in parts)


def forward(model, x: torch.Tensor, call: Call) -> torch.Tensor:
    """What a model makes of its input; an encoder-decoder's is the loss of a target."""
    if "src" in call:
        return model(call["src"], x, call.get("context_mask"), tgt_mask=call.get("mask"))
    return model(x, **call, **embed_ids_for(model, x))


def close(ours: torch.Tensor, right: torch.Tensor, what: str) -> None:
    assert ours.shape == right.shape, f"{what}: {tuple(ours.shape)} against {tuple(right.shape)}"
    if not ours.numel():
        return
    gap, scale = (ours - right).abs().max().item(), right.abs().max().item()
    assert gap <= CLOSE * (1 + scale), f"{what}: off by {gap:.2e}" if gap == gap else f"{what}: not finite"


def same(ours: dict[str, torch.Tensor], right: dict[str, torch.Tensor], what: str) -> None:
    for name, value in right.items():
        close(ours[name], value, f"{what}, {name}")


def measure(model, x, call: Call, run: Callable = forward, weight: torch.Tensor | None = None) -> dict:
    """The output y, and the gradients of the sum of y * weight (fixed numbers unless given)."""
    leaves: dict[str, torch.Tensor] = {} if not x.is_floating_point() else {"x": x.detach().requires_grad_()}
    call = dict(call)
    for name in LEAVES:
        if name in call:
            leaves[name] = call[name] = call[name].detach().requires_grad_()
    y = run(model, leaves.get("x", x), call)
    weight = noise(11, *y.shape) if weight is None else weight
    leaves |= dict(model.named_parameters())
    grads: tuple = (None,) * len(leaves)
    if y.requires_grad:
        grads = torch.autograd.grad((y * weight).sum(), list(leaves.values()), allow_unused=True)
    found = {f"gradient of {n}": torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(leaves, grads)}
    return {"y": y.detach(), **found}


def real_tokens(x: torch.Tensor, call: Call) -> torch.Tensor:
    """(b, n) which tokens are real."""
    return call.get("mask", torch.ones(x.shape[:2], dtype=torch.bool))


def real_outputs(x: torch.Tensor, call: Call) -> torch.Tensor:
    """(b, p + n) which outputs are of real tokens or embeddings."""
    keep = real_tokens(x, call)
    if "prepend_embeds" not in call:
        return keep
    front = call.get("prepend_mask", torch.ones(call["prepend_embeds"].shape[:2], dtype=torch.bool))
    return torch.cat((front, keep), 1)


def chosen(x: torch.Tensor, call: Call, row: int, keep: torch.Tensor) -> tuple[torch.Tensor, Call]:
    """One row with some of its outputs' tokens only, and the call that it is alone."""
    p = call["prepend_embeds"].shape[1] if "prepend_embeds" in call else 0
    alone: Call = {}
    for name, value in call.items():
        if name == "doc_ids":
            alone[name] = value[row : row + 1, keep[p:]]
        elif name == "attn_mask":
            mask = value if value.dim() == 2 else value[row if len(value) > 1 else 0]
            mask = mask[..., keep, :][..., keep]
            alone[name] = mask if mask.dim() == 2 else mask[None]
        elif name == "prepend_embeds":
            if keep[:p].any():
                alone[name] = value[row : row + 1, keep[:p]]
        elif name == "prefix_attn_len":
            alone[name] = min(int(value if isinstance(value, int) else value[row]), int(keep.sum()))
        elif name == "context_pos":
            alone[name] = value if value.dim() == 1 else value[row : row + 1]
        elif name.startswith("context"):
            alone[name] = value[row : row + 1]
    return x[row : row + 1, keep[p:]], alone


def outputs(model, y: torch.Tensor, row: int, keep: torch.Tensor) -> torch.Tensor:
    """What of y (or its weight) belongs to the kept tokens of a row."""
    return y[row : row + 1] if pooled(model) else y[row : row + 1, keep]


def together(model, x, call: Call, parts: list[tuple[int, torch.Tensor]], drop: tuple[str, ...], what: str) -> None:
    """Parts of rows give alone what they give in the call; so do the gradients of the parameters, summed."""
    with torch.no_grad():
        shape = forward(model, x, call).shape
    weight, counted = noise(11, *shape), torch.zeros(shape[: 1 if pooled(model) else 2], dtype=torch.bool)
    for row, keep in parts:
        counted[row] = True if pooled(model) else counted[row] | keep
    weight = weight * counted.view(*counted.shape, *[1] * (len(shape) - counted.dim()))
    whole, total = measure(model, x, call, weight=weight), {}
    for row, keep in parts:
        piece, alone = chosen(x, {k: v for k, v in call.items() if k not in drop}, row, keep)
        found = measure(model, piece, alone, weight=outputs(model, weight, row, keep))
        close(outputs(model, whole["y"], row, keep), found["y"], f"{what}: row {row}")
        if "gradient of x" in whole:
            close(whole["gradient of x"][row : row + 1, keep], found["gradient of x"], f"{what}: row {row}, gradient")
        for name, _ in model.named_parameters():
            total[name] = total.get(name, 0) + found[f"gradient of {name}"]
    same({f"gradient of {n}": v for n, v in total.items()}, {f"gradient of {n}": whole[f"gradient of {n}"] for n in total}, what)


@law()
def finite(model, x, call: Call, plan) -> None:
    """1 and 4: outputs and gradients are finite, zeros stand at masked tokens, and what those hold reaches nothing."""
    given = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in call.items()}
    before = x.clone()
    found, real = measure(model, x, call), real_tokens(x, call)
    for name, value in found.items():
        assert value.isfinite().all(), f"finite: {name} is not"
    assert torch.equal(x, before), "finite: the call wrote into x"
    for name, value in given.items():
        assert not isinstance(value, torch.Tensor) or torch.equal(call[name], value), f"the call wrote into {name}"
    poisoned = dict(call)
    for name, mask in (("context", "context_mask"), ("prepend_embeds", "prepend_mask")):
        if mask in call:
            poisoned[name] = call[name].masked_fill(~call[mask][..., None], float("nan"))
    if "doc_ids" in call:
        poisoned["doc_ids"] = torch.where(real, call["doc_ids"], 5)
    if "attn_mask" in call and "prepend_embeds" not in call:
        square = call["attn_mask"] if call["attn_mask"].dim() == 4 else call["attn_mask"][None, None]
        pairs = (real[:, :, None] & real[:, None])[:, None]
        poisoned["attn_mask"] = torch.where(pairs, square.expand(len(x), -1, -1, -1), ~square)
    if x.is_floating_point():
        assert (found["y"][~real] == 0).all(), "padding: not zero at masked tokens"
        x = x.masked_fill(~real[..., None], float("nan"))
    else:
        x = torch.where(real, x, 0)
    again, keep = measure(model, x, poisoned), real_outputs(x, call)
    for row in range(len(x)):
        if keep[row].any():
            mine, right = (outputs(model, f["y"], row, keep[row]) for f in (again, found))
            close(mine, right, "padding: what stands at masked tokens shows")
    if x.is_floating_point():
        same(again, found, "padding: what stands at masked tokens shows")


@law(lambda model, call: not by_length(model))
def rows_alone(model, x, call: Call, plan) -> None:
    """4: each row gives alone, without its padding, what it gives among others."""
    keep, real = real_outputs(x, call), real_tokens(x, call)
    # Rows with embeddings in front only cannot be called alone.
    parts = [(row, keep[row]) for row in range(len(x)) if real[row].any()]
    together(model, x, call, parts, ("mask", "prepend_mask"), "alone")


@law(lambda model, call: "doc_ids" in call and not pooled(model))
def documents(model, x, call: Call, plan) -> None:
    """Packed documents give what each gives alone."""
    real, parts = real_tokens(x, call), []
    for row in range(len(x)):
        at = real[row].nonzero()[:, 0]
        ids = call["doc_ids"][row, at]
        runs = (ids[1:] != ids[:-1]).cumsum(0).tolist() if len(at) else []
        for run in sorted({0, *runs}) if len(at) else []:
            keep = torch.zeros_like(real[row])
            keep[at[[i for i, r in enumerate([0, *runs]) if r == run]]] = True
            parts.append((row, keep))
    together(model, x, call, parts, ("mask", "doc_ids"), "documents")


@law(lambda model, call: call.get("context_mask") is not None)
def context_alone(model, x, call: Call, plan) -> None:
    """A masked token of the context does not exist."""
    for row in range(len(x)):
        there, keep = call["context_mask"][row], real_outputs(x, call)[row]
        if not there.any() or not keep.any() or "prepend_embeds" in call:
            continue
        piece, alone = chosen(x, {k: v for k, v in call.items() if k != "mask"}, row, keep)
        right = {**alone, "context": alone["context"][:, there]}
        del right["context_mask"]
        if "context_pos" in right:
            right["context_pos"] = right["context_pos"][..., there]
        mine, right = measure(model, piece, alone), measure(model, piece, right)
        for name in right:
            if name != "gradient of context":
                close(mine[name], right[name], f"context alone: row {row}, {name}")
        close(mine["gradient of context"][:, there], right["gradient of context"], "context alone: its gradient")


def mapped(model, x, call: Call) -> tuple[torch.Tensor, list[torch.Tensor]]:
    if model is stack_of(model):
        return model.attention_maps(x, **call)
    return model(x, **call, return_attn=True, **embed_ids_for(model, x))


def refused(fn: Callable) -> bool:
    """Whether a call is refused; AssertionError when not by a sentence."""
    try:
        fn()
    except Exception as error:
        found = sentence(error)
        assert not found, found
        return True
    return False


@law()
def maps(model, x, call: Call, plan) -> None:
    """6: with maps asked for all is as without; no weight is where nothing can be seen."""
    if refused(lambda: mapped(model, x, call)):
        return
    same(measure(model, x, call, lambda *given: mapped(*given)[0]), measure(model, x, call), "maps")
    y, found = mapped(model, x, call)
    if model is not stack_of(model) and (pooled(model) or "prepend_embeds" in call):
        return
    real, n = real_tokens(x, call), x.shape[1]
    seen = (real[:, :, None] & real[:, None])[:, None]
    if "attn_mask" in call:
        seen = seen & call["attn_mask"]
    if "doc_ids" in call:
        seen = seen & same_document(real, call["doc_ids"])[:, None]
    if stack_of(model).causal and "prefix_attn_len" not in call:
        seen = seen & torch.ones(n, n, dtype=torch.bool).tril()
    for weights in found:
        assert weights.isfinite().all(), "maps: not finite"
        if weights.shape[-1] == n and weights.shape[-1] != (call["context"].shape[1] if "context" in call else -1):
            assert (weights.masked_fill(seen, 0) == 0).all(), "maps: a weight where nothing can be seen"


def same_document(real: torch.Tensor, doc_ids: torch.Tensor) -> torch.Tensor:
    """(b, n, n) whether two tokens are of one run of equal numbers among the real ones."""
    found = torch.zeros(*real.shape, real.shape[1], dtype=torch.bool)
    for row in range(len(real)):
        at = real[row].nonzero()[:, 0]
        ids = doc_ids[row, at]
        number = torch.cat((ids.new_zeros(1), (ids[1:] != ids[:-1]).long().cumsum(0))) if len(at) else ids
        found[row, at[:, None], at[None]] = number[:, None] == number[None]
    return found


def rebuilt(model, cls: type | None = None, **changed: Any):
    """A model with the same weights and other flags of its stack."""
    stack = stack_of(model)
    arguments = {k: v for k, v in stack.arguments.items() if k not in (cls or type(stack)).fixed}
    other = (cls or type(stack))(**{**arguments, **changed})
    other = loaded(other, stack)
    return other if stack is model else wrapper_of(model, other)


def wrapper_of(model, stack):
    """The model around another stack."""
    arguments = {k: v for k, v in model.arguments.items() if k not in ("attn_layers", "num_memory_tokens")}
    return loaded(type(model)(attn_layers=stack, **arguments), model)


def loaded(other, model):
    """`other` with the weights of `model`."""
    other = other.double().eval()
    other.load_state_dict(model.state_dict())
    return other


def kernel_flags(stack) -> list[str]:
    """The flags that choose a kernel, not what it computes."""
    return [name for name, _, spec in stack.rows if spec.name == "flash" and "bool" in str(spec.hint)]


def plain_layers(layers: Any) -> Any:
    """A layout without the choice of a kernel."""
    specs = xflash.layout.parse_layout(layers)
    return tuple((s.name, {k: v for k, v in s.overrides.items() if k != "flash"}) for s in specs)


@law(lambda model, call: bool(kernel_flags(stack_of(model))))
def kernels(model, x, call: Call, plan) -> None:
    """6: with the fused kernel, without it, and as it was built: the same."""
    stack = stack_of(model)
    name = "layers" if stack.arguments.get("custom_layers") is None else "custom_layers"
    layers = {} if stack.arguments.get(name) is None else {name: plain_layers(stack.arguments[name])}
    right = measure(model, x, call)
    for fused in (False, True):
        other = rebuilt(model, **dict.fromkeys(kernel_flags(stack), fused), **layers)
        same(measure(other, x, call), right, f"kernels: flash={fused}")


@law(kinds=EVERY)
def quiet(model, x, call: Call, plan) -> None:
    """Without gradients, in inference mode, twice, and from inputs of another layout: the same."""
    right = forward(model, x, call).detach()
    for name, mode in (("no_grad", torch.no_grad()), ("inference", torch.inference_mode())):
        with mode:
            close(forward(model, x, call).clone(), right, f"quiet: {name}")
    strange = {k: v.mT.contiguous().mT if isinstance(v, torch.Tensor) and v.dim() > 1 else v for k, v in call.items()}
    strange = {k: v.int() if isinstance(v, torch.Tensor) and not v.is_floating_point() else v for k, v in strange.items()}
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    close(forward(model, turned, strange).detach(), right, "quiet: other layout")


@law(lambda model, call: stack_of(model).causal and "prefix_attn_len" not in call and not pooled(model))
def causal(model, x, call: Call, plan) -> None:
    """2: nothing at or before a token depends on anything after it."""
    n, p = x.shape[1], call["prepend_embeds"].shape[1] if "prepend_embeds" in call else 0
    i = plan["cuts"][0] % n
    after = x.clone()
    after[:, i:] = after[:, i:].flip(0) + 1.5 if x.is_floating_point() else (after[:, i:] + 1) % model.num_tokens
    with torch.no_grad():
        close(forward(model, after, call)[:, : p + i], forward(model, x, call)[:, : p + i], "causal")


def attends_only(stack) -> bool:
    """Whether an attn_mask can say what each token of a stack sees: nothing else mixes them."""
    mixing = [block for block in stack.blocks() if block.mixes_tokens]
    return bool(mixing) and all("attn_mask" in block.honours for block in stack.blocks())


def shifts(stack) -> bool:
    return any(branch.shift is not None for branch in stack.branches)


def placed(stack) -> bool:
    """Whether it matters how far from each other tokens stand."""
    configs = [block.config for block in stack.blocks()]
    near = any(getattr(c, "window", None) is not None or getattr(c, "rel_pos_bias", None) for c in configs)
    return bool(len(stack.positions)) or near or shifts(stack)


@law(lambda model, call: model is stack_of(model) and attends_only(model) and "prefix_attn_len" not in call)
def hidden(model, x, call: Call, plan) -> None:
    """Keys that an attn_mask hides from everyone are as if they were not there."""
    n, beside = x.shape[1], {k: v for k, v in call.items() if k.startswith("context")}
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
    """Whether the same weights mean the same in a bidirectional stack: T5's buckets don't, nor does xPos."""
    from xflash.layers.positions import T5Bias

    spread = any(getattr(p.config, "xpos", False) for p in model.positions.values())
    return not spread and not any(isinstance(m, T5Bias) for m in model.modules())


@law(kinds=EVERY)
def saved(model, x, call: Call, plan) -> None:
    """8: what a config builds again gives the same with the same weights."""
    again = xflash.from_config(model.to_config())
    assert again.to_config() == model.to_config(), "saved: another config"
    assert torch.equal(forward(loaded(again, model), x, call), forward(model, x, call)), "saved: another output"


@law(kinds=("stack", "model", "vit"))
def no_rows(model, x, call: Call, plan) -> None:
    """A batch of no rows gives none."""
    none = {}
    for name, value in call.items():
        by_row = isinstance(value, torch.Tensor) and name != "context_pos"
        none[name] = value[:0] if by_row and not (name == "attn_mask" and (value.dim() == 2 or len(value) == 1)) else value
    y = forward(model, x[:0], none)
    assert y.shape[0] == 0 and y.shape[1:] == forward(model, x, call).shape[1:], "no rows: another shape"


@law()
def computed_again(model, x, call: Call, plan) -> None:
    """6: layers that are computed again in training give what kept ones give, chance included."""
    found = []
    for again in (False, True):
        model.train()
        for branch in stack_of(model).branches:
            branch.grad_checkpoint = again
        torch.manual_seed(4)
        try:
            found.append(measure(model, x, call))
        finally:
            model.eval()
    same(found[1], found[0], "computed again")


@law(kinds=EVERY)
def half(model, x, call: Call, plan) -> None:
    """9: other precisions run, and keep their dtype."""
    import copy

    for dtype in (torch.bfloat16, torch.float32):
        given = {k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in call.items()}
        other = copy.deepcopy(model).to(dtype)
        found = measure(other, x.to(dtype) if x.is_floating_point() else x, given)
        for name, value in found.items():
            # A loss is in float32 at least.
            kept = value.dtype == dtype or not value.dim()
            assert value.isfinite().all() and kept, f"half: {name} under {dtype}"


@law(kinds=("vit",))
def images_alone(model, x, call: Call, plan) -> None:
    """4: an image gives alone what it gives among others, in any order."""
    order = torch.tensor(plan["order"]) % len(x)
    close(model(x[order]), model(x)[order], "images in another order")
    weight = noise(11, *model(x).shape)
    parts = [measure(model, x[i : i + 1], call, weight=weight[i : i + 1]) for i in range(len(x))]
    joined = {n: sum(part[n] for part in parts) for n in parts[0] if n not in ("y", "gradient of x")}
    joined |= {n: torch.cat([part[n] for part in parts]) for n in ("y", "gradient of x")}
    same(joined, measure(model, x, call, weight=weight), "images alone")


@law(lambda model, call: not by_length(model), kinds=("seq2seq",))
def pairs_alone(model, x, call: Call, plan) -> None:
    """4: the loss of pairs of a source and a target is the mean over all their targets, each pair alone."""
    real, there = real_tokens(x, call), real_tokens(call["src"], {"mask": call["context_mask"]} if "context_mask" in call else {})

    def run(model, x, call: Call) -> torch.Tensor:
        total, count = torch.zeros((), dtype=torch.float64), 0
        for row in range(len(x)):
            tgt, some = x[row : row + 1, real[row]], there[row] if there[row].any() else slice(None)
            src, mask = call["src"][row : row + 1, some], None if there[row].any() else there[row : row + 1]
            targets = int((tgt[:, 1:] != model.decoder.ignore_index).sum())
            if targets:
                total, count = total + model(src, tgt, mask) * targets, count + targets
        return total / max(count, 1)

    same(measure(model, x, call, run), measure(model, x, call), "pairs alone")


@law(lambda model, call: not by_length(model), kinds=("seq2seq",))
def pairs_generated(model, x, call: Call, plan) -> None:
    """The likeliest tokens of each pair: with a state, without one, and alone."""
    real, there = real_tokens(x, call), call.get("context_mask")
    if not real.any(1).all() or (there is not None and not there.any(1).all()):
        return
    options = {"temperature": 0.0, "filter_logits_fn": "none"}
    right = model.generate(call["src"], x, 4, there, tgt_mask=real, **options)
    again = model.generate(call["src"], x, 4, there, tgt_mask=real, cache_kv=False, **options)
    assert torch.equal(again, right), "generation: without a state"
    for row in range(len(x)):
        src = call["src"][row : row + 1] if there is None else call["src"][row : row + 1, there[row]]
        mine = model.generate(src, x[row : row + 1, real[row]], 4, **options)
        assert torch.equal(mine[0], right[row]), f"generation: pair {row} alone"
