"""What it costs that tokens see only some of the others, or with a bias: softmax attention beside that of all before.

    python benchmarks/patterns.py

The same tokens in the same layer, with windows, documents, a prefix, padding or biases by distance, and without any
(for those that look both ways: a layer that sees all). All are timed in turn, several rounds of it, so that a busy
moment of the machine hits them alike; memory is what a forward takes at most beyond what its process had, in a process
of its own. `--dense` reads one matrix of all pairs instead, where blocks would be read.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import keep, median, milliseconds, show
from peak import forget_peak, peak_mb

import xflash.layers.blocks.bands as windows
import xflash.layers.blocks.bounded as bounds
from xflash import Decoder, Encoder, PrefixDecoder

Call = Callable[[bool], None]
# Without a pattern, for the others to be compared with.
CAUSAL, BOTH = "all before", "all"


def patterns(options: argparse.Namespace) -> dict[str, tuple[Any, dict[str, Any], dict[str, Any]]]:
    """The kind of stack, its flags, and what a call is given beside x."""
    n, b = options.n, options.rows
    ids = (torch.arange(n, device=options.device) * options.documents // n).expand(b, -1)
    real = n - n * torch.arange(b, device=options.device)[:, None] // (2 * b)
    mask = torch.arange(n, device=options.device) < torch.where(real == n, real - n // 4, real)
    rotary, window = {"pos": "rotary"}, {"pos": "rotary", "attn_window": options.window}
    return {
        CAUSAL: (Decoder, rotary, {}),
        BOTH: (Encoder, rotary, {}),
        "window": (Decoder, window, {}),
        "window and sinks": (Decoder, {**window, "attn_sinks": 4}, {}),
        "window, documents": (Decoder, window, {"doc_ids": ids}),
        "window both ways": (Encoder, window, {"mask": mask}),
        "documents": (Decoder, rotary, {"doc_ids": ids}),
        "prefix": (PrefixDecoder, rotary, {"prefix_attn_len": n // 4}),
        "padded": (Encoder, rotary, {"mask": mask}),
        "alibi": (Decoder, {"pos": "alibi"}, {}),
        "rel_pos": (Decoder, {"pos": "rel_pos"}, {}),
    }


def prepared(name: str, options: argparse.Namespace) -> Call:
    """One layer reading, or one training step of it."""
    torch.manual_seed(0)
    kind, flags, given = patterns(options)[name]
    sizes = {"dim": options.dim, "heads": max(1, options.dim // 64), "attn_dim_head": min(64, options.dim)}
    stack = kind(depth=1, layers="attn", **sizes, **flags).to(options.device)
    x = torch.randn(options.rows, options.n, options.dim, device=options.device)

    def call(train: bool) -> None:
        with torch.set_grad_enabled(train):
            y = stack(x, **given)
        if train:
            stack.zero_grad(set_to_none=True)
            y.square().mean().backward()

    return call


def peak(name: str, options: argparse.Namespace) -> float:
    """Megabytes that a forward takes, in a process of its own."""
    given = vars(options) | {"peak": name}
    words = [f"--{k}={v}" for k, v in given.items() if not isinstance(v, bool)] + ["--dense"] * options.dense
    done = subprocess.run([sys.executable, str(Path(__file__)), *words], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def taken(name: str, options: argparse.Namespace) -> float:
    call = prepared(name, options)
    forget_peak()
    before = peak_mb()
    call(False)
    return peak_mb() - before


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    calls = {name: prepared(name, options) for name in patterns(options)}
    times: dict[str, dict[bool, list[float]]] = {name: {False: [], True: []} for name in calls}
    for i in range(options.rounds + 1):
        for name, call in calls.items():
            for train, found in times[name].items():
                took = milliseconds(lambda call=call, train=train: call(train), options.device)
                if i:
                    found.append(took)
    rows = []
    for name, (kind, _, _) in patterns(options).items():
        whole = times[BOTH if kind is Encoder else CAUSAL]
        ratios = {
            train: median([a / b for a, b in zip(found, whole[train], strict=True)])
            for train, found in times[name].items()
        }
        row = {"pattern": name, "ms": median(times[name][False]), "ratio": ratios[False]}
        row |= {"train_ms": median(times[name][True]), "train_ratio": ratios[True]}
        rows.append(row | {"mb": peak(name, options)} if options.device == "cpu" else row)
    return rows


def read_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    sizes = {"n": 8192, "rows": 1, "dim": 64, "window": 128, "documents": 8, "rounds": 5, "threads": 1}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dense", action="store_true", help="one matrix of all pairs")
    parser.add_argument("--peak", default="", help="only the megabytes of this pattern")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    options = read_options(words)
    torch.set_num_threads(options.threads)
    if options.dense:
        windows.pays, bounds.is_bounded = (lambda *_: False), (lambda *_: False)
    if options.peak:
        print(f"{taken(options.peak, options):.1f}")
        return []
    rows = measure(options)
    show(
        ["pattern", "reading, ms", "ratio", "training step, ms", "ratio", "reading, MB"],
        [list(row.values()) for row in rows],
    )
    print(f"ratio: how many times as long as {CAUSAL!r}, or {BOTH!r} for what looks both ways, the median over rounds")
    print(keep("patterns", {"options": vars(options), "rows": rows}, options.device))
    return rows


if __name__ == "__main__":
    main()
