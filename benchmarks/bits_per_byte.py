"""Bits per byte on real text after the same training: xflash's FLASH beside flash_pytorch's, of the same size.

    python benchmarks/bits_per_byte.py

Both get the same batches in the same order; what differs is the library's own defaults: initialisation, scales,
biases, norms. The spread between seeds is about as large as the difference, so all of them are printed.
"""

import argparse
import importlib
import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from common import keep, median, show
from torch import Tensor, nn

from xflash.datasets import sequences as data
from xflash.experiments.clock import flushed


def build(name: str, options: argparse.Namespace) -> nn.Module:
    """The model of one library: the same arguments for both, everything else is what it does unless told otherwise."""
    library = importlib.import_module(name)
    sizes = {"dim": options.dim, "depth": options.depth, "group_size": options.group_size}
    return library.FLASHTransformer(num_tokens=256, causal=True, **sizes)


def bits(model: nn.Module, ids: Tensor) -> Tensor:
    """The mean of -log2 p over the bytes of (b, n + 1) ids but the first of each row."""
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:]) / math.log(2)


def windows(ids: Tensor, starts: Tensor, n: int) -> Tensor:
    return ids[starts[:, None] + torch.arange(n + 1)].long()


@torch.no_grad()
def validate(model: nn.Module, ids: Tensor, options: argparse.Namespace) -> float:
    """Over windows that lie side by side from the start of the validation text."""
    starts = torch.arange(options.windows) * options.n
    model.eval()
    found = [bits(model, windows(ids, part, options.n)).item() * len(part) for part in starts.split(options.batch)]
    model.train()
    return sum(found) / options.windows


def train(name: str, seed: int, parts: tuple[Tensor, Tensor], options: argparse.Namespace) -> dict[str, Any]:
    """One run: its validation bits per byte and what it took."""
    torch.manual_seed(seed)
    model = build(name, options)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    chance = torch.Generator().manual_seed(seed)
    begun = time.perf_counter()
    for _ in range(options.steps):
        starts = torch.randint(len(parts[0]) - options.n, (options.batch,), generator=chance)
        loss = bits(model, windows(parts[0], starts, options.n))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
    seconds = time.perf_counter() - begun
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "library": name,
        "seed": seed,
        "bits": validate(model, parts[1], options),
        "parameters": parameters,
        "seconds": seconds,
    }


def read_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", help="a file to train on (default: what xflash.datasets.sequences.text() finds)")
    for name, value in {"dim": 128, "depth": 6, "group_size": 128, "n": 512, "batch": 4, "steps": 300}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--windows", type=int, default=128, help="of n bytes to validate on")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--clip", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args(words)


@flushed()
def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    options = read_options(words)
    text = data.text(options.text)
    splits = data.splits(text)
    parts = data.to_ids(splits.train), data.to_ids(splits.valid)
    options.windows = min(options.windows, (len(parts[1]) - 1) // options.n)
    rows = []
    for seed in options.seeds:
        for name in ("xflash", "flash_pytorch"):
            rows.append(train(name, seed, parts, options))
            print(
                f"{name}, seed {seed}: {rows[-1]['bits']:.3f} bits per byte ({rows[-1]['seconds']:.0f} s)", flush=True
            )
    show(["library", "seed", "bits per byte", "parameters", "seconds"], [list(row.values()) for row in rows])
    medians = {name: median([r["bits"] for r in rows if r["library"] == name]) for name in ("xflash", "flash_pytorch")}
    for name, value in medians.items():
        own = [r["bits"] for r in rows if r["library"] == name]
        print(f"{name}: median {value:.3f}, from {min(own):.3f} to {max(own):.3f}")
    print(keep("bits_per_byte", {"text": str(text), "options": vars(options), "medians": medians, "rows": rows}))
    return rows


if __name__ == "__main__":
    main()
