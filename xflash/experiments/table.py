"""A comparison as a table: text for terminals, HTML for notebooks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..base.tables import html_table, text_table
from .results import Row
from .tasks.task import Task

__all__ = ["as_html", "as_text"]


class Column(NamedTuple):
    """A heading, and the cell of a row: '' where there is nothing."""

    heading: str
    cell: Callable[[Row], str]


def amount(value: float | None, shape: str, scale: float = 1.0) -> str:
    return "" if value is None else format(value / scale, shape)


def score(row: Row) -> str:
    """The mean and the spread, or why there is none."""
    if row.score is None:
        return row.failed
    said = f"{row.score:.3f}" + ("" if row.spread is None else f" ±{row.spread:.3f}")
    return f"{said} ≈" if row.level else said


def other_rates(row: Row) -> str:
    """The scores at the rates that were not the best, and what was lost."""
    said = [f"{rate}: {sum(values) / len(values):.3f}" for rate, values in row.scores.items() if rate != f"{row.lr:g}"]
    return "; ".join([*said, *(f"{run} {why}" for run, why in row.lost.items() if why != row.failed)])


def columns(task: Task) -> list[Column]:
    """All columns of a task."""
    unit = task.unit
    return [
        Column("variant", lambda row: row.name),
        Column("layers", lambda row: row.layers),
        Column("dim", lambda row: str(row.dim or "")),
        Column("parameters", lambda row: amount(row.parameters, ",.0f")),
        Column(f"MFLOP/{unit}", lambda row: amount(row.flops, ",.2f", 1e6)),
        Column(f"{unit}s/s", lambda row: amount(row.speed, ",.0f" if unit != "step" else ",.1f")),
        Column("peak MB", lambda row: amount(row.peak_bytes, ",.1f", 1e6)),
        Column("steps", lambda row: amount(row.steps, ",.0f")),
        Column(task.score_name, score),
        Column("lr", lambda row: amount(row.lr, "g")),
        Column("at other rates", other_rates),
        Column("ms/token", lambda row: amount(row.decode_ms, ",.2f")),
        Column("state B/token", lambda row: amount(row.state_bytes, ",.0f")),
    ]


def cells(rows: Sequence[Row], task: Task) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, without the columns in which nothing is."""
    made = [(column.heading, [column.cell(row) for row in rows]) for column in columns(task)]
    kept = [(heading, values) for heading, values in made if any(values) or heading == task.score_name]
    return [heading for heading, _ in kept], [list(row) for row in zip(*(values for _, values in kept), strict=True)]


def notes(rows: Sequence[Row], task: Task) -> list[str]:
    """What the signs in the table mean."""
    said = [f"{task.score_name}: {task.better} is better; ± half of what lies between the seeds"]
    if all(row.spread is None for row in rows):
        said = [f"{task.score_name}: {task.better} is better; one seed, so nobody knows what a difference is worth"]
    if any(row.level for row in rows):
        said.append("≈ no worse than the row above by more than the seeds differ")
    return said


def as_text(rows: Sequence[Row], task: Task, about: str) -> str:
    """The table for a terminal."""
    note = "\n".join(notes(rows, task))
    return f"{about}\n{text_table(*cells(rows, task), note, words(task), ruled=True)}"


def as_html(rows: Sequence[Row], task: Task, about: str) -> str:
    """The table for a notebook."""
    return html_table(*cells(rows, task), "\n".join(notes(rows, task)), words(task), caption=about)


def words(task: Task) -> set[str]:
    """The columns that are no plain numbers."""
    return {"variant", "layers", task.score_name, "at other rates"}
