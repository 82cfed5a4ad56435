"""Combinations of choices in which every two choices meet, unless what is built of them is refused."""

import itertools
from typing import Any

import torch
from allpairspy import AllPairs


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


def culprits(build, causal: bool, row: dict, defaults: dict) -> tuple[tuple[str, int], ...]:
    """The least part of a refused combination that is refused beside defaults."""
    kept = dict(row)
    for name in row:
        trial = {**kept, name: defaults[name]}
        if refusal(build, causal, trial):
            kept = trial
    return tuple((name, id(kept[name])) for name in row if kept[name] is not defaults[name])


def cover(domain: dict[str, list[dict[str, Any]]], build, causal: bool) -> dict[str, list[list[int]]]:
    """Accepted and refused combinations, as indices of choices, that cover every pair that is not refused."""
    names = list(domain)
    defaults = {name: options[0] for name, options in domain.items()}
    accepted: list[tuple[int, ...]] = []
    refused: list[tuple[int, ...]] = []
    barred: set[tuple[tuple[str, int], ...]] = set()
    for at, name in enumerate(names):
        for i, choice in enumerate(domain[name]):
            if refusal(build, causal, {**defaults, name: choice}):
                refused.append(tuple(i if j == at else 0 for j in range(len(names))))
                barred.add(((name, id(choice)),))

    def allowed(values) -> bool:
        present = {(name, id(domain[name][i])) for name, i in zip(names, values, strict=False)}
        return not any(present.issuperset(blame) for blame in barred)

    # Each round bars the pairs that turned out to be refused, and covers what the refused combinations left open.
    while True:
        live = [[i for i, c in enumerate(domain[n]) if ((n, id(c)),) not in barred] for n in names]
        found = [tuple(row) for row in AllPairs(live, filter_func=allowed, previously_tested=accepted)]
        fresh = [row for row in found if refusal(build, causal, as_row(domain, row))]
        accepted += [row for row in found if row not in fresh]
        refused += fresh
        barred.update(culprits(build, causal, as_row(domain, row), defaults) for row in fresh)
        if not fresh:
            break
    # What the filter kept from being joined with anything stands beside defaults.
    for pair in itertools.combinations(range(len(names)), 2):
        for values in itertools.product(*(range(len(domain[names[i]])) for i in pair)):
            row = [0] * len(names)
            for i, value in zip(pair, values, strict=True):
                row[i] = value
            held = any(all(r[i] == v for i, v in zip(pair, values, strict=True)) for r in accepted)
            if not held and not refusal(build, causal, as_row(domain, row)):
                accepted.append(tuple(row))
    return {"accepted": [list(r) for r in accepted], "refused": [list(r) for r in refused]}
