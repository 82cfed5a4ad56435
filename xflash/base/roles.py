"""What each parameter is for, and the groups of an optimizer that follow from it."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from .checks import check_switches, number

__all__ = ["Role", "param_groups", "roles_of"]

Role = Literal["matrix", "filter", "embedding", "head", "other"]

# What the weights of PyTorch's own modules are; all that a module has beside them is 'other'.
WEIGHTS: dict[type[nn.Module], Role] = {
    nn.Linear: "matrix",
    nn.Embedding: "embedding",
    nn.Conv1d: "filter",
    nn.Conv2d: "filter",
    nn.Conv3d: "filter",
}


def roles_of(model: nn.Module) -> dict[nn.Parameter, Role]:
    """Each parameter once, with its role.

    A module says in `roles` what its own parameters are, and the weights of modules that it holds, by name. What nobody
    speaks of is 'other': gains, offsets, biases, positions, memory tokens, what each head has.
    """
    said: dict[nn.Parameter, Role] = {}
    for module in model.modules():
        for parameter, role in spoken(module):
            said.setdefault(parameter, role)
    return {parameter: said.get(parameter, "other") for parameter in model.parameters()}


def spoken(module: nn.Module) -> Iterator[tuple[nn.Parameter, Role]]:
    """What a module says of parameters, those of modules inside it before these speak themselves."""
    for name, role in getattr(module, "roles", {}).items():
        found = getattr(module, name, None)
        found = getattr(found, "weight", None) if isinstance(found, nn.Module) else found
        if isinstance(found, nn.Parameter):
            yield found, role
    for kind, role in WEIGHTS.items():
        if isinstance(module, kind) and isinstance(module.weight, nn.Parameter):
            yield module.weight, role


def param_groups(
    model: nn.Module, weight_decay: float = 0.0, muon: bool = False, embedding: bool = True, head: bool = True
) -> list[dict[str, Any]]:
    """What `Configurable.param_groups` gives, of any module."""
    number("weight_decay", weight_decay, at_least=0)
    check_switches(muon=muon, embedding=embedding, head=head)
    decayed = {"matrix", "filter", *(("embedding",) if embedding else ()), *(("head",) if head else ())}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter, role in roles_of(model).items():
        if parameter.requires_grad:
            key = float(weight_decay) if role in decayed else 0.0, muon and role == "matrix" and is_flat(parameter)
            groups.setdefault(key, []).append(parameter)
    # What decays comes first, whatever a model begins with.
    ordered = sorted(groups.items(), key=lambda group: group[0], reverse=True)
    return [{"params": params, "weight_decay": decay, "use_muon": on} for (decay, on), params in ordered]


def is_flat(t: torch.Tensor) -> bool:
    """Whether it is a matrix, and no vector in the shape of one."""
    return t.dim() == 2 and min(t.shape) > 1
