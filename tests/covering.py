"""Combinations of choices in which every two choices meet, unless what is built of them is refused."""

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

# One choice of an axis, as their numbers.
Pick = tuple[int, int]
# Of so many combinations that could come next the one that has most choices meet is taken.
TRIES = 12


def merged(row: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {flag: value for choice in row.values() for flag, value in choice.items()}


def as_row(domain: dict[str, list[dict[str, Any]]], indices) -> dict[str, dict[str, Any]]:
    """A combination from the indices of its choices."""
    return {name: domain[name][i] for name, i in zip(domain, indices, strict=True)}


def refusal(build, causal: bool, row: dict[str, dict[str, Any]]) -> str:
    """Why a combination is refused, or ''."""
    try:
        with torch.device("meta"):
            build(causal, row)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


class Cover:
    """Finds combinations, one after the other: each begins with two choices that have not met, and takes of every
    further axis the choice that has most to meet among those it has.

    What is refused is looked into: the least parts of it that are refused beside defaults are in no combination again.
    """

    def __init__(self, domain: dict[str, list[dict[str, Any]]], build: Any, causal: bool):
        self.domain, self.build, self.causal = domain, build, causal
        self.sizes = [len(choices) for choices in domain.values()]
        self.barred: list[frozenset[Pick]] = []
        self.by_pick: dict[Pick, list[frozenset[Pick]]] = {}
        self.refused: list[tuple[int, ...]] = []
        self.accepted: list[tuple[int, ...]] = []
        pairs = itertools.combinations([(a, i) for a, size in enumerate(self.sizes) for i in range(size)], 2)
        self.open = dict.fromkeys(pair for pair in pairs if pair[0][0] != pair[1][0])

    def is_refused(self, indices: Iterable[int]) -> bool:
        return bool(refusal(self.build, self.causal, as_row(self.domain, indices)))

    def bar(self, row: tuple[int, ...]) -> None:
        """Notes a refused combination, and all that is to blame: part by part, the ones before left at defaults."""
        self.refused.append(row)
        while self.is_refused(row):
            blame = self.least(row)
            self.barred.append(blame)
            for pick in blame:
                self.by_pick.setdefault(pick, []).append(blame)
            row = tuple(0 if (at, i) in blame else i for at, i in enumerate(row))

    def least(self, row: tuple[int, ...]) -> frozenset[Pick]:
        """The least part of a refused combination that is refused beside defaults."""
        kept = list(row)
        for at in range(len(row)):
            trial = [*kept[:at], 0, *kept[at + 1 :]]
            kept = trial if kept[at] and self.is_refused(trial) else kept
        return frozenset((at, i) for at, i in enumerate(kept) if i)

    def fits(self, pick: Pick, chosen: set[Pick]) -> bool:
        return not any(blame - {pick} <= chosen for blame in self.by_pick.get(pick, ()))

    def filled(self, pair: tuple[Pick, Pick]) -> tuple[int, ...] | None:
        """A combination that has both, None where what is barred leaves none."""
        chosen: set[Pick] = set()
        for pick in pair:
            if not self.fits(pick, chosen):
                return None
            chosen.add(pick)
        left = [axis for axis in range(len(self.sizes)) if axis not in (pair[0][0], pair[1][0])]
        # Axes of many choices first: the others find a place beside them.
        for axis in sorted(left, key=lambda axis: -self.sizes[axis]):
            able = [(axis, i) for i in range(self.sizes[axis]) if self.fits((axis, i), chosen)]
            if not able:
                return None
            chosen.add(max(able, key=lambda pick: self.gain(pick, chosen)))
        return tuple(i for _, i in sorted(chosen))

    def gain(self, pick: Pick, chosen: set[Pick]) -> tuple[int, int]:
        """How many pairs a further choice would have meet, and then how seldom it has been taken."""
        fresh = sum((pick, other) in self.open or (other, pick) in self.open for other in chosen)
        return fresh, -self.taken[pick]

    def met(self, row: tuple[int, ...]) -> int:
        """How many pairs a combination would have meet."""
        return sum(pair in self.open for pair in itertools.combinations(enumerate(row), 2))

    def take(self, row: tuple[int, ...]) -> None:
        """Accepts a combination, or learns why it is refused."""
        if self.is_refused(row):
            self.bar(row)
            return
        self.accepted.append(row)
        self.taken.update(enumerate(row))
        for pair in itertools.combinations(enumerate(row), 2):
            self.open.pop(pair, None)

    def run(self) -> dict[str, list[list[int]]]:
        """Accepted and refused combinations, as indices of choices, that cover every pair that is not refused."""
        self.taken: Counter[Pick] = Counter()
        plain = [0] * len(self.sizes)
        for axis, size in enumerate(self.sizes):
            for i in range(size):
                row = (*plain[:axis], i, *plain[axis + 1 :])
                if self.is_refused(row):
                    self.bar(row)
        while self.open:
            some = itertools.islice(self.open, 0, None, 1 + len(self.open) // TRIES)
            found = {pair: self.filled(pair) for pair in some}
            for pair in [pair for pair, row in found.items() if row is None]:
                del self.open[pair]
            rows = [row for row in found.values() if row is not None]
            if rows:
                self.take(max(rows, key=self.met))
        return {"accepted": [list(r) for r in self.accepted], "refused": [list(r) for r in self.refused]}


def cover(domain: dict[str, list[dict[str, Any]]], build: Any, causal: bool) -> dict[str, list[list[int]]]:
    return Cover(domain, build, causal).run()
