"""Runs the python blocks of a Markdown page top to bottom in one namespace, sizes shrunk by substitutions."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from xflash.base.registry import activations, norms, positions, residuals, scores, weight_fns
from xflash.base.registry import blocks as registered

ROOT = Path(__file__).parents[1]

OTHERS = (norms, positions, residuals, scores, weight_fns, activations)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language, each with the line it starts in."""
    text = page.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


def shrink(code: str, sizes: Mapping[str, str]) -> str:
    for large, small in sizes.items():
        code = code.replace(large, small)
    return code


@contextmanager
def registries_kept() -> Iterator[None]:
    """What a page registers is there while it runs: other tests go over everything that is registered."""
    before = [(registry, dict(registry._parts)) for registry in (registered, *OTHERS)]
    try:
        yield
    finally:
        for registry, parts in before:
            registry._parts = parts


def run(page: Path, sizes: Mapping[str, str] | None = None) -> dict:
    """Executes the page's blocks; tracebacks have the page's line numbers. A substitution without use is an error."""
    sizes = sizes or {}
    found = blocks(page, "python")
    unused = [large for large in sizes if not any(large in code for _, code in found)]
    if unused:
        raise AssertionError(f"{page.name} has no block with {unused}: take them out of the table")
    space: dict = {"__name__": page.stem}
    with registries_kept():
        for line, code in found:
            # Empty lines in front, so that a traceback has the page's own line numbers.
            exec(compile("\n" * (line - 1) + shrink(code, sizes), str(page), "exec"), space)
    return space


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without the table's own two first lines."""
    section = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    if section is None:
        raise AssertionError(f"{page.name} has no heading {heading!r}")
    lines = [line for line in section[1].splitlines() if line.startswith("|")][2:]
    return [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def flags(cell: str) -> dict:
    """The flags that a cell such as `gau_heads=2, pos='rotary'` writes."""
    return eval(f"dict({cell.strip('`')})")


def links(pages: Iterable[Path]) -> list[tuple[Path, str]]:
    """The relative links of the pages."""
    found = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    return [(page, link) for page, link in found if "://" not in link]
