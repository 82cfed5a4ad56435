"""examples/needle.py, shrunk: its rows are what it says, every variant trains, state vectors reach far."""

import json
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "examples" / "needle.py"
SMALL = ["--dim", "24", "--states", "3", "--batch", "4", "--test_rows", "8", "--gaps", "6"]


@pytest.fixture(scope="module")
def script(examples):
    return examples("needle")


def test_a_row_holds_its_needle_and_asks_for_it(script):
    gaps = torch.tensor([1, 5, 3])
    ids, asked = script.rows(3, gaps, 6, 16, torch.Generator().manual_seed(0))
    assert ids.shape == (3, 96) and torch.equal(asked // 16, gaps)
    for row, at in zip(ids, asked.tolist(), strict=True):
        (stored,) = (row == script.STORE).nonzero().flatten().tolist()
        assert (row == script.QUERY).nonzero().flatten().tolist() == [at] and stored + 4 < 16
        needle = row[stored + 1 : stored + 5]
        assert torch.equal(needle, row[at + 1 : at + 5]) and (needle < script.SYMBOLS).all()
        logits = torch.nn.functional.one_hot(row, script.VOCABULARY).float()[None].roll(-1, 1)
        found, symbols = script.answers(logits, row[None], torch.tensor([at]))
        assert torch.equal(found.argmax(-1), symbols) and torch.equal(symbols[0], needle)


def test_every_variant_trains(script, tmp_path, capsys):
    out = tmp_path / "needle.json"
    variants = [*script.VARIANTS, script.PORT]
    found = script.main([*SMALL, "--steps", "2", "--seeds", "0", "1", "--variants", *variants, "--out", str(out)])
    assert [run["variant"] for run in found] == [name for name in variants for _ in range(2)]
    assert all(run["steps"] == 2 and set(run["accuracy"]) == set(script.GAPS[:6]) for run in found)
    assert capsys.readouterr().out.count("median") == len(variants)
    assert len(json.loads(out.read_text())["runs"]) == len(found)


def test_only_state_vectors_reach_beyond_two_blocks(script):
    """What QUERY is answered with depends on a needle five blocks ago with state vectors, and not without."""
    options = script.read_options(SMALL)
    ids, asked = script.rows(2, torch.tensor([5, 5]), 6, 16, torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, :16] = script.SYMBOLS
    for variant, reaches in (("fixed", True), ("lstm", True), ("xl", False)):
        torch.manual_seed(0)
        model = script.build(variant, options).double()
        with torch.no_grad():
            gap = (script.answers(model(ids), ids, asked)[0] - script.answers(model(other), ids, asked)[0]).abs().max()
        assert bool(gap > 1e-9) is reaches
