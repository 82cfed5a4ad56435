"""xflash beside the libraries people would take instead, as ratios in one run.

    python benchmarks/compare.py

Each row says what was measured, by how much xflash is faster (or smaller), and what it is meant to reach. Contenders
are timed in turn, several rounds of it, so that a busy moment of the machine hits all of them alike; a ratio is the
median of the rounds' ratios. Memory is what a call takes beyond what its process had, in a process of its own. Curves
of time and memory against length are drawn beside the table. One thread, unless --threads says otherwise.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import recurrent
import torch
from common import RESULTS, keep, median, milliseconds, show
from contenders import DIM, decoding, layer, model, paper_pair, training

from xflash.experiments.clock import flushed

OURS = "xflash"
COMPILED = "xflash, compile_step"
TOKENS = 16_384


class Row(NamedTuple):
    """One comparison: how many times as much the peer takes, and how many times it is meant to take."""

    part: str
    what: str
    peer: str
    unit: str
    theirs: float
    ours: float
    ratio: float
    target: float | None

    @property
    def verdict(self) -> str:
        return "" if self.target is None else "met" if self.ratio >= self.target else "missed"


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of every call, round after round, the first one not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            took = milliseconds(call, device)
            if i:
                times[name].append(took)
    return times


def rows_of(
    part: str, what: str, times: dict[str, list[float]], targets: dict[str, float | None], ours: str = OURS
) -> list[Row]:
    """A row for every peer."""
    found = []
    for peer, target in targets.items():
        ratio = median([theirs / mine for theirs, mine in zip(times[peer], times[ours], strict=True)])
        found.append(Row(part, what, peer, "ms", median(times[peer]), median(times[ours]), ratio, target))
    return found


def layers(kind: str, lengths: dict[int, float | None], dtypes: dict[str, float], options: Any) -> list[Row]:
    """Training steps of single layers of one function: ours, the peer's, and ours made of the peer's weights."""
    found = []
    for n, target in lengths.items():
        for dtype, least in dtypes.items():
            sides = {"peer": "FLASH-pytorch", OURS: OURS, "converted": "converted"}
            calls = {name: training(layer(f"{kind} {side}"), n, dtype, options.device) for side, name in sides.items()}
            times = in_turn(calls, options.rounds, options.device)
            what = f"causal {kind.upper()} layer, training step, {n:,} tokens, {dtype}"
            goal = None if target is None else max(target, least)
            for note, ours in ((what, OURS), (f"{what}, its own weights", "converted")):
                found += reported(rows_of(kind, note, times, {"FLASH-pytorch": goal}, ours))
    return found


def gau(options: argparse.Namespace) -> list[Row]:
    return layers("gau", {1024: None, 2048: None, 4096: 3.5}, {"fp32": 0.0}, options)


def flash(options: argparse.Namespace) -> list[Row]:
    return layers("flash", {4096: 1.3, 16_384: 1.5}, {"fp32": 0.0, "bf16": 1.3}, options)


def softmax(options: argparse.Namespace) -> list[Row]:
    """Training steps of a softmax transformer of two layers."""
    n, names = 2048, {"x-transformers": "peer", "x-transformers, attn_flash": "peer, attn_flash", OURS: OURS}
    calls = {name: training(model(f"softmax {side}", 2, n), n, device=options.device) for name, side in names.items()}
    # Within 5 % of the fused kernel, or faster.
    goals: dict[str, float | None] = {"x-transformers": 2.0, "x-transformers, attn_flash": 0.95}
    times = in_turn(calls, options.rounds, options.device)
    return reported(rows_of("softmax", f"softmax transformer, training step, {n:,} tokens", times, goals))


def tokens_in_turn(
    begin: dict[str, Callable[[], Callable[[], Any]]], counts: dict[str, int], rounds: int, device: str
) -> dict[str, list[float]]:
    """Milliseconds a token of every contender, which makes `counts` of them in a row.

    In a row, as when text is generated: one token in turn would find the other library's buffers in the cache.
    """
    times: dict[str, list[float]] = {name: [] for name in begin}
    for i in range(rounds + 1):
        for name, start in begin.items():
            count, step = counts[name], start()
            took = milliseconds(lambda step=step, count=count: [step() for _ in range(count)], device)
            if i:
                times[name].append(took / count)
    return times


def decode(options: argparse.Namespace) -> list[Row]:
    """More tokens behind a context; FLASH-pytorch has no way but to recompute it for each."""
    cases: list[tuple[str, int, str, str, dict[int, float | None]]] = [
        ("softmax", 4, "softmax peer, attn_flash", "x-transformers", {64: 2.0, 960: None, 2048: 4.0}),
        ("flash", 8, "flash peer", "FLASH-pytorch", {2048: 60.0}),
    ]
    found = []
    for kind, depth, theirs, peer, goals in cases:
        what = {"softmax": "softmax transformer of 4 layers", "flash": "FLASHTransformer of 8 layers"}[kind]
        for n, goal in goals.items():
            sides = {peer: theirs, OURS: f"{kind} {OURS}", COMPILED: f"{kind} {COMPILED}"}
            begin = {
                name: decoding(side, model(side, depth, n + options.tokens + 2), n, options.device)
                for name, side in sides.items()
            }
            counts = {peer: options.tokens if kind == "softmax" else 1, OURS: options.tokens, COMPILED: options.tokens}
            times = tokens_in_turn(begin, counts, options.rounds, options.device)
            for ours in (OURS, COMPILED):
                note = f"{what}, a token after {n:,}{ours.removeprefix(OURS)}"
                found += reported(rows_of("decode", note, times, {peer: goal}, ours))
    return found


def block_recurrent(options: argparse.Namespace) -> list[Row]:
    """A generated token of a block-recurrent transformer, see recurrent.py for more of it."""
    prompt, counts = 960, {OURS: 32, "peer": 4}
    settings = recurrent.read_options(["--dim", str(DIM), "--n", "1024"])
    ids = torch.randint(256, (1, prompt), generator=torch.Generator().manual_seed(0)).to(options.device)
    nets = {name: recurrent.build(name, settings).to(options.device).eval() for name in counts}
    times: dict[str, list[float]] = {name: [] for name in counts}
    for _ in range(options.rounds):
        for name, count in counts.items():
            one, more = (recurrent.generated(nets[name], ids, c, options.device) for c in (1, 1 + count))
            times[name].append((more - one) / count)
    named = {OURS: times[OURS], "block-recurrent-transformer-pytorch": times["peer"]}
    return reported(
        rows_of("recurrent", f"block-recurrent transformer, a token after {prompt:,}", named, {list(named)[1]: None})
    )


def peak(kind: str, name: str, n: int, device: str, depth: int = 12) -> float:
    """Megabytes, see peak.py."""
    script = Path(__file__).parent / "peak.py"
    words = [sys.executable, str(script), kind, name, str(n), "--depth", str(depth), "--device", device]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def usual_peak(*case: Any) -> float:
    """The median of three processes: how much of what is freed goes back to the system varies."""
    return median([peak(*case) for _ in range(3)])


def memory(options: argparse.Namespace) -> list[Row]:
    """Peak memory: of a GAU's training step, and of a deep softmax model that only reads."""
    found = []
    compared = [
        ("GAU layer, peak of a training step, 8,192 tokens", "layer", "gau", 8192, "peer", "FLASH-pytorch", 8.0),
        (
            "12 layers, peak of a forward without grad, 1,024 tokens",
            "reading",
            "softmax",
            1024,
            "peer",
            "x-transformers",
            None,
        ),
    ]
    for what, kind, name, n, side, peer, goal in compared:
        theirs, ours = (usual_peak(kind, f"{name} {s}", n, options.device) for s in (side, OURS))
        found += reported([Row("memory", what, peer, "MB", theirs, ours, theirs / ours, goal)])
    return found


