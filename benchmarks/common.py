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
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
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


def show(columns: Sequence[str], rows: Sequence[Sequence[Any]], decimals: int = 3) -> None:
    """Prints a table, numbers to the right."""
    cells = [[f"{v:,.{decimals}f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else str(v) for v in row] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    for line in [columns, *cells]:
        print("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))))


def keep(name: str, result: Mapping[str, Any], device: str = "cpu") -> Path:
    """Writes the result beside the machine's description to runs/benchmarks/NAME.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(device), **result}, indent=2) + "\n")
    return path
