"""What is in a folder that is to be loaded: one of ours, one of another library's, or a copy that somebody changed."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.checks import shown

__all__ = ["COPY", "WEIGHTS", "absent", "read_copy", "warn_of_changes"]

WEIGHTS, COPY = "model.safetensors", "config.json"
GIVE = "give the folder that save() wrote"


def absent(folder: Path) -> str:
    """Why a folder without weights of ours is not loaded, and what to use instead."""
    if folder.is_file():
        own = folder.name in (WEIGHTS, COPY)
        where = f"it is in, {str(folder.parent)!r}" if own else "that save() wrote, or weights to load_state_dict()"
        return f"{folder} is a file; give the folder {where}"
    if not folder.exists():
        return f"there is no folder {folder}; {GIVE} (xflash.convert.from_pretrained() reads models of transformers)"
    copy = folder / COPY
    return foreign(folder, copy.read_bytes() if copy.is_file() else None) or f"{folder} has no {WEIGHTS}; {GIVE}"


def foreign(folder: Path, content: bytes | None) -> str:
    """The answer to a folder whose config.json another library wrote, or ''."""
    try:
        config = json.loads(content or b"null")
    except ValueError:
        return ""
    if not isinstance(config, Mapping) or "class" in config:
        return ""
    if "model_type" in config or "architectures" in config:
        return f"{folder} was written by transformers; xflash.convert.from_pretrained({str(folder)!r}) reads it"
    if "architecture" in config:
        loads = f"xflash.convert.from_timm(timm.create_model('local-dir:{folder}'))"
        return f"{folder} was written by timm; {loads} reads it"
    return ""


def read_copy(file: Path, content: bytes | None) -> Any:
    """The config of a folder of version 0.1.0, which has it in config.json only."""
    if content is None:
        raise ValueError(f"{file.parent} has no {COPY}, and {WEIGHTS} no config in its header; save() writes both")
    if said := foreign(file.parent, content):
        raise ValueError(said)
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def warn_of_changes(config: Any, file: Path, content: bytes | None) -> None:
    """A warning where config.json is not the copy of the config that a folder is loaded by; content: as first read.

    That it is another one can also be the end of a save that was killed, so it is no error. A save that has come
    between is no reason either: what stands there now is looked at.
    """
    if content is None or (said := difference(config, content)) is None:
        return
    if file.is_file() and (said := difference(config, file.read_bytes())) is None:
        return
    warnings.warn(
        f"{file} is not read: the config in {WEIGHTS} counts, and {said}; to change flags, xflash.rebuild(model, ...) "
        "and save() that, or load the weights into from_config(...)",
        stacklevel=3,
    )


def difference(config: Any, content: bytes) -> str | None:
    """How the text of a config says something else than a config, or None."""
    try:
        return first_other(config, json.loads(content))
    except ValueError as error:
        return f"this copy cannot be read ({error})"


def first_other(ours: Any, theirs: Any, path: str = "") -> str | None:
    """The first entry in which two configs are not equal, or None."""
    if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
        return None if ours == theirs else f"{path} is {shown(ours)} there, {shown(theirs)} here"
    for name in dict.fromkeys([*ours, *theirs]):
        inner = f"{path}.{name}" if path else str(name)
        if name not in ours or name not in theirs:
            return f"{inner} stands {'there' if name in ours else 'here'} only"
        if said := first_other(ours[name], theirs[name], inner):
            return said
    return None
