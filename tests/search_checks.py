"""What the search checks of one call: laws as functions of a model, its input, the rest of a call, and a plan."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from laws import joined, of_tokens
from search_case import sentence
from search_measure import (
    EVERY,
    Call,
    by_length,
    chosen,
    close,
    forward,
    law,
    loaded,
    measure,
    outputs,
    pooled,
    real_outputs,
    real_tokens,
    same,
    same_document,
    stack_of,
    together,
)

import xflash
from xflash.flags.layout import parallel, parse_layout


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
    return joined(model(x, **call, return_attn=True, **of_tokens(model, x)))


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
    _, found = mapped(model, x, call)
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


@law()
def hiddens(model, x, call: Call, plan) -> None:
    """6: with the streams asked for all is as without; they end in what is given, with zeros at masked tokens."""

    def heard(model, x, call):
        return joined(model(x, **call, return_hiddens=True, **of_tokens(model, x)))

    same(measure(model, x, call, lambda *given: heard(*given)[0]), measure(model, x, call), "hiddens")
    y, found = heard(model, x, call)
    assert len(found) == len(stack_of(model).order) + 2, "hiddens: not one a layer"
    if model is not stack_of(model):
        return
    assert torch.equal(found[-1], y), "hiddens: the last is another"
    for stream in found:
        assert (stream[~real_tokens(x, call)] == 0).all(), "hiddens: not zero at masked tokens"


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


def kernel_flags(stack) -> dict[str, bool | None]:
    """The flags that choose a kernel, not what it computes."""
    return {name: s.default for name, _, s in stack.rows if s.name == "flash" and "bool" in str(s.hint)}


def plain_layers(layers: Any) -> Any:
    """A layout without the choice of a kernel."""
    specs = parse_layout(layers)
    return tuple(
        parallel([one._replace(overrides={k: v for k, v in one.flags.items() if k != "flash"}) for one in spec.members])
        for spec in specs
    )


@law(lambda model, call: bool(kernel_flags(stack_of(model))))
def kernels(model, x, call: Call, plan) -> None:
    """6: with the fused kernel, without it, and as it was built: the same."""
    stack = stack_of(model)
    name = "layers" if stack.arguments.get("custom_layers") is None else "custom_layers"
    layers = {} if stack.arguments.get(name) is None else {name: plain_layers(stack.arguments[name])}
    right = measure(model, x, call)
    for fused in (False, True):
        # As the default says it, where possible: for some scores there is no such kernel.
        flags = {name: kernel if fused else False for name, kernel in kernel_flags(stack).items()}
        other = rebuilt(model, **flags, **layers)
        same(measure(other, x, call), right, f"kernels: flash={fused}")


@law(kinds=EVERY)
def quiet(model, x, call: Call, plan) -> None:
    """Without gradients, in inference mode, twice, and from inputs of another layout: the same."""
    right = forward(model, x, call).detach()
    for name, mode in (("no_grad", torch.no_grad()), ("inference", torch.inference_mode())):
        with mode:
            close(forward(model, x, call).clone(), right, f"quiet: {name}")
    strange = {k: v.mT.contiguous().mT if isinstance(v, torch.Tensor) and v.dim() > 1 else v for k, v in call.items()}
    strange = {
        k: v.int() if isinstance(v, torch.Tensor) and not v.is_floating_point() else v for k, v in strange.items()
    }
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
        none[name] = (
            value[:0] if by_row and not (name == "attn_mask" and (value.dim() == 2 or len(value) == 1)) else value
        )
    y = forward(model, x[:0], none)
    assert y.shape[0] == 0 and y.shape[1:] == forward(model, x, call).shape[1:], "no rows: another shape"


@law()
def computed_again(model, x, call: Call, plan) -> None:
    """6: layers that are computed again in training give what kept ones give, chance included."""
    found = []
    for again in (False, True):
        other = copy.deepcopy(model).train()
        for branch in stack_of(other).branches:
            branch.grad_checkpoint = again
        torch.manual_seed(4)
        found.append(measure(other, x, call))
    same(found[1], found[0], "computed again")


@law(kinds=EVERY)
def half(model, x, call: Call, plan) -> None:
    """9: other precisions run, and keep their dtype."""
    for dtype in (torch.bfloat16, torch.float32):
        given = {
            k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in call.items()
        }
        other = copy.deepcopy(model).to(dtype)
        found = measure(other, x.to(dtype) if x.is_floating_point() else x, given)
        for name, value in found.items():
            # A loss is in float32 at least.
            kept = value.dtype == dtype or not value.dim()
            assert value.isfinite().all() and kept, f"half: {name} under {dtype}"


@law(kinds=EVERY)
def reached(model, x, call: Call, plan) -> None:
    """9: every parameter has a gradient, be it zeros, whatever the data: processes that train together wait for it."""
    model.train()
    try:
        grads = torch.autograd.grad(forward(model, x, call).sum(), list(model.parameters()), allow_unused=True)
    finally:
        model.eval()
    without = [name for (name, _), grad in zip(model.named_parameters(), grads, strict=True) if grad is None]
    assert not without, f"reached: no gradient reaches {without}"
