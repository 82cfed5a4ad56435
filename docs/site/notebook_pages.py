"""Notebooks as pages: their cells and what these printed and drew, as they were committed. Nothing is run."""

from collections.abc import Iterator
from typing import Any

FENCE = "`" * 9


def as_markdown(notebook: dict[str, Any]) -> str:
    """The page of a notebook."""
    return "\n\n".join(part for cell in notebook["cells"] for part in parts(cell))


def parts(cell: dict[str, Any]) -> Iterator[str]:
    """A cell, and each of its outputs."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "code":
        yield fenced("python", source)
        yield from map(shown, cell["outputs"])
    else:
        yield source


def shown(output: dict[str, Any]) -> str:
    """An output in its richest form that a page can have: a picture, HTML, or text."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        return f"![](data:image/png;base64,{''.join(data['image/png'].split())})"
    if "text/html" in data:
        return fenced("{raw} html", "".join(data["text/html"]))
    return fenced("text", "".join(data["text/plain"]))


def fenced(language: str, text: str) -> str:
    return f"{FENCE}{language}\n{text.rstrip()}\n{FENCE}"
