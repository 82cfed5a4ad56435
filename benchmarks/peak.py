"""How much memory one call takes at most, beyond what its process had before; compare.py runs it once a figure.

python benchmarks/peak.py layer 'gau xflash' 8192
"""

import argparse
import resource
import sys
from pathlib import Path

import torch
from contenders import layer, model, reading, training

from xflash.experiments.clock import flushed

KINDS = ("layer", "model", "reading")


def forget_peak() -> bool:
    """Lets the system count the process's peak anew; False where it does not (Linux does, some sandboxes ignore it).

    Where it does not, what the process took and freed before is not counted in what it takes next.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return peak_mb() - (status_mb("VmRSS") or 0.0) < 1


def status_mb(field: str) -> float | None:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(field)), None)


def peak_mb() -> float:
    peak = status_mb("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if peak is None else peak


@flushed()
def main(words: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "kind", choices=KINDS, help="a layer's or a model's training step, or a model's forward without grad"
    )
    parser.add_argument("name")
    parser.add_argument("n", type=int)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    if options.kind == "layer":
        call = training(layer(options.name), options.n, device=options.device)
    else:
        make = training if options.kind == "model" else reading
        call = make(model(options.name, options.depth, options.n), options.n, device=options.device)
    if options.device.startswith("cuda"):
        call()
        torch.cuda.reset_peak_memory_stats(options.device)
        before = torch.cuda.memory_allocated(options.device)
        call()
        taken = (torch.cuda.max_memory_allocated(options.device) - before) / 2**20
    else:
        if not forget_peak():
            print("the system keeps an earlier peak, what was free below it is not counted", file=sys.stderr)
        before = peak_mb()
        call()
        taken = peak_mb() - before
    print(f"{taken:.1f}")
    return taken


if __name__ == "__main__":
    main()
