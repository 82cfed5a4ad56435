"""Tables as text and as HTML: the first column and columns of words to the left, numbers to the right."""

from collections.abc import Collection, Sequence
from html import escape

__all__ = ["html_table", "text_table"]

Cells = Sequence[str]


def text_table(
    head: Cells, rows: Sequence[Cells], note: str = "", words: bool | Collection[str] = False, ruled: bool = False
) -> str:
    """Columns as wide as they need to be.

    words: which columns are of words, by their heads, or whether all are.  ruled: a line below the head.
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    sides = [str.ljust if is_left else str.rjust for is_left in to_the_left(head, words)]
    lines = [
        "  ".join(put(cell, width) for put, cell, width in zip(sides, line, widths, strict=True)).rstrip()
        for line in (head, *rows)
    ]
    rule = ["-" * (sum(widths) + 2 * len(widths) - 2)] * ruled
    return "\n".join([*lines[:1], *rule, *lines[1:], *[note] * bool(note)])


def html_table(
    head: Cells, rows: Sequence[Cells], note: str = "", words: bool | Collection[str] = False, caption: str = ""
) -> str:
    """The same for notebooks, each line of the note a paragraph."""
    sides = ["left" if is_left else "right" for is_left in to_the_left(head, words)]
    body = "".join(html_line("td", row, sides) for row in rows)
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    below = "".join(f"<p>{escape(line)}</p>" for line in note.splitlines())
    return f"<table>{above}<thead>{html_line('th', head, sides)}</thead><tbody>{body}</tbody></table>{below}"


def to_the_left(head: Cells, words: bool | Collection[str]) -> list[bool]:
    """Which columns begin at the same place, those of numbers end there."""
    return [i == 0 or (words if isinstance(words, bool) else name in words) for i, name in enumerate(head)]


def html_line(tag: str, cells: Cells, sides: Cells) -> str:
    """A row of cells."""
    pairs = zip(sides, cells, strict=True)
    return "<tr>" + "".join(f'<{tag} style="text-align:{side}">{escape(c)}</{tag}>' for side, c in pairs) + "</tr>"
