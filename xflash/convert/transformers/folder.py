"""`from_pretrained`: the model in a folder as transformers saves it, its weights read one after the other."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...base.checks import describe, shown
from ...saving.store import check_device
from .fill import build
from .shards import weights_in

__all__ = ["from_pretrained"]

CONFIG = "config.json"
FILES = ("*.json", "*.safetensors")


def from_pretrained(
    folder: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    long_context: bool = False,
) -> Any:
    """The xflash model of a folder with config.json and safetensors files, as transformers saves it, in eval mode.

    A name that is no folder here is asked of the Hugging Face hub (`pip install huggingface_hub`). All names and shapes
    are checked before any weight is read; then they are read one by one, and put onto the device in `dtype` (None: as
    stored). Nothing is unpickled. `long_context`: see from_transformers. ValueError names the file, the weight or the
    setting that is wrong.
    """
    check_device(device, "from_pretrained()")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be one of torch's floating-point dtypes, not {describe(dtype)}")
    here = local(folder)
    config = read_config(here / CONFIG)
    stored = weights_in(here)
    plan = build(config, (config.get("architectures") or [None])[0], long_context, "lm_head.weight" in stored)
    laid = plan.laid(stored)
    plan.check(laid)
    return plan.filled(laid, device, dtype or plan.main_of(stored).dtype).eval()


def local(folder: Any) -> Path:
    """Where the files are; ValueError for what is neither a folder nor had from the hub."""
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"folder must be the path of a folder or a name on the hub, not {describe(folder)}")
    path = Path(folder)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{path} is a file; from_pretrained() takes the folder with {CONFIG} and *.safetensors in it")
    if not isinstance(folder, str) or folder.count("/") != 1 or folder.startswith((".", "/")):
        raise ValueError(f"there is no folder {path}")
    try:
        from huggingface_hub import snapshot_download  # ty: ignore

        return Path(snapshot_download(folder, allow_patterns=list(FILES), ignore_patterns=["*/*"]))
    except ImportError:
        reason = "pip install huggingface_hub asks the hub for it"
    except Exception as error:
        reason = f"the hub did not give it: {type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
    raise ValueError(f"there is no folder {folder!r}, and {reason}") from None


def read_config(file: Path) -> Mapping[str, Any]:
    """The config of a folder; ValueError for a file that is not there, or is something else."""
    if not file.is_file():
        raise ValueError(f"{file.parent} has no {file.name}, which says what the model is")
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds {shown(config)}, not the settings of a model")
    return config
