"""save / load: a model's weights and its config in one file, which is replaced as a whole or not at all."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..base.checks import describe, shown
from ..base.files import replacing
from ..base.registry import activations, blocks, joins, norms, positions, reads, scales
from .classes import CLASSES, is_ours, kind
from .configurable import Configurable, from_config
from .folders import COPY, WEIGHTS, absent, read_copy, warn_of_changes
from .migrate import read_weights
from .weights import blueprint, check_model, entries, fill_ties, gathered, misfit, on_one_rank, plain

__all__ = ["load", "save"]

HEADER = "xflash"


class Saved(NamedTuple):
    """What a file holds beside its weights; entries that version 0.1.0 did not write are empty.

    parts: the module of each part of the user's own.  buffers: the dtypes of buffers that are not among the weights.
    """

    config: dict[str, Any] | None = None
    parts: Mapping[str, str] = {}
    buffers: Mapping[str, str] | None = None

    def header(self) -> dict[str, str]:
        """One entry: several would stand in a different order each time."""
        return {HEADER: json.dumps(self._asdict())}

    @classmethod
    def read(cls, header: Mapping[str, str]) -> "Saved":
        written = json.loads(header.get(HEADER, "{}"))
        return cls(**{name: written[name] for name in cls._fields if name in written})


def save(model: Configurable, folder: str | Path) -> None:
    """Writes model.safetensors, tied weights once and the config in its header, to `folder`, made if needed; no file.

    A file that is there is replaced when the new one is on the disk; config.json beside it is a copy to read. Weights
    that are spread over processes (FSDP2) are gathered: all of them call save, the first one writes. TypeError or
    ValueError, before anything is written, for a model whose modules and weights are not what its config builds.
    """
    model, folder = as_configurable(model), as_folder(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; save() writes a folder with {COPY} and {WEIGHTS} in it")
    config = model.to_config()
    built = blueprint(config)
    check_model(model, built)
    weights, mesh = gathered(entries(model))
    saved = Saved(config, own_parts(config), other_buffers(model, built))
    on_one_rank(mesh, lambda: write(folder, weights, saved))


def as_configurable(model: Any) -> Configurable:
    """The model, out of the wrapper that torch.compile puts around it; TypeError for one that has no config."""
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, Configurable):
        return model
    inside = isinstance(model, nn.Module) and isinstance(getattr(model, "module", None), Configurable)
    hint = "give its .module" if inside else "torch.save keeps others"
    raise TypeError(f"model must be one of xflash's, which have a config, not a {type(model).__name__}; {hint}")


def own_parts(config: Mapping[str, Any]) -> dict[str, str]:
    """The module of each part that is not xflash's own and has a name that occurs in the config."""
    words = set(re.findall(r"\w+", json.dumps(config, ensure_ascii=False)))
    return {name: module for name, module in origins().items() if name in words and not is_ours(module)}


def origins() -> dict[str, str]:
    """The module of each part that a config can name: registered ones, and classes."""
    found = {name: cls.__module__ for name, cls in CLASSES.items()}
    for registry in (blocks, norms, positions, reads, scales, joins, activations):
        found |= registry.origins
    return found


def other_buffers(model: nn.Module, built: nn.Module) -> dict[str, str]:
    """The dtypes of the buffers of floats that a state dict leaves out, by name."""
    kept, buffers = entries(model), {plain(name): value for name, value in model.named_buffers()}
    names = [name for name, _ in built.named_buffers() if name not in kept and name in buffers]
    return {name: str(buffers[name].dtype).split(".")[1] for name in names if buffers[name].is_floating_point()}


def write(folder: Path, weights: dict[str, torch.Tensor], saved: Saved) -> None:
    """Both files, the one that counts first: weights without a config in their header go by the config.json there."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(folder, WEIGHTS, COPY) as half:
        (half / COPY).write_text(json.dumps(saved.config, indent=2) + "\n")
        try:
            save_file(weights, half / WEIGHTS, metadata=saved.header())
        except SafetensorError as error:
            raise OSError(f"cannot write {folder / WEIGHTS}: {error}") from error
        shutil.copymode(half / COPY, half / WEIGHTS)  # safetensors makes files for the owner alone


def load(folder: str | Path, device: str | torch.device = "cpu") -> Any:
    """The model that `save` wrote into `folder`, each weight in its dtype; ValueError names the file that is wrong.

    It goes by the config in model.safetensors. Where config.json has become another one, a UserWarning says in what.
    """
    folder = as_folder(folder)
    file = folder / WEIGHTS
    check_device(device)
    if not file.is_file():
        raise ValueError(absent(folder))
    copy = folder / COPY
    copied = copy.read_bytes() if copy.is_file() else None  # first, for save() replaces the weights first
    weights, saved = read(file)
    if saved.config is None:
        config, source = read_copy(copy, copied), copy
    else:
        config, source = saved.config, file
        warn_of_changes(config, copy, copied)
    model = built(config, saved.parts, source).to(device)
    try:
        fill(model, weights, saved.buffers)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{file} does not fit the {kind(model).__name__} that its config builds: {error}") from None
    return model


def as_folder(folder: Any) -> Path:
    """`folder` as a Path; TypeError unless it is the path of one."""
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"folder must be the path of a folder, not {describe(folder)}")
    return Path(folder)


def check_device(device: Any, caller: str = "load()") -> None:
    """TypeError for what is no device, ValueError for one that is not there, or holds no values."""
    if not isinstance(device, (str, int, torch.device)) or isinstance(device, bool):
        raise TypeError(f"device must be one of torch's, such as 'cpu' or 'cuda', not {describe(device)}")
    try:
        if not torch.empty(0, device=device).is_meta:
            return
        reason = "it holds no values"
    except (AssertionError, OverflowError, RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
    raise ValueError(f"{caller} cannot put weights on the device {shown(device)}: {shown(reason)}")


def read(file: Path) -> tuple[dict[str, torch.Tensor], Saved]:
    """Weights and header of a file, of one and the same version of it; ValueError when it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return weights, Saved.read(opened.metadata() or {})
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file} cannot be read, it is damaged or cut short: {error}") from None


def built(config: Any, parts: Mapping[str, str], source: Path) -> Configurable:
    """What a config builds, on the CPU; errors name the file and parts of the user's own that are not known here."""
    try:
        with torch.device("cpu"):
            return from_config(config)
    except (TypeError, ValueError) as error:
        missing = {name: module for name, module in parts.items() if name not in origins()}
        if missing:
            said = " and ".join(f"{name!r} of the module {module!r}" for name, module in missing.items())
            raise ValueError(f"{source} needs {said}; import it before load()") from None
        raise (TypeError if isinstance(error, TypeError) else ValueError)(f"{source}: {error}") from None


def fill(model: nn.Module, weights: Mapping[str, torch.Tensor], buffers: Mapping[str, str] | None) -> None:
    """Puts the weights into the model, whose tensors take their dtypes; ValueError when they don't fit."""
    own, weights = entries(model), dict(weights)
    read_weights(model, weights)
    weights = fill_ties(weights, own)
    if reason := misfit(weights, own):
        raise ValueError(reason)
    found = {value.dtype for value in weights.values() if value.is_floating_point()}
    if buffers is None and len(found) == 1:  # version 0.1.0 did not write the dtypes of other buffers
        model.to(found.pop())
    for name, tensor in own.items():
        tensor.data = tensor.data.to(weights[name].dtype)
    for name, buffer in model.named_buffers():
        if buffers and name in buffers:
            buffer.data = buffer.data.to(getattr(torch, buffers[name]))
    model.load_state_dict(weights)
