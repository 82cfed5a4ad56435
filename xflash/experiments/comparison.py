"""`Comparison`: what `xflash.compare` gives."""

import importlib
import json
from collections.abc import Sequence
from typing import Any

from .lane import Lane
from .results import Row
from .table import as_html, as_text
from .tasks.task import Task

__all__ = ["Comparison"]


class Comparison:
    """The rows of a comparison, the best first; shown as text in a terminal and as a table in a notebook.

    `rows` hold the numbers (`Row`), `runs` what each run went through: losses and looks by step. `changed` says which
    widths were matched.
    """

    def __init__(self, rows: list[Row], runs: Sequence[Lane], task: Task, about: str, changed: list[str]):
        self.rows, self.runs, self.task, self.about, self.changed = rows, list(runs), task, about, changed

    def __getitem__(self, name: str) -> Row:
        """The row of a variant; KeyError for one that there is not."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no variant {name!r}; there are {', '.join(repr(row.name) for row in self.rows)}")

    def __str__(self) -> str:
        return as_text(self.rows, self.task, "\n".join([self.about, *self.changed]))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self.rows, self.task, "; ".join([self.about, *self.changed]))

    def to_json(self) -> str:
        """Everything in the table, as JSON."""
        held = {"about": self.about, "changed": self.changed, "score": self.task.score_name, "better": self.task.better}
        return json.dumps({**held, "rows": [row.as_json() for row in self.rows]}, indent=2)

    def to_pandas(self) -> Any:
        """A DataFrame with a row a variant; ImportError where pandas is not installed."""
        return importlib.import_module("pandas").DataFrame([row.as_json() for row in self.rows]).set_index("name")

    def plot(self, against: str = "steps", file: Any = None) -> Any:
        """A figure of the seeds at the best rate: looks against 'steps', 'seconds' or 'flops' of training.

        Looks are scores on an eighth of the held-out data. file: also saved there. ImportError where matplotlib is not
        installed.
        """
        from .plot import plot

        return plot(self, against, file)
