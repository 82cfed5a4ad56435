"""What the quick run (`-m 'not slow'`) takes of tests whose cases are many or long; the whole run takes all of them."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

__all__ = ["quick"]


def quick(cases: Iterable[Any], wanted: Callable[[str, int], bool]) -> list:
    """The cases of a parametrised test, slow but for those that are `wanted`, by their id and number."""
    found = []
    for number, case in enumerate(cases):
        values, name = (case.values, case.id) if hasattr(case, "values") else ((case,), str(case))
        marks = () if wanted(name, number) else (pytest.mark.slow,)
        found.append(pytest.param(*values, id=name, marks=marks))
    return found
