"""Whether xflash is right on a GPU, and how fast: one run, within eight minutes, without a network.

    python benchmarks/on_gpu.py --device cuda --minutes 8 --out on_gpu.jsonl

Parts, the most valuable first: `right` (every registered part and every wrapper against the CPU, `on_gpu_right.py`),
`speed` (training steps beside a plain transformer, `on_gpu_speed.py`), `decode` (`on_gpu_decode.py`), `kernel` (FLASH's
kernels in Triton beside the operator that they stand for, `on_gpu_kernel.py`), `compare` (the rows of `compare.py`),
`compile`; beside them, on the CPU, `predicted`: what `roofline.py` says of what `speed` and `decode` measure. Each part
is a process of its own, which has its share of the time and what others left of theirs; what a case gives is written as
a line of JSON at once. A case that fails is a line with its error; one that takes the process with it is left out when
the part is begun again. At the end a picture is drawn of what was measured and what was predicted, beside the lines.
`--device cpu --tiny` tries all of it on a CPU within a minute; its times say nothing.
"""

import argparse
import collections
import contextlib
import gc
import json
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import machine

# Seconds of eight minutes; 'compile' has what is left of the time.
SHARES = {"right": 105, "speed": 145, "decode": 65, "kernel": 45, "compare": 55, "compile": 65}
# On the CPU, while the first of the others is at work.
BESIDE = "predicted"
# What an exit says: the process is of no more use, the part can go on in another.
BROKEN, AGAIN = 75, 6
Row = dict[str, Any]
Case = tuple[str, Callable[[], Iterator[Row]]]


class OutOfTime(BaseException):
    """Raised inside a case that takes too long; no `except Exception` on the way keeps it."""


def cases(part: str, options: argparse.Namespace) -> Iterator[Case]:
    if part == "right":
        import on_gpu_right

        return on_gpu_right.cases(options)
    if part == "decode":
        import on_gpu_decode

        return on_gpu_decode.cases(options)
    if part in ("compare", BESIDE):
        import on_gpu_compare

        return on_gpu_compare.cases(options) if part == "compare" else on_gpu_compare.predicted(options)
    if part == "kernel":
        import on_gpu_kernel

        return on_gpu_kernel.cases(options)
    import on_gpu_speed

    return on_gpu_speed.cases(options) if part == "speed" else on_gpu_speed.compiled(options)


def lines(path: Path, part: str) -> list[Row]:
    """What has been written of a part; a last line that was cut off is none."""
    found = []
    for text in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(text))
    return [row for row in found if row.get("part") == part]


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """OutOfTime after so many seconds, as soon as Python runs."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Part:
    """A part of the run: its cases one after the other, each guarded, each written as it is done."""

    def __init__(self, name: str, options: argparse.Namespace, until: float):
        self.name, self.options, self.until = name, options, until
        self.begun = {row["case"] for row in lines(options.out, name) if "begun" in row}

    def write(self, case: str, **row: Any) -> None:
        with self.options.out.open("a") as out:
            out.write(json.dumps({"part": self.name, "case": case, **row}) + "\n")

    def run(self) -> int:
        """Runs what has not been begun; the exit code."""
        left = [name for name, _ in self.chosen()]
        for name, rows in self.chosen():
            left.remove(name)
            if self.left() < self.options.least:
                left.insert(0, name)
                break
            self.write(name, begun=True)
            if self.one(name, rows):
                return BROKEN
        for name in left:
            self.write(name, skipped="no time left")
        return 0

    def chosen(self) -> Iterator[Case]:
        for name, rows in cases(self.name, self.options):
            if name not in self.begun and self.options.only in name:
                yield name, rows

    def left(self) -> float:
        return self.until - time.monotonic()

    def one(self, name: str, rows: Callable[[], Iterator[Row]]) -> bool:
        """Runs one case; whether it has broken the process."""
        begun, broken = time.perf_counter(), False
        try:
            with limited(min(self.left() + 5, self.options.case_seconds)):
                for row in rows():
                    self.tell(name, row)
        except OutOfTime:
            self.tell(name, {"error": f"stopped after {time.perf_counter() - begun:.0f} s"})
        except torch.cuda.OutOfMemoryError:
            self.tell(name, {"skipped": "out of memory"})
        except ModuleNotFoundError as error:
            self.tell(name, {"skipped": f"no {error.name} here"})
        except Exception as error:
            text = f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"
            self.tell(name, {"error": text[:300]})
            broken = "CUDA error" in str(error) or "device-side assert" in str(error)
        self.write(name, seconds=round(time.perf_counter() - begun, 2))
        if not broken:
            clean(self.options.device)
        return broken

    def tell(self, name: str, row: Row) -> None:
        self.write(name, **row)
        if self.name not in ("right", "compare", BESIDE) or "error" in row or "skipped" in row or row.get("failed"):
            print(f"{self.name:7} {name}: {told(row)}", flush=True)


def told(row: Row) -> str:
    """A row in one line."""
    if row.get("failed"):
        return "; ".join(f"{check}: {error}" for check, error in row["failed"].items())[:400]
    if "error" in row or "skipped" in row or "said" in row:
        return row.get("error") or row.get("skipped") or row["said"]
    shown = {
        "ms": "{:.2f} ms", "ratio": "{:.2f}x floor", "eager_ms": "eager {:.2f}", "host_ms": "host {:.1f}",
        "busy_ms": "busy {:.2f}", "launches": "{} launches", "peak_gb": "{:.1f} GB", "eager_gb": "eager {:.1f} GB",
        "graphs": "{} graphs", "compile_s": "compiled in {:.0f} s", "first_s": "first {:.1f} s",
        "plain_ms": "plain {:.2f}", "off": "off by {:.1e}", "plain_off": "plain {:.1e}",
    }  # fmt: skip
    values = [text.format(row[key]) for key, text in shown.items() if row.get(key)]
    return ", ".join([*([row["size"]] if "size" in row else []), *values, *([row["bits"]] if "bits" in row else [])])


def clean(device: str) -> None:
    """Frees what a case has left."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def summary(part: str, options: argparse.Namespace) -> list[str]:
    """What became of a part's cases; of `right` also where the host waits."""
    rows = lines(options.out, part)
    started, ended = ({row["case"] for row in rows if key in row} for key in ("begun", "seconds"))
    errors = {row["case"] for row in rows if "error" in row}
    left = [row for row in rows if row.get("skipped") != "no time left" or row["case"] not in started]
    skipped = collections.Counter(row["skipped"] for row in left if "skipped" in row)
    text = f"{part}: {len(ended)} cases ran, {len(errors)} broke off"
    text += "".join(f", {count} skipped ({why})" for why, count in skipped.items())
    found = [text + "".join(f", {name} took the process with it" for name in sorted(started - ended))]
    if part == "right":
        failed = [f"{row['case']} ({', '.join(row['failed'])})" for row in rows if row.get("failed")]
        found.append(f"  differ from the CPU: {len(failed)} {'; '.join(failed)}"[:1500])
        waits: dict[str, set[str]] = collections.defaultdict(set)
        for row in rows:
            for call, places in row.get("waits", {}).items():
                for place in places:
                    waits[f"{call} {place}"].add(row["case"])
        found += [f"  waits in {where}: {len(names)} cases, {min(names)}" for where, names in sorted(waits.items())]
    return found


