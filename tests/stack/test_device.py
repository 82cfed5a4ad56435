"""Law 10: everything runs on a device that is not the CPU, waits for it only where docs/laws.md says, and costs what
tests/launches.json holds."""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from code_blocks import ROOT
from quick import THOROUGH

# What the simulation cannot do, by case and call: why.
CANNOT: dict[tuple[str, str], str] = {}
WITHIN = 0.05
AGAIN = "if that is on purpose: python tests/launches.py --write"


@functools.cache
def ran(*words: str) -> dict:
    """What tests/on_device.py finds."""
    command = [sys.executable, str(ROOT / "tests" / "on_device.py"), *words]
    # Annotations are checked by everything else.
    here = {**os.environ, "XFLASH_TYPECHECK": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-2000:]
    return json.loads(done.stdout)


def calls(found: dict) -> Iterator[tuple[tuple[str, str], dict]]:
    for part in ("stacks", "wrappers"):
        for case, results in found.get(part, {}).items():
            for call, result in results.items():
                yield (case, call), result


def listed() -> dict[str, tuple[str, str]]:
    """Where the host waits, as the page says, and a case and a call that do so."""
    page = (ROOT / "docs" / "laws.md").read_text()
    rows = re.findall(r"^\| `([\w/]+\.py [\w<>]+)` \| ([^|]+), (\w+) \| [^|]+ \|$", page, re.MULTILINE)
    return {place: (case, call) for place, case, call in rows}


def wrong_with(found: dict, cannot: dict, waits: dict) -> list[str]:
    """Everything that is not as it should be, exceptions that are none any more included."""
    results = dict(calls(found))
    seen = {key: {wait.partition(", ")[2] for wait in result.get("waits", ())} for key, result in results.items()}
    wrong = [f"{key}: {result['error']}" for key, result in results.items() if "error" in result and key not in cannot]
    wrong += [f"{key}: on the CPU: {name}" for key, result in results.items() for name in result.get("wrong", ())]
    wrong += [
        f"{key}: the host waits in {place}, which docs/laws.md does not list"
        for key, places in seen.items()
        for place in places - waits.keys()
    ]
    wrong += [f"{key} works: it is no exception" for key in cannot if key in results and "error" not in results[key]]
    wrong += [
        f"{place}: {key} does not wait there: docs/laws.md need not list it"
        for place, key in waits.items()
        if key in seen and place not in seen[key]
    ]
    return wrong


def dearer(costs: dict, table: dict) -> list[str]:
    """What costs more or less than the table says, or is not in it."""
    wrong = [f"{name}: in one of both only" for name in sorted(costs.keys() ^ table.keys())]
    for name in costs.keys() & table.keys():
        for unit, is_now, was in zip(("launches", "MB"), costs[name], table[name], strict=True):
            if abs(is_now - was) > WITHIN * was:
                wrong.append(f"{name}: {is_now:,} {unit}, not {was:,}")
    return wrong


def test_everything_on_a_device():
    found = ran("stacks", "wrappers", "costs")
    wrong = wrong_with(found, CANNOT, listed())
    assert not wrong, "\n".join(["", *wrong])
    assert len(dict(calls(found))) > 70
    table = json.loads((ROOT / "tests" / "launches.json").read_text())
    wrong = dearer(found["costs"], table)
    assert not wrong, "\n".join(["", *wrong, AGAIN])


@pytest.mark.parametrize("part", [pytest.param(part, marks=THOROUGH) for part in ("stacks", "wrappers")])
def test_all_that_is_registered_on_a_device(part):
    found = ran(part, "--all")
    wrong = wrong_with(found, CANNOT, listed())
    assert not wrong, "\n".join(["", *wrong])


def test_what_is_wrong_is_found():
    key, place = ("block ff-causal", "train"), "layers/x.py forward"
    waits = {"waits": [f"a number, {place}"]}

    def one(result: dict, cannot: dict | None = None, listed: dict | None = None) -> list[str]:
        return wrong_with({"stacks": {key[0]: {key[1]: result}}}, cannot or {}, listed or {})

    assert (
        one({}) == one(waits, listed={place: key}) == one({"error": "x"}, {key: "why"}) == one({"refused": "x"}) == []
    )
    for said, found in {
        "RuntimeError: x": one({"error": "RuntimeError: x"}),
        "on the CPU: add": one({"wrong": ["add, layers/x.py forward"]}),
        "which docs/laws.md does not list": one(waits),
        "works: it is no exception": one({}, {key: "why"}),
        "need not list it": one({}, listed={place: key}),
    }.items():
        assert len(found) == 1 and said in found[0]
    costs = {"attn": [22, 2000.0], "flash": [115, 5400.0]}
    assert dearer(costs, {"attn": [21, 1950.0], "flash": [115, 5400.0]}) == []
    assert dearer(costs, {"attn": [20, 2000.0], "gau": [1, 1.0]}) == [
        "flash: in one of both only",
        "gau: in one of both only",
        "attn: 22 launches, not 20",
    ]
