"""`plot_loss`: losses of training runs as curves, from logs or lists of numbers."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..base.checks import check_count, given, shown
from .picture import picture

__all__ = ["Curve", "curve_of", "plot_loss"]

# The names under which logs keep a loss, and what is measured on text that was held out.
LOSSES, HELD_OUT = ("bits", "loss"), ("valid_bits", "valid_loss")


class Curve(NamedTuple):
    """Numbers by step, and those measured on what was held out, by theirs."""

    steps: list[float]
    values: list[float]
    held_steps: list[float]
    held: list[float]

    def smoothed(self, over: int) -> list[float]:
        """Each the mean of itself and up to `over` - 1 before it."""
        starts = [max(0, i + 1 - over) for i in range(len(self.values))]
        return [sum(self.values[start : i + 1]) / (i + 1 - start) for i, start in enumerate(starts)]


def curve_of(run: Any, by: str = "step") -> Curve:
    """The losses of a run: a folder or a log.jsonl as the examples write, or numbers, one a step, from 1 on.

    by: 'step' or another entry of the log such as 'seconds'.  ValueError for a log without losses.
    """
    if isinstance(run, (str, os.PathLike)):
        return of_log(Path(run), by)
    if not isinstance(run, Sequence) and not hasattr(run, "tolist"):
        raise TypeError(f"a run is a folder, a log.jsonl or a list of numbers, not {given(run)}")
    values = run.tolist() if hasattr(run, "tolist") else list(run)
    if not values or not all(isinstance(value, (int, float)) for value in values):
        raise ValueError(f"a run is a folder, a log.jsonl or a list of numbers, one at least, not {shown(values)}")
    if by != "step":
        raise ValueError(f"by is {shown(by)}, but of a list of numbers nothing is known than their 'step'")
    values = [float(value) for value in values]
    return Curve([float(i + 1) for i in range(len(values))], values, [], [])


def of_log(path: Path, by: str) -> Curve:
    """What a log.jsonl, or the folder that it is in, holds; its last line may be half written."""
    path = path / "log.jsonl" if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"there is no log in {path}: give the folder of a run, or its log.jsonl")
    log = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    name, held = (next((n for n in names if any(n in entry for entry in log)), None) for names in (LOSSES, HELD_OUT))
    if name is None:
        raise ValueError(f"no entry of {path} has {' or '.join(map(repr, LOSSES))}")
    if any(by not in entry for entry in log):
        raise ValueError(f"entries of {path} have no {shown(by)}; they have {', '.join(map(repr, log[0]))}")
    pairs = [(entry[by], entry[name]) for entry in log if name in entry]
    held_pairs = [(entry[by], entry[held]) for entry in log if held in entry]
    return Curve(*columns(pairs), *columns(held_pairs))


def columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [float(step) for step, _ in pairs], [float(value) for _, value in pairs]


def plot_loss(*runs: Any, by: str = "step", smooth: int | None = None, **named: Any) -> Any:
    """A matplotlib figure of the losses of runs: for each a thin line, its running mean, and points for held-out text.

    runs: folders or logs as the examples write them, lists of numbers, or mappings of names to either; named: runs by
    name.  by: what the log counts along, 'step' or 'seconds'.  smooth: how many steps the mean is over (None: a
    fiftieth of them).
    """
    if smooth is not None:
        check_count("smooth", smooth)
    curves = {label: curve_of(run, by) for label, run in by_name(runs, named).items()}
    figure = picture(7, 4)
    axes = figure.add_subplot()
    for i, (label, curve) in enumerate(curves.items()):
        color = f"C{i}"
        axes.plot(curve.steps, curve.values, lw=0.5, alpha=0.4, color=color)
        axes.plot(curve.steps, curve.smoothed(smooth or 1 + len(curve.values) // 50), color=color, label=label)
        axes.plot(curve.held_steps, curve.held, "o", ms=4, color=color)
    axes.set(xlabel=by, ylabel="loss")
    axes.legend()
    return figure


def by_name(runs: tuple, named: Mapping[str, Any]) -> dict[str, Any]:
    """The runs by their names: a folder's its own, that of numbers its place; ValueError for none, or two of a name."""
    pairs = []
    for i, run in enumerate(runs):
        if isinstance(run, Mapping):
            pairs += run.items()
        else:
            pairs.append((named_after(run) if isinstance(run, (str, os.PathLike)) else f"run {i + 1}", run))
    pairs += named.items()
    if not pairs:
        raise ValueError("plot_loss needs a run: a folder with a log.jsonl, or a list of numbers")
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two runs are called {twice[0]!r}: give them names, plot_loss({{'one': ..., 'other': ...}})")
    return dict(pairs)


def named_after(path: str | os.PathLike[str]) -> str:
    """The folder of a run."""
    path = Path(path)
    return path.parent.name if path.name == "log.jsonl" else path.name