def supervised(part: str, options: argparse.Namespace, until: float) -> None:
    """Runs a part in a process of its own, and goes on behind a case that ended it."""
    for _ in range(AGAIN):
        left = until - time.monotonic()
        if left < options.least:
            break
        same = [
            f"--{name}={getattr(options, name)}"
            for name in ("device", "out", "only", "each", "case_seconds", "backend")
        ]
        same += [f"--{name}" for name in ("tiny", "autocast") if getattr(options, name)]
        command = [sys.executable, __file__, "--here", "--parts", part, f"--minutes={left / 60}", *same]
        try:
            if subprocess.run(command, timeout=left + 20, check=False).returncode == 0:
                break
        except subprocess.TimeoutExpired:
            break


def read_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=[BESIDE, *SHARES], default=[BESIDE, *SHARES])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, help="of the whole run (default: 8, or 1 with --tiny)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/on_gpu.jsonl"), help="continued if there")
    parser.add_argument("--only", default="", help="cases whose names have this in them")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing, for a CPU")
    parser.add_argument("--autocast", action="store_true", help="time with weights in float32 (else in bfloat16)")
    parser.add_argument("--each", type=float, default=1.2, help="seconds that are spent on timing a model")
    parser.add_argument("--case_seconds", type=float, default=60.0, help="that a case may take")
    parser.add_argument("--backend", default=None, help="of torch.compile")
    parser.add_argument("--here", action="store_true", help="run the parts in this process")
    options = parser.parse_args(words)
    options.minutes = options.minutes or (1.0 if options.tiny else 8.0)
    options.backend = options.backend or ("eager" if options.tiny else "inductor")
    options.least = 0.0 if options.tiny else 5.0
    options.each = min(options.each, 0.01) if options.tiny else options.each
    return options


def main(words: list[str] | None = None) -> list[str]:
    options = read_options(words)
    begun = time.monotonic()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # What the peers use and PyTorch has changed since, and its own advice on speed.
    warnings.filterwarnings("ignore")
    if options.here:
        for part, ends in ending(options, begun).items():
            if code := Part(part, options, ends).run():
                sys.exit(code)
        return []
    with options.out.open("a") as out:
        out.write(json.dumps({"part": "machine", "case": "", **machine(options.device)}) + "\n")
    found = []
    ends = ending(options, begun)
    beside = threading.Thread(target=supervised, args=(BESIDE, options, ends.pop(BESIDE, begun)))
    beside.start()
    for part in ends:
        supervised(part, options, ends[part])
        found += summary(part, options)
        print("\n".join(summary(part, options)), flush=True)
    beside.join()
    print("\n".join([*summary(BESIDE, options), *pictured(options)]))
    print(f"{options.out}: {time.monotonic() - begun:.0f} s")
    return found


def ending(options: argparse.Namespace, begun: float) -> dict[str, float]:
    """When each part is to end; what goes on beside the others has all of the time."""
    parts = [part for part in options.parts if part != BESIDE]
    found, ends = {BESIDE: begun + 60 * options.minutes} if BESIDE in options.parts else {}, begun
    for part in parts:
        ends += 60 * options.minutes * SHARES[part] / sum(SHARES[name] for name in parts)
        found[part] = ends
    return found


def pictured(options: argparse.Namespace) -> list[str]:
    """Draws what was measured and predicted, where matplotlib is there; what there is to say of it."""
    import on_gpu_compare

    rows = [row for part in ("speed", "decode", BESIDE) for row in lines(options.out, part)]
    said = [f"  {name}: {ms:.2f} ms, predicted {guess:.2f}" for name, ms, guess in on_gpu_compare.joined(rows) if guess]
    try:
        on_gpu_compare.drawn(rows, path := options.out.with_suffix(".png"))
    except ModuleNotFoundError as error:
        return [*said, f"no picture: there is no {error.name} here"]
    return [*said, str(path)]


if __name__ == "__main__":
    main()
