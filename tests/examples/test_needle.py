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


def test_training_asks_at_all_gaps_and_a_test_at_one(script):
    options = script.read_options(SMALL)
    for gap, blocks, asked in ((None, 6, {1, 2, 3, 4, 5}), (3, 4, {3}), (63, 64, {63})):
        probe = script.needle(options, gap)
        _, labels = probe.draw(97, torch.Generator().manual_seed(0))
        assert probe.seq_len == blocks * 16 and (labels >= 0).sum() == 97 * 4
        assert set(((labels >= 0).int().argmax(1) // 16).tolist()) == asked


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
    ids, labels = script.needle(options, 5).draw(2, torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, :16] = 16
    for variant, reaches in (("fixed", True), ("lstm", True), ("xl", False)):
        torch.manual_seed(0)
        model = script.build(variant, options).double()
        with torch.no_grad():
            gap = (model(ids) - model(other))[labels >= 0].abs().max()
        assert bool(gap > 1e-9) is reaches
