"""The recurrence over the blocks of a call as one operator, which a graph holds however many blocks there are.

Unrolled, every number of blocks would be a graph of its own. PyTorch's own scan is no way out as long as gradients
through two of them in a row are wrong once compiled (torch 2.13, https://github.com/pytorch/pytorch/issues/153679).
"""

import functools
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, List  # noqa: UP035

import torch
from torch import nn
from torch.func import functional_call, vjp

from ...base.looks import may_look
from ...base.operator import operator
from ...base.registry import blocks
from ...base.shapes import Bool, Float, Int, Tensor
from ..kernels.operators import gradients_of
from ..kernels.packed_windows import DocumentBlocks
from ..kernels.windows import Blocks, followed
from ..site import Site

__all__ = [
    "BEGINS",
    "KEEPS",
    "RENEWS",
    "Renewal",
    "as_built",
    "counted",
    "describe",
    "of_documents",
    "outline",
    "recurrence",
    "renewed",
]

# What torch 2.5 can read in the annotations of an operator; list[Tensor] it cannot.
Tensors = List[Tensor]  # noqa: UP006


# What a block does with the state vectors of a row: nothing, renew them, or renew those that the row began with.
KEEPS, RENEWS, BEGINS = range(3)


class Renewal(nn.Module):
    """What a layer's `renew` makes of state vectors, as a module: the definition of `recurrence`."""

    def __init__(self, layer: Any):
        super().__init__()
        self.layer = layer

    def forward(self, *given: Any) -> Float[Tensor, "b _ s d"]:
        return renewed(self.layer, *given)


def renewed(
    layer: Any,
    states: Float[Tensor, "b s d"],
    k: Float[Tensor, "b g m c"],
    v: Float[Tensor, "b g m c"],
    seen: Bool[Tensor, "_ g m"] | None,
    does: Int[Tensor, "b g"],
    updates: int,
) -> Float[Tensor, "b _ s d"]:
    """The state vectors in front of each block and behind the last, block after block.

    seen: which keys there are (None: all).  does: what each block does with a row's vectors (KEEPS, RENEWS, BEGINS).
    updates: how many blocks are looked at, the others change nothing.
    """
    start, every = states, [states]
    if may_look(does) and does.shape[0]:
        updates = min(updates, int((does > KEEPS).any(0).sum()))
    for i in range(updates):
        there = None if seen is None else seen[:, i, None, None]
        here = does[:, i, None, None]
        found = layer.renew(torch.where(here == BEGINS, start, states), k[:, i], v[:, i], there)
        states = torch.where(here > KEEPS, found, states)
        every.append(states)
    return torch.stack([*every, *[states] * (k.shape[1] + 1 - len(every))], 1)


def recurrence(
    layer: Any,
    states: Float[Tensor, "b s d"],
    k: Float[Tensor, "b g m c"],
    v: Float[Tensor, "b g m c"],
    seen: Bool[Tensor, "_ g m"] | None,
    does: Int[Tensor, "b g"],
    updates: int,
) -> Float[Tensor, "b _ s d"]:
    """`renewed` of a block of a stack as an operator; its gradient is found by computing it again."""
    device = states.device.type
    half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    weights = list(renewing(layer).values())
    return renew_all(layer.built, states, k, v, seen, does, updates, half, weights)


def of_documents(
    layer: Any, start: Float[Tensor, "b s d"], folded: Blocks, documents: DocumentBlocks
) -> Float[Tensor, "b _ s d"]:
    """The state vectors that packed documents begin with, and those behind each block that another follows."""
    full = followed(folded, documents)
    does = torch.where(full.number() > 0, RENEWS, BEGINS).where(documents.there(), KEEPS)
    compiled = torch.compiler.is_compiling() and as_built(layer)
    return (recurrence if compiled else renewed)(layer, start, *layer.written(full), does, documents.later)


def describe(kind: str, config: Any, site: Site) -> str:
    """What a layer that an operator computes with is built from."""
    if not isinstance(config.weight_fn, str):
        raise ValueError(
            f"{kind}_weight_fn is a function, but {kind} is built again from its flags where gradients compute it "
            "again: register a WeightFn, and give its name"
        )
    parts = {name: asdict(part) for name, part in site.parts.items()}
    return json.dumps({"kind": kind, "config": asdict(config), "site": [site.dim, site.heads], "parts": parts})


def outline(layer: nn.Module) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The names of a layer's parameters, and the names and types of its modules, in order."""
    kinds = ((name, type(module)) for name, module in layer.named_modules())
    shown = tuple((name, f"{kind.__module__}.{kind.__qualname__}") for name, kind in kinds)
    return tuple(name for name, _ in layer.named_parameters()), shown


