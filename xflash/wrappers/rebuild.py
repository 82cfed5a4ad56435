"""`rebuild`: a model with other flags, and the weights of the old one wherever these have the same place."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ..base.checks import main_weight
from ..saving.classes import kind
from ..saving.configurable import Configurable
from ..saving.store import as_configurable
from ..saving.weights import entries, plain
from ..stack.changed import changed
from ..stack.face import AttentionLayers

__all__ = ["Rebuilt", "rebuild"]


class Rebuilt(NamedTuple):
    """A model, and by name which of its weights are those of the one before.

    kept: the old ones.  fresh: those that are as they begin.  left: old ones that have no place in it.
    """

    model: Any
    kept: tuple[str, ...]
    fresh: tuple[str, ...]
    left: tuple[str, ...]


def rebuild(model: Configurable, **flags: Any) -> Rebuilt:
    """(model, kept, fresh, left): `model` anew with other flags of its own or its stack's, and what became of weights.

    `new, kept, fresh, left = rebuild(gpt2, layers='attn ff flash ff', depth=6)`; the last three are names of weights:
    those that the new model has of the old one, those that are as they begin, and old ones without a place. A weight
    is kept where name, shape and kind of module are the same, so layers are compared place by place; all
    others begin anew. Flags of parts that the new stack has not are left out. The new model shares nothing with the
    old one, and has its dtype, device and mode. TypeError for what is no model of xflash, and as the model's own
    constructor for flags.
    """
    old = as_configurable(model)
    main = main_weight(old)
    with torch.device("cpu" if main is None else main.device):
        new = other(old, flags)
    if main is not None:
        new.to(main.dtype)
    weights, held = entries(new), entries(old)
    here, there = described(new, weights), described(old, held)
    kept = tuple(name for name in weights if here[name] == there.get(name))
    for name in kept:
        weights[name].data = held[name].detach().clone()
        weights[name].requires_grad_(held[name].requires_grad)
    fresh, left = (tuple(name for name in names if name not in kept) for names in (weights, held))
    return Rebuilt(new.train(old.training), kept, fresh, left)


def other(model: Configurable, flags: Mapping[str, Any]) -> Configurable:
    """A module of the same class with other flags, which are its own or those of what is inside."""
    cls: Any = kind(model)
    if isinstance(model, AttentionLayers):
        return cls(**changed(model, flags))
    names, inside = cls.takes(), [name for name, value in model.arguments.items() if isinstance(value, Configurable)]
    own = {name: value for name, value in flags.items() if name in names or not inside}
    others = {name: value for name, value in flags.items() if name not in own}
    same = model.arguments if not cls.takes_flags else said(model)
    return cls(**{**same, **{name: other(model.arguments[name], others) for name in inside}, **own})


def said(model: Configurable) -> dict[str, Any]:
    """What a model was built of, where that is not the default."""
    rows = (row for row in model.flag_rows() if row[0] in model.arguments)
    return {name: model.arguments[name] for name, value, spec in rows if value != spec.default}


def described(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Of each weight its shape, and the kinds of the modules around it."""
    modules = {plain(path): kind(module) for path, module in model.named_modules(remove_duplicate=False)}
    paths = {name: name.split(".")[:-1] for name in weights}
    around = {name: [modules[".".join(path[:n])] for n in range(len(path) + 1)] for name, path in paths.items()}
    return {name: (weight.shape, type(weight), around[name]) for name, weight in weights.items()}
