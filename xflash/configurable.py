"""Modules that know how they were built: to_config / from_config, save / load."""

import functools
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from .checks import describe, given, shown
from .flags import from_json, to_json
from .migrate import FORMAT, read_arguments, read_weights
from .pieces import innermost
from .registry import nearest

__all__ = ["Configurable", "from_config", "load", "save"]

C = TypeVar("C", bound="Configurable")

CLASSES: dict[str, type["Configurable"]] = {}


class Configurable(nn.Module):
    """A module that records the arguments it was built from, so that `from_config(to_config())` builds it again.

    Every subclass can be named in a config. Arguments are what JSON can hold, or Configurable modules. `gives` says
    what the module makes of what, where that is not logits of token ids: wrappers that train such a model refuse it.
    """

    gives: ClassVar[str] = ""

    arguments: dict[str, Any]

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        CLASSES[cls.__name__] = cls
        if "__init__" in cls.__dict__:
            cls.__init__ = recording(cls.__init__)  # type: ignore[method-assign]

    def to_config(self) -> dict[str, Any]:
        """The format, the class and its arguments as JSON can hold them, modules among them described likewise."""
        return {"format": FORMAT, **self.described()}

    def described(self) -> dict[str, Any]:
        """The class and its arguments."""
        return {"class": type(self).__name__, **{k: encode(k, v) for k, v in self.arguments.items()}}

    @classmethod
    def from_config(cls: type[C], config: Mapping[str, Any]) -> C:
        """The module a config describes; TypeError when it describes another class."""
        built = from_config(config)
        if not isinstance(built, cls):
            raise TypeError(f"the config is of a {type(built).__name__}, not of a {cls.__name__}")
        return built

    def save(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors into `folder`."""
        save(self, folder)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        read_weights(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "format": FORMAT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.get("format", 1) != FORMAT:
            raise ValueError(
                f"a {type(self).__name__} pickled by another version of xflash has other weights: build it anew and "
                "give it that one's state_dict(), which is read whatever wrote it"
            )
        super().__setstate__(state)

    def compile(self, *args: Any, **options: Any) -> None:
        """As nn.Module.compile, with the options of torch.compile; but a module that goes piece after piece, or has
        such a one inside, has the (innermost) piece compiled: the same few graphs for any number of them.

        Such are stacks whose layers read state vectors across layers, and what reads texts in segments.
        """
        inside = innermost(self)
        for module in inside:
            module.compile_piece(*args, **options)
        if not inside:
            super().compile(*args, **options)


def recording(init):
    """`init` that keeps the arguments of the outermost call, and names the nearest one when an argument is unknown."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self, *args, **kwargs):
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            known = [p for p in signature.parameters if p != "self"]
            takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
            for name in kwargs:
                if name not in known and not takes_any:
                    raise TypeError(f"{type(self).__name__} has no argument {name!r}{nearest(name, known)}") from None
            raise TypeError(f"{type(self).__name__}: {error}") from None
        outermost = "arguments" not in self.__dict__
        if outermost:
            values = dict(list(bound.arguments.items())[1:])
            for parameter in signature.parameters.values():
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    values.update(values.pop(parameter.name, {}))
            self.__dict__["arguments"] = values
        init(self, *args, **kwargs)

    return wrapper


def encode(name: str, value: Any) -> Any:
    if isinstance(value, Configurable):
        return value.described()
    try:
        return to_json(value)
    except TypeError as error:
        raise TypeError(f"the argument {name!r} keeps this module from having a config: {error}") from None


def from_config(config: Mapping[str, Any]) -> Any:
    """Builds the module a `to_config()` describes, its weights fresh.

    ValueError for a class that is not known, and for a config of a newer format than this version writes.
    """
    if not isinstance(config, Mapping) or "class" not in config:
        raise TypeError("a config is a mapping with the entry 'class', as to_config() gives it")
    written = config.get("format", 1)
    if type(written) is not int or not 1 <= written <= FORMAT:
        raise ValueError(f"the config is of format {shown(written)}, but this version of xflash reads 1 to {FORMAT}")
    return built({k: v for k, v in config.items() if k != "format"}, written)


def built(described: Mapping[str, Any], written: int) -> Any:
    """The module that a config of format `written`, or a part of one, describes."""
    name = described["class"]
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(f"the config names an unknown class {shown(name)}{nearest(name, CLASSES)}")
    arguments = read_arguments({k: v for k, v in described.items() if k != "class"}, written)
    return CLASSES[name](**{k: decode(v, written) for k, v in arguments.items()})


def decode(value: Any, written: int) -> Any:
    if isinstance(value, Mapping) and isinstance(value.get("class"), str):
        return built(value, written)
    return from_json(value)


def as_folder(folder: Any) -> Path:
    """`folder` as a Path; TypeError unless it is the path of one."""
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"folder must be the path of a folder, not {describe(folder)}")
    return Path(folder)


def as_device(device: Any) -> torch.device:
    """`device` as torch has it; TypeError or ValueError for what is none."""
    if not isinstance(device, (str, int, torch.device)) or isinstance(device, bool):
        raise TypeError(f"device must be one of torch's, such as 'cpu' or 'cuda', not {describe(device)}")
    try:
        return torch.device(device)
    except (RuntimeError, OverflowError, ValueError) as error:
        raise ValueError(f"device={shown(device)} is none of torch's: {shown(error)}") from error


def save(model: Configurable, folder: str | Path) -> None:
    """Writes config.json and model.safetensors, tied weights once, to `folder`, made if needed; no file."""
    from safetensors.torch import save_model

    if not isinstance(model, Configurable):
        raise TypeError(f"save() takes a stack or a model of xflash, which has a config, not {given(model)}")
    folder = as_folder(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; save() writes a folder with config.json and model.safetensors in it")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.to_config(), indent=2) + "\n")
    save_model(model, str(folder / "model.safetensors"))


def load(folder: str | Path, device: str | torch.device = "cpu") -> Any:
    """The model that `save` wrote into `folder`, its weights in their dtype; ValueError when files are missing."""
    from safetensors.torch import load_file, load_model

    folder = as_folder(folder)
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            raise ValueError(f"{folder} has no {file}; give the folder that save() wrote")
    device = as_device(device)
    model = from_config(json.loads((folder / "config.json").read_text())).to(device)
    weights = load_file(str(folder / "model.safetensors"))
    kept = {t.dtype for t in weights.values() if t.is_floating_point()}
    if len(kept) == 1:
        model = model.to(kept.pop())
    load_model(model, str(folder / "model.safetensors"), device=str(device))
    return model