def importing(options: argparse.Namespace) -> list[Row]:
    """Seconds that `import xflash` takes when torch is there already; the ratio is 0.2 s over them."""
    code = "import time, torch; t = time.process_time(); import xflash; print(time.process_time() - t)"
    with tempfile.TemporaryDirectory() as compiled:
        # As an installed package is: its bytecode is there from the second run on.
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {
            "PYTHONPYCACHEPREFIX": compiled
        }
        runs = [
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept)
            for _ in range(6)
        ]
    seconds = statistics.median(float(run.stdout) for run in runs[1:])
    return reported([Row("import", "import xflash, torch being there", "0.2 s", "s", 0.2, seconds, 0.2 / seconds, 1.0)])


def paper(options: argparse.Namespace) -> list[Row]:
    """Step time of FLASH beside a Transformer++ of as many parameters, on as many tokens."""
    found = []
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in paper_pair(min(options.lengths)).items()}
    print(", ".join(f"{name}: {size:,} parameters" for name, size in sizes.items()))
    for n in options.lengths:
        calls = {
            name: training(net, n, device=options.device, rows=max(1, TOKENS // n))
            for name, net in paper_pair(n).items()
        }
        times = in_turn(calls, max(1, options.rounds // 2), options.device)
        what = f"FLASH, step on {max(TOKENS, n):,} tokens in rows of {n:,}"
        found += reported(rows_of("paper", what, times, {"Transformer++": None}, "FLASH"))
    return found


PARTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "import": importing,
    "decode": decode,
    "softmax": softmax,
    "flash": flash,
    "gau": gau,
    "memory": memory,
    "recurrent": block_recurrent,
    "paper": paper,
}


def report(row: Row) -> Row:
    """A row as soon as it is known, for a run takes minutes."""
    goal = "" if row.target is None else f" (at least {row.target:g}: {row.verdict})"
    print(
        f"{row.what}: {row.peer} {row.theirs:,.3g} {row.unit}, {OURS} {row.ours:,.3g}: {row.ratio:.2f}{goal}",
        flush=True,
    )
    return row


def reported(rows: list[Row]) -> list[Row]:
    return [report(row) for row in rows]


def curves(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Time and memory of training layers, and time a token, each against length."""
    lengths = [n for n in options.lengths if n <= 8192]
    found: dict[str, dict[str, list[float]]] = {}
    for kind in ("gau", "flash"):
        for side in ("peer", OURS):
            label = f"{kind.upper()}, {'FLASH-pytorch' if side == 'peer' else OURS}"
            used = [n for n in lengths if kind == "flash" or n <= 4096]
            calls = [training(layer(f"{kind} {side}"), n, device=options.device) for n in used]
            found.setdefault("ms of a training step", {})[label] = [
                median(in_turn({"": call}, 2, options.device)[""]) for call in calls
            ]
            found.setdefault("MB at the peak of a training step", {})[label] = [
                peak("layer", f"{kind} {side}", n, options.device) for n in used
            ]
    sides = {
        "softmax, x-transformers": ("softmax peer, attn_flash", 4),
        f"softmax, {OURS}": (f"softmax {OURS}", 4),
        "FLASH, FLASH-pytorch": ("flash peer", 8),
        f"FLASH, {OURS}": (f"flash {OURS}", 8),
    }
    for label, (side, depth) in sides.items():
        count = options.tokens if label.startswith("softmax") or OURS in label else 1
        found.setdefault("ms of a decoded token", {})[label] = [
            median(tokens_in_turn({"": begin}, {"": count}, 3, options.device)[""])
            for begin in (
                decoding(side, model(side, depth, n + options.tokens + 2), n, options.device)
                for n in lengths
                if n <= 4096
            )
        ]
    return found


def plot(drawn: dict[str, dict[str, list[float]]], lengths: list[int], rows: list[Row]) -> list[Path]:
    """A PNG for each quantity, and one of the paper's comparison."""
    from matplotlib.figure import Figure

    pictures = dict(drawn)
    ratios = [row.ratio for row in rows if row.part == "paper"]
    if ratios:
        pictures["times as fast as a Transformer++"] = {"FLASH": ratios}
    paths = []
    for name, lines in pictures.items():
        axes = (figure := Figure(figsize=(7, 4.5), layout="constrained")).add_subplot()
        for label, values in lines.items():
            axes.plot(lengths[: len(values)], values, "o-", label=label)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="tokens", ylabel=name, yscale="linear" if "times" in name else "log")
        axes.legend()
        paths.append(RESULTS / f"compare {name}.png".replace(" ", "_"))
        figure.savefig(paths[-1], dpi=120)
    return paths


def read_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=64, help="decoded in a row")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512 * 2**i for i in range(6)], help="of the curves")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no_curves", action="store_true", help="the table only")
    options = parser.parse_args(words)
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}; there are {', '.join(PARTS)}")
    return options


@flushed()
def main(words: list[str] | None = None) -> list[Row]:
    options = read_options(words)
    torch.set_num_threads(options.threads)
    # Names that the peers use and PyTorch has changed since.
    warnings.filterwarnings("ignore", category=FutureWarning)
    rows = [row for part in options.parts for row in PARTS[part](options)]
    drawn = {} if options.no_curves else curves(options)
    print()
    show(
        ["what", "peer", "unit", "peer's", "xflash's", "ratio", "at least", ""],
        [
            [r.what, r.peer, r.unit, r.theirs, r.ours, r.ratio, "" if r.target is None else r.target, r.verdict]
            for r in rows
        ],
    )
    print("ratio: how many times as much the peer takes, the median over rounds")
    result = {"options": vars(options), "rows": [{**r._asdict(), "verdict": r.verdict} for r in rows], "curves": drawn}
    print(keep("compare", result, options.device), *plot(drawn, options.lengths, rows))
    return rows


if __name__ == "__main__":
    main()
