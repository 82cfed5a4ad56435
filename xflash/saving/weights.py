"""Whether weights are those of the model that a config builds, and whole: what is saved and loaded goes by it."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .classes import kind
from .configurable import Configurable, from_config

__all__ = ["blueprint", "check_model", "entries", "fill_ties", "gathered", "misfit", "on_one_rank", "plain"]

# Names of modules that run another one in their own way, and leave it what it is.
TRANSPARENT = {"_orig_mod", "_checkpoint_wrapped_module"}


def plain(name: str) -> str:
    """The name as the config builds it, whatever was compiled or checkpointed since."""
    return ".".join(part for part in name.split(".") if part not in TRANSPARENT)


def entries(model: nn.Module) -> dict[str, Any]:
    """The state dict, its parameters themselves, by plain names."""
    return {plain(name): value for name, value in model.state_dict(keep_vars=True).items()}


def blueprint(config: Mapping[str, Any]) -> Configurable:
    """What a config builds, without memory for its weights where its parts allow that; no random number is drawn."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return from_config(config)
        except Exception:  # a part of the user's own looks at values
            with torch.device("cpu"):
                return from_config(config)


def check_model(model: Configurable, built: Configurable) -> None:
    """ValueError unless the modules and weights of a model are those that its config builds, in plain tensors."""
    found, wanted = entries(model), entries(built)
    if reason := strange_module(model, built) or misfit(found, wanted) or untied(found, wanted):
        raise ValueError(
            f"this {kind(model).__name__} is not what its config builds: {reason}; torch.save keeps its state_dict()"
        )
    if reason := strange_tensor(found):
        raise ValueError(f"this {kind(model).__name__} cannot be saved: {reason}")


def strange_module(model: nn.Module, built: nn.Module) -> str:
    """What was put into the model in place of a module that its config builds, or ''."""
    found = {plain(name): module for name, module in model.named_modules(remove_duplicate=False)}
    for name, wanted in built.named_modules(remove_duplicate=False):
        module = found.get(name)
        if module is None:
            return f"it has no module {name!r}"
        (ours, flags), (theirs, built_flags) = nature(module), nature(wanted)
        if ours != theirs:
            return f"{name!r} is a {ours}, not a {theirs}"
        if flags != built_flags:
            return f"{name!r}, a {kind(module).__name__}, has other flags"
    return ""


def nature(module: nn.Module) -> tuple[str, Any]:
    """The class of a module by name, for a notebook cell that is run again makes it anew; and the flags it has."""
    cls, config = kind(module), getattr(module, "config", None)
    if isinstance(module, Configurable):
        config = module.to_config()
    elif dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    else:
        config = None
    return f"{cls.__module__}.{cls.__qualname__}", config


def misfit(found: Mapping[str, Any], wanted: Mapping[str, torch.Tensor]) -> str:
    """Why tensors don't fit in the places of others: names, shapes, kinds of numbers; '' where they do."""
    if missing := [name for name in wanted if name not in found]:
        return f"there is no {listed(missing)}"
    if unknown := [name for name in found if name not in wanted]:
        return f"there is no place for {listed(unknown)}"
    for name, place in wanted.items():
        value = found[name]
        if not isinstance(value, torch.Tensor):
            return f"{name!r} is a {type(value).__name__}, not a tensor"
        if value.shape != place.shape:
            return f"{name!r} is of shape {tuple(value.shape)}, not {tuple(place.shape)}"
        if numbers(value) != numbers(place):
            return f"{name!r} is {value.dtype}, which does not take the place of {place.dtype}"
    return ""


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def numbers(value: torch.Tensor) -> Any:
    """What may take each other's place: floats of any width; else the dtype itself."""
    return "floats" if value.is_floating_point() else value.dtype


def strange_tensor(found: Mapping[str, torch.Tensor]) -> str:
    """The first tensor whose values a file does not hold, or ''; those of shards are gathered."""
    for name, value in found.items():
        if not is_plain(value) and not is_shard(value):
            return f"{name!r} is a {type(value).__name__}, not a plain tensor"
        if value.layout is not torch.strided or value.dtype == torch.complex128:
            return f"{name!r} is {value.dtype} in {value.layout}, which safetensors does not know"
        if value.is_meta:
            return f"{name!r} is on the device 'meta' and has no values"
    return ""


def untied(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str:
    """Which weights were tied, or set apart, since the model was built, or ''."""
    ours, theirs = firsts(found), firsts(wanted)
    for name in wanted:
        if ours[name] != theirs[name]:
            if ours[name] != name:
                return f"{ours[name]!r} and {name!r} are one tensor, not two"
            return f"{theirs[name]!r} and {name!r} are two tensors, not one"
    return ""


def firsts(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """For each name the first name of the same tensor."""
    seen: dict[Any, str] = {}
    return {name: seen.setdefault(identity(value), name) for name, value in tensors.items()}


def identity(value: torch.Tensor) -> Any:
    """What is equal for two tensors that are one, other Parameters of the same memory among them."""
    if not is_plain(value) or value.layout is not torch.strided:
        return id(value)
    return value.untyped_storage()._cdata, value.storage_offset(), value.shape, value.stride()


def is_plain(value: torch.Tensor) -> bool:
    return type(value) in (torch.Tensor, nn.Parameter)


def is_shard(value: Any) -> bool:
    """Whether a tensor is spread over processes (FSDP2, tensor parallelism)."""
    if is_plain(value) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def gathered(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Any]:
    """The tensors whole, on the CPU and tied ones once; and the mesh of processes that had shards of them, or None.

    Of a mesh, only the first process keeps them, though all must ask.
    """
    once = {name: tensors[name] for name, first in firsts(tensors).items() if name == first}
    mesh = next((value.device_mesh for value in once.values() if is_shard(value)), None)  # ty: ignore
    keep = mesh is None or not any(mesh.get_coordinate())
    whole = {}
    for name, value in once.items():
        value = value.full_tensor() if is_shard(value) else value  # ty: ignore
        if keep:
            whole[name] = alone(value.detach())
    return whole, mesh


def alone(value: torch.Tensor) -> torch.Tensor:
    """On the CPU, in order, in memory that holds nothing else."""
    value = value.cpu().contiguous()
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def on_one_rank(mesh: Any, write: Callable[[], None]) -> None:
    """Calls `write` on the first process of a mesh (None: here); all wait, and an error there is raised by all."""
    if mesh is None:
        return write()
    from torch import distributed

    error: list[Any] = [None]
    if not any(mesh.get_coordinate()):
        try:
            write()
        except Exception as caught:
            error = [caught]
    for axis in range(mesh.ndim):
        group = mesh.get_group(axis)
        distributed.broadcast_object_list(error, src=distributed.get_global_rank(group, 0), group=group)
    if error[0] is not None:
        raise error[0]


def fill_ties(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a file with those of tied names that stand there once; ValueError when they differ."""
    groups: dict[str, list[str]] = {}
    for name, first in firsts(wanted).items():
        groups.setdefault(first, []).append(name)
    full = dict(found)
    for group in groups.values():
        full |= same(found, group)
    return full


def same(found: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """The one tensor there is under any of these names, under all of them."""
    present = [name for name in names if name in found]
    for name in present[1:]:
        if not torch.equal(found[name], found[present[0]]):
            raise ValueError(f"{present[0]!r} and {name!r} are two tensors, but the model has one in both places")
    return dict.fromkeys(names, found[present[0]]) if present else {}
