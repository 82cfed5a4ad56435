"""The notebooks run from top to bottom, and are committed as their sources say and with what a run leaves in them."""

import ast
import sys
from pathlib import Path

import code_blocks
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch

sys.path.append(str(code_blocks.ROOT / "examples"))

import notebooks

SOURCES = notebooks.sources()
# How many pictures each has, and some of what it prints, at any size.
SHOWS = {
    "first_stack": (2, ("flash_group_size", "did you mean", "byte")),
    "own_parts": (2, ("block and loop differ by", "average_decay", "it says the same: True")),
    "attention": (5, ("of the weight is on the answers", "16 blocks:")),
    "comparing": (3, ("bits at a rate of", "guessing scores")),
}


def test_these_are_the_notebooks():
    assert set(SHOWS) == set(SOURCES) == {path.stem for path in notebooks.HERE.glob("*.ipynb")}


def cell_of(cell):
    """All of a cell that its source says."""
    return cell.id, cell.cell_type, cell.source, cell.metadata.get("small")


@pytest.mark.parametrize("name", SOURCES)
def test_it_is_what_its_source_says(name):
    kept = nbformat.read(SOURCES[name].with_suffix(".ipynb"), as_version=4)
    nbformat.validate(kept)
    said = notebooks.read(SOURCES[name])
    stale = f"python examples/notebooks.py {name}"
    assert [(c.id, c.cell_type, c.source) for c in kept.cells] == [(c.id, c.cell_type, c.source) for c in said.cells], (
        stale
    )
    assert kept.metadata == said.metadata


@pytest.mark.parametrize("name", SOURCES)
def test_it_is_kept_with_all_that_it_showed(name):
    kept = nbformat.read(SOURCES[name].with_suffix(".ipynb"), as_version=4)
    cells = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    pictures, words = SHOWS[name]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == pictures
    printed = "".join(output.get("text", "") for output in outputs)
    assert all(word in printed for word in words)
    assert not any(output.get("name") == "stderr" or output.output_type == "error" for output in outputs)
    assert str(Path.home()) not in printed


def run(cell, where, space):
    """What a cell shows as its result: the value of its last line, when that is an expression, as a notebook does."""
    tree = ast.parse(cell)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, where, "exec"), space)
    result = None if last is None else eval(compile(last, where, "eval"), space)
    if hasattr(result, "_repr_html_"):
        result._repr_html_()
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_it_runs(name, monkeypatch, capsys):
    """Its cells one after the other at small sizes; what it registers and draws at random stays inside."""
    notebook, drawn, space = notebooks.read(SOURCES[name]), [], {"__name__": "__main__"}
    assert notebooks.code(notebook, small=True) != notebooks.code(notebook)
    monkeypatch.setattr(plt, "show", lambda: drawn.append(plt.gcf()))
    plt.switch_backend("agg")
    with torch.random.fork_rng(), code_blocks.registries_kept():
        for number, cell in enumerate(notebooks.code(notebook, small=True)):
            result = run(cell, f"{name}, code cell {number}", space)
            drawn += [result] if hasattr(result, "_repr_png_") else []
    plt.close("all")
    pictures, words = SHOWS[name]
    printed = capsys.readouterr().out
    assert len(drawn) == pictures and all(word in printed for word in words)


@pytest.mark.slow
# The kernel's client warns of its own event loop and of sockets it closes late.
@pytest.mark.filterwarnings("default")
def test_a_source_becomes_a_notebook(tmp_path):
    source = tmp_path / "tiny.py"
    source.write_text('# %% [markdown]\n# # Tiny\n\n# %% small="n = 2"\nn = 3\n\n# %%\nprint(n)\nprint(2 * n)\nn\n')
    made = notebooks.make(source)
    kept = nbformat.read(made, as_version=4)
    stream, result = kept.cells[2].outputs
    assert kept.cells[0].source == "# Tiny" and stream.text == "3\n6\n" and result.data == {"text/plain": "3"}
    assert notebooks.code(kept, small=True) == ["n = 2", "print(n)\nprint(2 * n)\nn"]
    first = made.read_text()
    assert notebooks.make(source).read_text() == first


def test_a_name_that_there_is_not(capsys):
    with pytest.raises(SystemExit):
        notebooks.main(["first_stick"])
    assert (
        "there is no notebook 'first_stick' (there are attention, comparing, first_stack, own_parts)"
        in capsys.readouterr().err
    )