def as_built(layer: Any) -> bool:
    """Whether a layer is what its description builds, so that the operator computes the same: not a subclass with a
    `renew` of its own, nothing in it replaced, parametrized or hooked."""
    if layer.outline != outline(layer):
        return False
    return not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in layer.modules())


def renewing(layer: Any) -> dict[str, nn.Parameter]:
    """The parameters of a layer that its `renew` uses."""
    return {name: p for name, p in layer.named_parameters() if name.startswith(layer.renewing)}


def as_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a Config holds, from JSON."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


@functools.lru_cache(maxsize=64)
def skeleton(built: str, thread: int) -> tuple[Renewal, list[str]]:
    """The module for weights that are handed in, and their names; each thread its own, since they are put into it."""
    parts: Mapping[str, Any] = json.loads(built)
    kind = blocks[parts["kind"]]
    dim, heads = parts["site"]
    held = {name: part for registry in kind.holds.values() for name, part in registry.items()}
    configs = {name: held[name].Config(**as_config(values)) for name, values in parts["parts"].items()}
    with torch.device("meta"):
        layer = kind(kind.Config(**as_config(parts["config"])), Site(dim, heads, True, parts=configs))
    renewal = Renewal(layer)
    for module in renewal.modules():
        # Nobody's hooks on all modules (FlopCounterMode has such): autograd, which they may ask, is off in an operator.
        module._compiled_call_impl = module.forward
    return renewal, [f"layer.{name}" for name in renewing(layer)]


def computed(
    built: str,
    states: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor | None,
    does: Tensor,
    updates: int,
    half: torch.dtype | None,
    weights: Tensors,
) -> Tensor:
    module, names = skeleton(built, threading.get_ident())
    # Autocast knows no meta device, on which there are only shapes to come to.
    with torch.autocast("cpu" if states.is_meta else states.device.type, half, half is not None):
        return functional_call(module, dict(zip(names, weights, strict=True)), (states, k, v, seen, does, updates))


def counted(built: str, *given: Any) -> int:
    """What `renew_all` counts for in FlopCounterMode: as its operations do."""
    from torch.utils.flop_counter import FlopCounterMode

    *tensors, updates, half, weights = given
    bare: list[Any] = [None if t is None else torch.empty_like(t, device="meta") for t in (*tensors, *weights)]
    states, k, v, seen, does, *weights = bare
    with FlopCounterMode(display=False) as counter:
        computed(built, states, k, v, seen, does, updates, half, weights)
    return counter.get_total_flops()


@operator("renew_all")
def renew_all(
    built: str,
    states: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor | None,
    does: Tensor,
    updates: int,
    half: torch.dtype | None,
    weights: Tensors,
) -> Tensor:
    return computed(built, states, k, v, seen, does, updates, half, weights)


@renew_all.register_fake
def _(built, states, k, v, seen, does, updates, half, weights):
    b, s, d = states.shape
    return states.new_empty(b, k.shape[1] + 1, s, d)


@operator("renew_all_backward")
def renew_all_backward(
    grad: Tensor,
    built: str,
    states: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor | None,
    does: Tensor,
    updates: int,
    half: torch.dtype | None,
    weights: Tensors,
) -> Tensors:
    def forward(states, k, v, *weights):
        return computed(built, states, k, v, seen, does, updates, half, list(weights))

    # Autograd itself is switched off inside an operator.
    found = vjp(forward, states, k, v, *weights)[1](grad)
    # An operator's results must be tensors of their own.
    return [g.clone(memory_format=torch.contiguous_format) for g in found]


@renew_all_backward.register_fake
def _(grad, built, states, k, v, seen, does, updates, half, weights):
    return [t.new_empty(t.shape) for t in (states, k, v, *weights)]


def keep(ctx, inputs, output):
    built, states, k, v, seen, does, updates, half, weights = inputs
    ctx.settings = built, updates, half
    ctx.save_for_backward(states, k, v, does, *weights, *([] if seen is None else [seen]))
    ctx.count = len(weights)


def backward(ctx, grad):
    (built, updates, half), count = ctx.settings, ctx.count
    states, k, v, does, *rest = ctx.saved_tensors
    weights, seen = rest[:count], rest[count] if len(rest) > count else None
    if torch.is_grad_enabled():

        def slow(states, k, v, *weights):
            return (computed(built, states, k, v, seen, does, updates, half, list(weights)),)

        wanted = (*ctx.needs_input_grad[1:4], *[w.requires_grad for w in weights])
        d_states, d_k, d_v, *d_weights = gradients_of(slow, (states, k, v, *weights), wanted, (grad,))
        return None, d_states, d_k, d_v, None, None, None, None, d_weights
    d_states, d_k, d_v, *d_weights = renew_all_backward(grad, built, states, k, v, seen, does, updates, half, weights)
    return None, d_states, d_k, d_v, None, None, None, None, d_weights


renew_all.register_autograd(backward, setup_context=keep)
