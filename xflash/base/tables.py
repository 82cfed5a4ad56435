"""Tables as text and as HTML: the first column and columns of words to the left, numbers to the right."""

from collections.abc import Sequence
from html import escape

__all__ = ["html_table", "text_table"]

Cells = Sequence[str]


def text_table(head: Cells, rows: Sequence[Cells], note: str = "", words: bool = False) -> str:
    """Columns as wide as they need to be; words: all are of words."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    sides = [str.ljust, *[str.ljust if words else str.rjust] * (len(head) - 1)]
    lines = [
        "  ".join(put(cell, width) for put, cell, width in zip(sides, line, widths, strict=True))
        for line in (head, *rows)
    ]
    return "\n".join([line.rstrip() for line in lines] + [note] * bool(note))


def html_table(head: Cells, rows: Sequence[Cells], note: str = "", words: bool = False) -> str:
    """The same for notebooks."""
    sides = ["left", *["left" if words else "right"] * (len(head) - 1)]
    body = "".join(html_line("td", row, sides) for row in rows)
    below = f"<p>{escape(note)}</p>" if note else ""
    return f"<table><thead>{html_line('th', head, sides)}</thead><tbody>{body}</tbody></table>{below}"


def html_line(tag: str, cells: Cells, sides: Cells) -> str:
    """A row of cells."""
    pairs = zip(sides, cells, strict=True)
    return "<tr>" + "".join(f'<{tag} style="text-align:{side}">{escape(c)}</{tag}>' for side, c in pairs) + "</tr>"
