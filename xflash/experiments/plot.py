"""The curves of a comparison."""

from typing import Any

from ..base.checks import shown
from ..look.picture import picture
from .results import Row

__all__ = ["check_axis", "curves", "plot"]

AXES = {"steps": "steps", "seconds": "seconds of compute", "flops": "FLOPs of training"}


def check_axis(against: Any) -> None:
    """ValueError for an axis that there is not."""
    if against not in AXES:
        raise ValueError(f"against is {shown(against)}; possible are {', '.join(map(repr, AXES))}")


def curves(comparison: Any, against: str) -> dict[str, list[list[tuple[float, float]]]]:
    """For each variant its runs at the best rate, as points (x, score)."""
    check_axis(against)
    found: dict[str, list[list[tuple[float, float]]]] = {}
    for row in comparison.rows:
        runs = [run for run in comparison.runs if run.name == row.name and run.lr == row.lr and run.looks]
        found[row.name] = [
            [(step * width(run, row, comparison.task, against), score) for step, score in run.looks] for run in runs
        ]
    return found


def width(run: Any, row: Row, task: Any, against: str) -> float:
    """What a step is worth on the axis."""
    if against == "seconds":
        return run.seconds / max(1, run.step)
    return (row.training_flops or 0.0) * task.units if against == "flops" else 1.0


def plot(comparison: Any, against: str, file: Any) -> Any:
    """The figure; a notebook shows it."""
    found = curves(comparison, against)
    figure = picture(8, 5)
    axes = figure.add_subplot()
    for number, (name, runs) in enumerate(found.items()):
        for points in runs:
            label = name if points is runs[0] else None
            axes.plot(*zip(*points, strict=True), "o-", ms=3, lw=1, color=f"C{number}", label=label)
    axes.set(xlabel=AXES[against], ylabel=comparison.task.score_name, title=comparison.task.name)
    if against == "flops":
        axes.set_xscale("log")
    if any(found.values()):
        axes.legend()
    if file is not None:
        figure.savefig(file, dpi=120)
    return figure
