"""What training steps and decoded tokens cost a GPU, without one: launches, bytes, FLOPs, and the time of these.

    python benchmarks/roofline.py                     all rows, some minutes
    python benchmarks/roofline.py flash 'x 8,192'     those with one of the words in their names
    python benchmarks/roofline.py --goals             what this version is meant to reach
    python benchmarks/roofline.py 'train 8 x 2,048: flash' --by op      where a row's time goes (or --by place)

Models are run by shape only on a stand-in device (`roofline_device.py`), forward and backward; every call that a GPU
would get is counted (`roofline_run.py`, custom operators opened), and timed by the rates of an H200, of which
`roofline_costs.py` says which are assumed. time = max(host, device): host = launches x 6 us, device = the sum over
kernels of the longest of bytes / 4.8e12, FLOPs / rate, and 2 us. Counts are exact; times are predictions, which no GPU
has been asked about: trust ratios of similar programs more than milliseconds. Rows with "compiled" in their names are
the kernels that torch.compile would make (`roofline_compiled.py`).
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from common import keep, show
from gpu_models import FULL, TINY
from roofline_rows import FLOOR, KERNEL, Row, Rows

__all__ = ["main"]

TRAIN, LONG = "train 8 x 2,048", "train 8 x 8,192"
ONE, MANY = "token b=1 after 2,048", "token b=64 after 2,048 ragged"


class Goal(NamedTuple):
    """A row, what of it counts, and what it is to be at most; over: the row that it is measured by."""

    row: str
    value: str
    most: float
    over: str = ""


FLEXIBLE = ("attn ff, doc_ids", "Encoder attn ff, padded", "attn ff, alibi", "attn ff, rel_pos")
GOALS = (
    Goal(f"{TRAIN}: flash", "ms", 1.25, f"{TRAIN}: {FLOOR}"),
    Goal(f"{LONG}: flash", "ms", 0.75, f"{LONG}: {FLOOR}"),
    Goal(f"{TRAIN}, compiled: flash", "ms", 1.25, f"{TRAIN}, compiled: {FLOOR}"),
    Goal(f"{LONG}, compiled: flash", "ms", 0.75, f"{LONG}, compiled: {FLOOR}"),
    Goal(f"{TRAIN}: {KERNEL}", "ms", 1.0, f"{TRAIN}: {FLOOR}"),
    Goal(f"{LONG}: {KERNEL}", "ms", 0.55, f"{LONG}: {FLOOR}"),
    Goal(f"{LONG}: attn(window=512) ff", "ms", 190),
    *(Goal(f"{LONG}: {name}", "ms", 290) for name in FLEXIBLE),
    Goal(f"{ONE}: flash", "launches", 611 / 2),
    Goal(f"{ONE}: attn ff", "launches", 200 / 2),
    Goal(f"{MANY}: flash", "ms", 3),
    Goal(f"{LONG}: gau", "ms", 310),
)


def counted(names: list[str], ways: dict[str, Callable[[], Row]]) -> dict[str, Row]:
    """The rows, said as they come; one that fails is said and left out."""
    found: dict[str, Row] = {}
    for name in names:
        begun = time.perf_counter()
        try:
            found[name] = ways[name]()
        except Exception as error:
            text = (str(error).strip() or "-").splitlines()[0]
            print(f"{name}: {type(error).__name__}: {text[:200]}", flush=True)
            continue
        row = found[name]
        note = f", waits: {'; '.join(row.waits)}" if row.waits else ""
        took = time.perf_counter() - begun
        print(f"{name}: {row.launches:,} launches, {row.ms:.2f} ms ({took:.1f} s){note}", flush=True)
    return found


def over(row: Row, floors: dict[str, float]) -> float | str:
    """Its time in times of the plain transformer's, whose rows are alike."""
    floor = floors.get(row.size.removesuffix(" ragged"))
    return row.ms / floor if floor else ""


def table(rows: list[Row]) -> list[list[Any]]:
    floors = {row.size: row.ms for row in rows if row.what == FLOOR}
    return [
        [
            f"{row.size}: {row.what}", row.launches, row.gb, row.tflop, row.host_ms, row.device_ms, row.ms, row.bound,
            row.peak_gb, over(row, floors), len(row.waits),
        ]
        for row in rows
    ]  # fmt: skip


def goals(found: dict[str, Row]) -> list[list[Any]]:
    lines = []
    for goal in GOALS:
        if goal.row not in found or (goal.over and goal.over not in found):
            continue
        value = getattr(found[goal.row], goal.value)
        if goal.over:
            value /= getattr(found[goal.over], goal.value)
        unit = "of the floor" if goal.over else goal.value
        lines.append([goal.row, unit, float(value), float(goal.most), "met" if value <= goal.most else "missed"])
    return lines


def read_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rows", nargs="*", help="rows with one of these in their names (default: all)")
    parser.add_argument("--goals", action="store_true", help="the rows of the goals")
    parser.add_argument("--by", default="", choices=["op", "place"], help="also where each row's time goes")
    parser.add_argument("--list", action="store_true", help="names of rows only")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing")
    return parser.parse_args(words)


def chosen(options: argparse.Namespace, names: list[str]) -> list[str]:
    wanted = {name for goal in GOALS for name in (goal.row, goal.over)} if options.goals else set()
    words = options.rows or ([] if options.goals else [""])
    return [name for name in names if name in wanted or any(word in name for word in words)]


def main(words: list[str] | None = None) -> dict[str, Row]:
    options = read_options(words)
    warnings.filterwarnings("ignore")
    rows = Rows(TINY if options.tiny else FULL, options.by)
    ways = rows.named((9,), (1, 5)) if options.tiny else rows.named((2048,), (1, 64))
    names = chosen(options, list(ways))
    if not names:
        sys.exit(f"no row has {' or '.join(map(repr, options.rows))} in its name; --list shows them")
    if options.list:
        print("\n".join(names))
        return {}
    found = counted(names, ways)
    print()
    columns = ["row", "launches", "GB", "TFLOP", "host ms", "device ms", "ms", "bound", "peak GB", "floors", "waits"]
    show(columns, table(list(found.values())))
    if reached := goals(found):
        print()
        show(["goal", "in", "is", "at most", ""], reached)
    print(keep("roofline", {"options": vars(options), "rows": {name: row._asdict() for name, row in found.items()}}))
    return found


if __name__ == "__main__":
    main()
