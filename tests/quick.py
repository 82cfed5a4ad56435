"""Three sizes of a run: `-m 'not slow'` takes of tests with many or long cases the short ones, a usual run all but the
thorough ones, and with XFLASH_THOROUGH=1, as `.ci/run` says, all are run.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

__all__ = ["THOROUGH", "quick"]

THOROUGH = (pytest.mark.slow, pytest.mark.thorough)


def every(name: str, number: int) -> bool:
    return True


def quick(cases: Iterable[Any], wanted: Callable[[str, int], bool], usual: Callable[[str, int], bool] = every) -> list:
    """The cases of a test, by their id and number: slow but for those `wanted`, thorough but for those `usual`."""
    found = []
    for number, case in enumerate(cases):
        values, name = (case.values, case.id) if hasattr(case, "values") else (case, None)
        values = values if isinstance(values, tuple) else (values,)
        name = name or "-".join(map(str, values))
        marks = () if wanted(name, number) else THOROUGH[:1] if usual(name, number) else THOROUGH
        found.append(pytest.param(*values, id=name, marks=marks))
    return found
