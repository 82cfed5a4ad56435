"""The examples as modules; the counts of the combinations and cases that were tried, printed at the end of the run."""

import importlib
import os
from pathlib import Path

import pytest

# Two test processes with spinning OpenMP threads each starve one another; read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config):
    # Of Dynamo's own making, and hidden by it as far as it is no error.
    config.addinivalue_line("filterwarnings", "ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(scope="session")
def examples():
    """Imports a script of examples/ by name, or what stands beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
        yield importlib.import_module


def pytest_terminal_summary(terminalreporter):
    tried = wrong = refused = 0
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            properties = dict(getattr(report, "user_properties", ()))
            if "combination" in properties:
                tried += 1
                wrong += outcome == "failed"
            refused += properties.get("refused", 0)
            if "search" in properties:
                terminalreporter.write_line(properties["search"])
    if tried:
        every = tried + refused
        terminalreporter.write_line(
            f"flag combinations: {every} tried, {refused} refused ({refused / every:.0%}), {wrong} wrong"
        )
