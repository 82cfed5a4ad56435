"""Tables as text and as HTML."""

from collections.abc import Sequence
from html import escape

__all__ = ["html_table", "text_table"]


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """Columns as wide as they need to be; all but the first are numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in (head, *rows)]
    return "\n".join([line.rstrip() for line in lines] + [note] * bool(note))


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """The same for notebooks."""
    body = "".join(html_line("td", row) for row in rows)
    below = f"<p>{escape(note)}</p>" if note else ""
    return f"<table><thead>{html_line('th', head)}</thead><tbody>{body}</tbody></table>{below}"


def html_line(tag: str, cells: Sequence[str]) -> str:
    """A row of cells."""
    sides = ["left", *["right"] * (len(cells) - 1)]
    inner = [
        f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>' for side, cell in zip(sides, cells, strict=True)
    ]
    return f"<tr>{''.join(inner)}</tr>"
