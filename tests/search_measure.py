"""What the laws of the search are made of: a model's output and gradients, whole or in part, and how they are compared.

Outputs are compared with gradients of everything that has one: inputs, contexts, parameters. `LAWS` has each law with
what it holds for; a law that does not hold for a call is not tried on it.
"""

from collections.abc import Callable
from typing import Any

import torch
from laws import joined, of_tokens
from search_case import noise

import xflash

Call = dict[str, Any]
LAWS: dict[str, tuple[Callable, Callable]] = {}
CLOSE = 1e-9
LEAVES = ("context", "prepend_embeds")
EVERY = ("stack", "model", "seq2seq", "vit")


def law(holds: Callable[[Any, Call], bool] = lambda model, call: True, kinds: tuple[str, ...] = ("stack", "model")):
    """Enters a law, with the kinds of models and the calls it holds for."""

    def enter(fn):
        LAWS[fn.__name__] = (lambda case, model, call: case.kind in kinds and holds(model, call), fn)
        return fn

    return enter


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
        sides = {name: value for name, value in call.items() if name.endswith("condition")}
        return model(call["src"], x, call.get("context_mask"), tgt_mask=call.get("mask"), **sides)
    return joined(model(x, **call, **of_tokens(model, x)))


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
    found = {
        f"gradient of {n}": torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(leaves, grads, strict=True)
    }
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
        elif name.startswith(("context", "condition")):
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
            name = f"gradient of {name}"
            total[name] = total.get(name, 0) + found[name]
    same(total, {name: whole[name] for name in total}, what)


def same_document(real: torch.Tensor, doc_ids: torch.Tensor) -> torch.Tensor:
    """(b, n, n) whether two tokens are of one run of equal numbers among the real ones."""
    found = torch.zeros(*real.shape, real.shape[1], dtype=torch.bool)
    for row in range(len(real)):
        at = real[row].nonzero()[:, 0]
        ids = doc_ids[row, at]
        number = torch.cat((ids.new_zeros(1), (ids[1:] != ids[:-1]).long().cumsum(0))) if len(at) else ids
        found[row, at[:, None], at[None]] = number[:, None] == number[None]
    return found


def loaded(other, model):
    """`other` with the weights of `model`."""
    other = other.double().eval()
    other.load_state_dict(model.state_dict())
    return other
