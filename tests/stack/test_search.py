"""A short random search finds nothing; what it would find is shown by faults that are put back in."""

import contextlib
import io
from random import Random

import pytest
import search
import search_draw as draw
import torch
from search_case import Case, every_block, sentence
from search_mutants import MUTANTS
from search_shrink import Wrong, outcome, shown, shrunk

import xflash
from xflash.flags.layout import AROUND
from xflash.stack.config import known_flags

# Cases of the run in the suite: about ten seconds.
CASES = 40


@pytest.mark.slow
def test_a_short_search_finds_nothing_wrong(record_property):
    count = search.run(600.0, seed=0, most=CASES)
    record_property("search", str(count))
    assert count.checked > 2 * CASES
    assert not count.wrong, "\n\n".join(map(shown, count.shown))


@pytest.mark.slow
def test_a_seed_draws_the_same_again_and_every_flag_sooner_or_later():
    def cases(seed):
        return [draw.case(Random(f"{seed}/{i}")) for i in range(4000)]

    found = cases(0)
    # repr, for NaN among the values that make no sense is not equal to itself.
    assert repr(found) == repr(cases(0)) != repr(cases(1))
    drawn = {flag.removeprefix("enc_").removeprefix("dec_") for case in found for flag in case.flags}
    # A layout is either said by layers or by custom_layers.
    assert set(known_flags()) - drawn <= {"custom_layers"}
    layers = [layer for case in found for layer in case.flags.get("layers", ())]
    assert {name for name, _ in every_block(layers)} == set(xflash.blocks)
    said = {flag for _, own in every_block(layers) for flag in own}
    assert any("+" in name for name, _ in layers) and {*AROUND, "norm_eps", "rotary_base"} <= said


LEAK = MUTANTS["the token shift leaks across documents"]
CROWDED = Case(
    "Decoder",
    {"dim": 7, "heads": 2, "depth": 2, "layers": [("attn", {"window": 5}), ("gau", {}), ("ff", {})]}
    | {"attn_dim_head": 3, "gau_query_key_dim": 4, "norm": "rmsnorm", "shift_tokens": 1, "pos": ("rotary",)},
    rows=2,
    tokens=6,
    call={"mask": [[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]], "doc_ids": [[0, 0, 1, 1, 1, 1], [3, 3, 3, 3, 2, 2]]},
    plan={"cuts": (2, 1), "order": (0,), "reset": (1, 0), "kept": (1, 0)},
)


def test_a_fault_is_found_and_shown_as_the_least_program_that_has_it():
    assert not outcome(CROWDED, "documents")
    with LEAK():
        wrong = Wrong(CROWDED, "documents", outcome(CROWDED, "documents"))
        assert "off by" in wrong.reason
        least = shrunk(wrong, seconds=60.0)
        program = shown(least)
        with pytest.raises(AssertionError, match="documents"):
            exec(program, {})
    assert len(least.case.flags["layers"]) == 1 and least.case.tokens == 2 and least.case.rows == 1
    assert set(least.case.flags) == {"dim", "heads", "depth", "layers", "shift_tokens"} and set(least.case.call) == {
        "doc_ids"
    }
    exec(program, {})


@pytest.mark.slow
def test_the_search_itself_finds_a_fault():
    found, _ = search.found_with(MUTANTS["gau divides by padding"], 600.0, seed=1, most=400)
    assert found is not None and "gau" in shown(found)


def test_only_a_sentence_of_xflash_is_a_refusal():
    def error_of(call):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            call()
        return caught.value

    stack = xflash.Encoder(dim=3, depth=1, layers="ff")
    assert not sentence(error_of(lambda: stack(torch.zeros(1, 2, 4))))
    assert not sentence(error_of(lambda: xflash.Encoder(dim=3, depth=1, layrs="ff")))
    assert "that xflash does not raise" in sentence(
        error_of(lambda: stack.branches[0](torch.zeros(1, 2, 4), nothing=1))
    )
    assert "RuntimeError" in sentence(error_of(lambda: torch.nn.Linear(3, 5)(torch.zeros(1, 2, 4))))
    assert "IndexError" in sentence(error_of(lambda: stack.branches[3]))


def test_ctrl_c_ends_with_what_was_counted(monkeypatch):
    def interrupted(seed, number, count, every=False):
        count.tried += 1
        if number == 2:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(search, "search", interrupted)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        count = search.run(60.0, seed=0)
    assert count.tried == 3 and "interrupted" in out.getvalue()
