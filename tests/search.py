"""A random search: `python tests/search.py --seconds 300 --seed 0` draws models and calls and checks the laws on them.

It prints how many configurations were tried, how many of them were refused, and how many were wrong, each of these as
the least program that still is. A case is drawn from its seed and number alone: `--only 17` checks all laws on one.
"""

import argparse
import collections
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import search_draw as draw
import search_losses  # noqa: F401
import search_masks  # noqa: F401
from search_case import Case, built, every_block, inputs, joined, layouts, members, sentence
from search_measure import LAWS, forward
from search_mutants import MUTANTS
from search_shrink import Wrong, outcome, shown, shrunk

from xflash import positions

# How often a refused case is tried again with less, and how many laws are checked on one that is accepted.
TRIES, EACH = 20, 5


@dataclass
class Count:
    """What a search has found so far."""

    tried: int = 0
    refused: int = 0
    checked: int = 0
    wrong: int = 0
    by_law: collections.Counter = field(default_factory=collections.Counter)
    checks: collections.Counter = field(default_factory=collections.Counter)
    shown: list[Wrong] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"random search: {self.tried} configurations tried, {self.refused} refused, {self.checked} laws checked, "
            f"{self.wrong} wrong"
        )


def lighter(case: Case, error: Exception, chance: Random) -> Case | None:
    """A refused case without something that the refusal names, or without anything else."""
    text = str(error)
    options: list[tuple[str, Any]] = [("flags", name) for name in case.flags if not is_needed(name)]
    options += [("call", name) for name in case.call if name != "src"]
    options += [("wraps", (at, name)) for at, (_, own) in enumerate(case.wraps) for name in own if not is_needed(name)]
    options += [("own", name) for name, layers in layouts(case).items() if any(own for _, own in every_block(layers))]
    named = [o for o in options if o[0] != "own" and is_named(o[1] if isinstance(o[1], str) else o[1][1], text)]
    near = [o for o in options if o[0] == "flags" and any(w in text for w in o[1].split("_") if len(w) > 5)]
    if named or near or options:
        return without(case, *chance.choice(named or near or options))
    shorter = [name for name, layers in layouts(case).items() if len(layers) > 1]
    return without(case, "layers", (chance.choice(shorter), chance.randrange(2))) if shorter else None


def is_named(flag: str, text: str) -> bool:
    """Whether a refusal names a flag, or the side it belongs to and the flag without its prefix."""
    sides = {"enc_": "in the encoder", "dec_": "in the decoder"}
    return flag in text or (sides.get(flag[:4], text + "!") in text and flag[4:] in text)


def is_needed(flag: str) -> bool:
    """Whether nothing can be built without a flag."""
    name = flag.removeprefix("enc_").removeprefix("dec_")
    return name in ("dim", "depth", "heads", "layers", "num_tokens", "max_seq_len", "image_size", "patch_size")


def without(case: Case, where: str, what: Any) -> Case:
    """The case without a flag, a part of its call, an argument of a wrapper, a layer, or the layers' own flags."""
    if where == "flags":
        # The flags of positions go with them.
        gone = tuple(f"{name}_" for name in positions) if what.endswith("pos") else ()
        return case.changed(flags={k: v for k, v in case.flags.items() if k != what and not k.startswith(gone or " ")})
    if where == "call":
        return case.changed(call={k: v for k, v in case.call.items() if k != what})
    if where == "own":
        bare = [joined([(name, {}) for name, _ in members(layer)]) for layer in case.flags[what]]
        return case.changed(flags={**case.flags, what: bare})
    if where == "layers":
        name, i = what
        return case.changed(flags={**case.flags, name: [*case.flags[name][:i], *case.flags[name][i + 1 :]]})
    at, argument = what
    wraps = list(case.wraps)
    wraps[at] = (wraps[at][0], {k: v for k, v in wraps[at][1].items() if k != argument})
    return case.changed(wraps=tuple(wraps))


def accepted(case: Case, chance: Random, count: Count):
    """The case that xflash takes, with its model and call, after leaving out what it refuses; or what is wrong."""
    called = False
    for _ in range(TRIES):
        count.tried += 1
        try:
            model = built(case)
            if not called:
                case, called = draw.call(chance, case, model), True
            x, given = inputs(case, model)
            forward(model, x, given)
            return case, model
        except Exception as error:
            if found := sentence(error):
                return case, Wrong(case, "accepted", found)
            count.refused += 1
            if (lighter_case := lighter(case, error, chance)) is None:
                return case, None
            case = lighter_case
    return case, None


