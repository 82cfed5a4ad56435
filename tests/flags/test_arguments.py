"""Every argument of everything public is given bad values: each is refused in a sentence, or has a documented meaning.

The values come from signatures and annotations (`arguments.py`), the right calls from `argument_calls.py`; what the
meanings are is tested in `test_arguments_meant.py`.
"""

from collections import Counter

import argument_calls
import pytest
from arguments import MEANINGS, fault, meaning, right_after_all, tried
from quick import quick

import xflash

GROUPS = ("constructors", "flags", "stacks", "models", "trainers", "vectors", "others", "functions", "saving")
# What is built and called anew for each of many values.
LONG = ("flags", "saving", "trainers", "others")


def verdict(found):
    """What became of a value, and what is wrong with that."""
    if isinstance(found.result, Exception):
        return "refused", fault(found)
    if right_after_all(found):
        return "right", ""
    return "meant", "" if meaning(found) else "accepted"


@pytest.mark.parametrize("group", quick(GROUPS, lambda group, _: group not in LONG))
def test_every_argument(group, record_property, tmp_path, monkeypatch):
    # What writes a folder of an odd name writes it here.
    monkeypatch.chdir(tmp_path)
    seen, wrong, count = set(), [], Counter()
    for call in getattr(argument_calls, group)():
        fresh = [name for name in call.hints if name in call.given or (call.name, name) not in seen]
        seen.update((call.name, name) for name in call.hints)
        for found in tried(call, fresh):
            what, fault_of_it = verdict(found)
            count.update(["tried", what])
            wrong += [f"{found}: {fault_of_it}"] if fault_of_it else []
    record_property("arguments", {**count, "wrong": len(wrong)})
    assert not wrong, f"{len(wrong)} of {count['tried']}:\n" + "\n".join(wrong[:40])
    assert count["refused"] > 0.8 * count["tried"]


def test_every_public_class_and_function_is_called():
    called = {call.name.split(".")[-1].split(" ")[0] for group in GROUPS for call in getattr(argument_calls, group)()}
    stacks = {"AttentionLayers", "CrossAttender", "Decoder", "Encoder", "PrefixDecoder"}
    # Of these users write subclasses, with fields made by `flag`; stacks build and call them, with a Site and a Ctx.
    parts = {"Bias", "Block", "Join", "Norm", "Position", "Read", "Scale", "ScoreStep", "SideInput", "Turn", "WeightFn"}
    parts |= {"Ctx", "Site", "flag"}
    blocks = {*parts, *(block.__name__ for block in xflash.blocks.values())}
    registries = {"activations", "blocks", "norms", "positions", "reads", "residuals", "scales", "joins", "scores"}
    registries |= {"side_inputs", "weight_fns", "recipes"}
    assert set(xflash.__all__) - called - stacks - blocks - registries == set()


def test_there_are_ten_meanings():
    assert len(MEANINGS) == 10
