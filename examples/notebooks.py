"""Makes the notebooks from their sources: each is run from top to bottom and kept with what it prints and draws.

    python examples/notebooks.py                         (all of them: a few minutes)
    python examples/notebooks.py first_stack own_parts

A source is Python with cells (`# %%`, jupytext's percent format), and runs as a script too. A cell that says
`small="..."` is what a test runs in its place.
"""

import argparse
import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent


def sources() -> dict[str, Path]:
    """The sources by the names of their notebooks."""
    return {path.stem: path for path in sorted(HERE.glob("*.py")) if path.read_text().startswith("# %% [markdown]\n")}


def read(source: Path) -> NotebookNode:
    """The notebook that a source describes, nothing run yet; its cells are numbered, so that their ids stay."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    return nbformat.from_dict(notebook)


def code(notebook: NotebookNode, small: bool = False) -> list[str]:
    """What its cells run, at the sizes that are shown or at small ones."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell.metadata.get("small", cell.source) if small else cell.source for cell in cells]


def make(source: Path) -> Path:
    """Runs a notebook and writes it beside its source."""
    notebook = read(source)
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3", record_timing=False, coalesce_streams=True)
    # The kernel stands where the source does and finds what this process finds.
    client.resources = {"metadata": {"path": str(source.parent)}}
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.validate(notebook)
    made = source.with_suffix(".ipynb")
    nbformat.write(notebook, made)
    return made


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    known = sources()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all without")
    names = parser.parse_args(words).names or list(known)
    for name in names:
        if name not in known:
            parser.error(f"there is no notebook {name!r} (there are {', '.join(known)})")
        print(make(known[name]), flush=True)


if __name__ == "__main__":
    main()
