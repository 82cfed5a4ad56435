"""What a run may cost: '60s', '5 min', '2000 steps', '5M tokens'."""

import math
import re
from typing import Any, NamedTuple

from ..base.checks import describe
from ..base.registry import nearest

__all__ = ["Budget", "read_budget"]

UNITS = {"s": ("seconds", 1), "sec": ("seconds", 1), "seconds": ("seconds", 1), "min": ("seconds", 60)}
UNITS |= {"minutes": ("seconds", 60), "h": ("seconds", 3600), "hours": ("seconds", 3600)}
UNITS |= {"step": ("steps", 1), "steps": ("steps", 1), "tokens": ("tokens", 1)}
FACTORS = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
POSSIBLE = "possible are '60s', '5 min', '2000 steps' and '5M tokens'"


class Budget(NamedTuple):
    """An amount of 'seconds' (of compute), 'steps' or 'tokens'."""

    amount: float
    unit: str

    def steps(self, tokens: int) -> int | None:
        """The steps it buys at so many tokens a step, one at least; None where only the speed says how many."""
        if self.unit == "seconds":
            return None
        return max(1, round(self.amount if self.unit == "steps" else self.amount / tokens))

    def __str__(self) -> str:
        return f"{self.amount:,.15g} {self.unit}"


def read_budget(given: Any) -> Budget:
    """The budget that a text names; TypeError or ValueError for what names none."""
    if not isinstance(given, str):
        raise TypeError(f"budget must be a text with its unit, not {describe(given)}; {POSSIBLE}")
    match = re.fullmatch(r"\s*([\d_.,]+(?:e\d+)?)\s*([kMG]?)\s*([a-z]+)\s*", given)
    if match is None:
        raise ValueError(f"budget={given!r} is no number with a unit; {POSSIBLE}")
    number, factor, unit = match.groups()
    if unit not in UNITS:
        raise ValueError(f"budget={given!r} has the unit {unit!r}{nearest(unit, UNITS)}; {POSSIBLE}")
    try:
        amount = float(number.replace(",", "").replace("_", "")) * FACTORS[factor] * UNITS[unit][1]
    except ValueError:
        raise ValueError(f"budget={given!r}: {number!r} is no number; {POSSIBLE}") from None
    if not math.isfinite(amount):
        raise ValueError(f"budget={given!r} has no end; {POSSIBLE}")
    if UNITS[unit][0] == "steps" and amount != round(amount):
        raise ValueError(f"budget={given!r} is no whole number of steps; {POSSIBLE}")
    if not amount > 0:
        raise ValueError(f"budget={given!r} buys nothing; {POSSIBLE}")
    return Budget(amount, UNITS[unit][0])
