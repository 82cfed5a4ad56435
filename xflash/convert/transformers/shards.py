"""Safetensors files, one or several: what is in them is known from their headers, and read one weight at a time."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...base.checks import shown
from ...base.shapes import Tensor

__all__ = ["Stored", "weights_in"]

INDEX, WHOLE, PICKLED = "model.safetensors.index.json", "model.safetensors", "pytorch_model"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Of buffers that are left out.
DTYPES |= {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}


class Stored(NamedTuple):
    """A weight in a file: its numbers, their shape, and between which bytes they are."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> Tensor:
        """The weight, in memory of its own."""
        buffer = bytearray(self.end - self.start)
        with open(self.file, "rb", buffering=0) as opened:
            opened.seek(self.start)
            view = memoryview(buffer)
            while view:
                count = opened.readinto(view)
                if not count:
                    raise ValueError(f"{self.file} became shorter while it was read")
                view = view[count:]
        return torch.frombuffer(buffer, dtype=self.dtype).view(self.shape) if buffer else torch.empty(self.shape)


def weights_in(folder: Path) -> dict[str, Stored]:
    """Every weight in a folder, by name; ValueError for a file that is missing, or not what its header says."""
    if (folder / INDEX).is_file():
        return indexed(folder)
    if (folder / WHOLE).is_file():
        return header(folder / WHOLE)
    pickled = next(folder.glob(f"{PICKLED}*"), None)
    if pickled is not None:
        raise ValueError(
            f"{folder} has its weights in {pickled.name} only, and nothing is unpickled here: save them as safetensors "
            "(save_pretrained of transformers)"
        )
    raise ValueError(f"{folder} has neither {WHOLE} nor {INDEX}")


def indexed(folder: Path) -> dict[str, Stored]:
    """The weights of several files, as their index distributes them."""
    file = folder / INDEX
    try:
        where = dict(json.loads(file.read_bytes())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no index of weights: {type(error).__name__}: {error}") from None
    found: dict[str, dict[str, Stored]] = {}
    for name, shard in where.items():
        if shard not in found:
            if not isinstance(shard, str) or Path(shard).name != shard or not (folder / shard).is_file():
                raise ValueError(f"{folder} has no file {shown(shard)}, where {INDEX} says that {name!r} is")
            found[shard] = header(folder / shard)
        if name not in found[shard]:
            raise ValueError(f"{folder / shard} has no weight {name!r}, which {INDEX} says is there")
    return {name: found[shard][name] for name, shard in where.items()}


def header(file: Path) -> dict[str, Stored]:
    """The weights of one file, which has all their bytes."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        first = opened.read(8)
        begin = 8 + int.from_bytes(first, "little")
        if len(first) < 8 or begin > size:
            raise ValueError(f"{file} is cut short: it ends within its header")
        try:
            said = json.loads(opened.read(begin - 8))
            said.pop("__metadata__", None)
            found = {name: stored(file, name, entry, begin) for name, entry in said.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if str(error).startswith(str(file)):
                raise
            raise ValueError(f"{file} is no safetensors file: {type(error).__name__}: {error}") from None
    last = max((weight.end for weight in found.values()), default=begin)
    if last > size:
        raise ValueError(f"{file} is cut short: it has {size} bytes, of {last} that its header names")
    return found


def stored(file: Path, name: str, entry: Mapping[str, Any], begin: int) -> Stored:
    """A weight as the header of its file says it."""
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{file} has {name!r} in {shown(entry['dtype'])}; known are {', '.join(DTYPES)}")
    dtype, shape = getattr(torch, DTYPES[entry["dtype"]]), tuple(map(int, entry["shape"]))
    start, end = (begin + int(offset) for offset in entry["data_offsets"])
    if start < begin or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{file} has {name!r} of shape {shape} in {end - start} bytes, which are not as many numbers")
    return Stored(file, dtype, shape, start, end)
