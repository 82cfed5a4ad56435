"""What the benchmarks share: timing, the machine they ran on, tables and JSON."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

import xflash

RESULTS = Path("runs") / "benchmarks"


def processor() -> str:
    """The CPU's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a figure depends on beside the code."""
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    return {
        "date": date.today().isoformat(),
        "device": where,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "xflash": xflash.__version__,
    }


def milliseconds(call: Callable[[], Any], device: str = "cpu") -> float:
    """How long one call takes, a GPU's queue included."""
    begun = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - begun)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def written(value: Any) -> str:
    """A cell of a table."""
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table: names to the left, numbers to the right."""
    lines = [list(columns), *([written(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))


def keep(name: str, result: Mapping[str, Any], device: str = "cpu") -> Path:
    """Writes the result beside the machine's description to runs/benchmarks/NAME.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(device), **result}, indent=2) + "\n")
    return path