def search(seed: int, number: int, count: Count, every: bool = False) -> list[Wrong]:
    """Draws one case and checks some of the laws on it."""
    chance = Random(f"{seed}/{number}")
    case, model = accepted(draw.case(chance), chance, count)
    if isinstance(model, Wrong):
        return [model]
    if model is None:
        return []
    _, call = inputs(case, model)
    able = [name for name, (holds, _) in LAWS.items() if holds(case, model, call)]
    found = []
    # Those that hold for few calls come first.
    able = sorted(able, key=lambda name: (count.checks[name], chance.random()))
    for name in able if every else able[:EACH]:
        count.checked += 1
        count.checks[name] += 1
        if reason := outcome(case, name, model):
            found.append(Wrong(case, name, reason))
    return found


def report(count: Count, wrong: Wrong, number: int) -> None:
    """Counts a wrong, and shows it unless one like it is shown already."""
    count.wrong += 1
    count.by_law[wrong.law] += 1
    if any(like(known, wrong) for known in count.shown):
        return
    least = shrunk(wrong)
    known = any(like(other, least) for other in count.shown)
    count.shown.append(least)
    if not known:
        print(f"\n--- wrong ({wrong.law}), found in case {number} ---\n{shown(least)}\n", flush=True)


def parts(case: Case) -> set:
    """What a case is made of: flags, blocks, what its call is given."""
    found = {name for name in case.flags if name not in ("dim", "depth", "heads", "layers")} | set(case.call)
    for layers in layouts(case).values():
        every = every_block(layers)
        found |= {f"{block}_{flag}" for block, own in every for flag in own} | {block for block, _ in every}
        found |= {"+" for block, _ in layers if "+" in block}
    return found | {name for _, given in case.wraps for name in given}


def like(known: Wrong, wrong: Wrong) -> bool:
    """Whether `wrong` has all in it that `known`, the least of its sort, is made of."""
    return known.sort == wrong.sort and parts(known.case) <= parts(wrong.case)


def run(seconds: float, seed: int, *, most: int | None = None, only: int | None = None) -> Count:
    """Searches until the time is over or so many cases are drawn; Ctrl-C ends it sooner."""
    count, end = Count(), time.monotonic() + seconds
    number = 0 if only is None else only
    try:
        while time.monotonic() < end and (most is None or number < most):
            for wrong in search(seed, number, count, every=only is not None):
                report(count, wrong, number)
            if only is not None:
                break
            number += 1
    except KeyboardInterrupt:
        print("interrupted")
    return count


def found_with(fault: Callable, seconds: float, seed: int, most: int | None = None) -> tuple[Wrong | None, int]:
    """The first wrong that is one only while a fault is there, and its number; in so many seconds of CPU, or cases."""
    number, end, count = 0, time.process_time() + seconds, Count()
    while time.process_time() < end and (most is None or number < most):
        with fault():
            found = search(seed, number, count)
        for wrong in found:
            if not outcome(wrong.case, wrong.law):
                return wrong, number
        number += 1
    return None, number


def hunt(seconds: float, seed: int) -> int:
    """Puts each fault back in and searches until it is found; the number of those that are not."""
    missed = 0
    for what, fault in MUTANTS.items():
        start, spent = time.monotonic(), time.process_time()
        found, number = found_with(fault, seconds, seed)
        missed += found is None
        how = f"{found.law}: {found.reason}" if found else "NOT FOUND"
        taken = f"{time.monotonic() - start:.0f} s ({time.process_time() - spent:.0f} s of CPU)"
        print(f"{taken}, case {number}: {what}\n         {how}", flush=True)
    print(f"mutants: {len(MUTANTS) - missed} of {len(MUTANTS)} found")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to search (for each mutant)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one case, all laws checked on it")
    parser.add_argument("--mutants", action="store_true", help="put known faults back in, and find each of them")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.mutants:
        return int(hunt(given.seconds, given.seed) > 0)
    count = run(given.seconds, given.seed, only=given.only)
    print(count)
    for name, times in count.by_law.most_common():
        print(f"  {name}: {times}")
    return int(count.wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
