"""The notebook runs from top to bottom, and is committed without what a run leaves in it."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_stack.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_committed_clean(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.slow
# The kernel's client warns of its own event loop and of sockets it closes late.
@pytest.mark.filterwarnings("default")
def test_it_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    steps = [cell for cell in notebook.cells if "STEPS, BATCH, LENGTH = 100" in cell.source]
    assert len(steps) == 1
    steps[0].source = steps[0].source.replace("STEPS, BATCH, LENGTH = 100", "STEPS, BATCH, LENGTH = 7")
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    printed = "".join(output.get("text", "") for output in outputs)
    assert len(pictures) == 2
    assert "flash_group_size" in printed and "did you mean" in printed
