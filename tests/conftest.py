"""The examples as modules; counts of what was tried (flags, values, random cases), printed at the end of the run."""

import importlib
import os
from collections import Counter
from pathlib import Path

import pytest

# Two test processes with spinning OpenMP threads each starve one another; read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config):
    # Of Dynamo's own making, and hidden by it as far as it is no error.
    config.addinivalue_line("markers", "thorough: one more of many cases, run with XFLASH_THOROUGH=1 (tests/quick.py)")
    config.addinivalue_line("filterwarnings", "ignore:The .grad attribute of a Tensor that is not a leaf")


def pytest_collection_modifyitems(config, items):
    """Leaves out the thorough tests, unless all are asked for."""
    thorough = [item for item in items if item.get_closest_marker("thorough")]
    if thorough and not os.environ.get("XFLASH_THOROUGH"):
        config.hook.pytest_deselected(items=thorough)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]


@pytest.fixture(scope="session")
def examples():
    """Imports a script of examples/ by name, or what stands beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
        yield importlib.import_module


def pytest_terminal_summary(terminalreporter):
    count_combinations(terminalreporter)
    count_arguments(terminalreporter)


def properties(terminalreporter, *outcomes):
    """What each test has recorded, by its outcome."""
    for outcome in outcomes:
        for report in terminalreporter.stats.get(outcome, ()):
            yield outcome, dict(getattr(report, "user_properties", ()))


def count_arguments(terminalreporter):
    total = Counter()
    for _, found in properties(terminalreporter, "passed", "failed"):
        total.update(found.get("arguments", {}))
    if total:
        terminalreporter.write_line(
            f"values of arguments: {total['tried']} tried, {total['refused']} refused, {total['right']} right after "
            f"all, {total['meant']} of a documented meaning, {total['wrong']} wrong"
        )


def count_combinations(terminalreporter):
    tried = wrong = refused = 0
    for outcome, found in properties(terminalreporter, "passed", "failed"):
        if "combination" in found:
            tried += 1
            wrong += outcome == "failed"
        refused += found.get("refused", 0)
        if "search" in found:
            terminalreporter.write_line(found["search"])
    if tried:
        every = tried + refused
        terminalreporter.write_line(
            f"flag combinations: {every} tried, {refused} refused ({refused / every:.0%}), {wrong} wrong"
        )
