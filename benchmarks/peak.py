"""How much memory one call takes at most, beyond what its process had before; compare.py runs it once a figure.

python benchmarks/peak.py layer 'gau xflash' 8192
"""

import argparse
import resource
from pathlib import Path

import torch
from contenders import layer, model, reading, training

KINDS = ("layer", "model", "reading")


def forget_peak() -> None:
    """Lets the system count the process's peak anew, where it can (Linux)."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def peak_mb() -> float:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
    return peaks[0] if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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
        forget_peak()
        before = peak_mb()
        call()
        taken = peak_mb() - before
    print(f"{taken:.1f}")
    return taken


if __name__ == "__main__":
    main()
