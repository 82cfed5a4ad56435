"""Figures that notebooks show and that need no display."""

import io
from typing import Any

__all__ = ["check_row", "grid", "picture"]

# Inches that a panel takes.
PANEL = 2.4


def picture(width: float, height: float) -> Any:
    """An empty figure of so many inches; ImportError where there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need matplotlib: pip install matplotlib") from None

    class Picture(Figure):
        """A figure that is its own picture, whether pyplot was imported or not."""

        def _repr_png_(self) -> bytes:
            self.savefig(file := io.BytesIO(), format="png")
            return file.getvalue()

    return Picture(figsize=(width, height), layout="constrained")


def check_row(row: Any, rows: int) -> None:
    """ValueError for a row that a batch does not have."""
    if not isinstance(row, int) or isinstance(row, bool) or not -rows <= row < rows:
        raise ValueError(f"row must be one of the {rows} of the batch, -{rows} to {rows - 1}, not {row!r}")


def grid(rows: int, columns: int, **options: Any) -> tuple[Any, Any]:
    """A figure of panels, and these as an array (rows, columns)."""
    figure = picture(max(PANEL * columns, 2 * PANEL), PANEL * rows + 0.3)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)
