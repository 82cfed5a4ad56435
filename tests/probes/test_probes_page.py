"""docs/probes.md: its code runs, and its tables are what benchmarks/probes.py writes."""

import importlib
import json

import code_blocks
import pytest
import torch
from code_blocks import ROOT

from xflash import blocks

PAGE = ROOT / "docs" / "probes.md"
QUICK = ["--quick", "--probes", "recall", "parity", "--variants", "softmax", "feed-forward"]


@pytest.fixture
def script(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("probes")


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = {
        "range(150)": "range(2)",
        "draw(256": "draw(3",
        "budget='300 steps'": "budget='2 steps', held_out=48, batch=2",
    }
    space = code_blocks.run(PAGE, sizes)
    assert space["longer"].seq_len == 96 and repr(space["probe"]) == "probes.first(seq_len=32)"


def test_the_page_is_written_from_the_runs(script, tmp_path, capsys):
    """Between its marks only; a run that has left its file is not made again, and another budget is another run."""
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text())
    rows = script.main([*QUICK, "--page", str(page)])
    assert [(row["probe"], row["variant"]) for row in rows] == [
        (probe, variant) for probe in ("recall", "parity") for variant in ("softmax", "feed-forward")
    ]
    files = list((tmp_path / "runs" / "probes").iterdir())
    assert len(files) == 4 and {json.loads(file.read_text())["steps"] for file in files} == {2}
    before, _, rest = PAGE.read_text().partition(script.BEGIN)
    text = page.read_text()
    assert text.startswith(before + script.BEGIN) and text.endswith(script.END + rest.partition(script.END)[2])
    assert f"| softmax | `attn ff` x 2 | {rows[0]['parameters']:,} | {rows[0]['score']:.2f} |" in text
    assert capsys.readouterr().out.count("\n") == 4
    assert script.main([*QUICK, "--page", str(page)]) == rows and page.read_text() == text
    assert not capsys.readouterr().out
    script.main([*QUICK, "--page", str(page), "--lr", "0.1"])
    assert capsys.readouterr().out.count("\n") == 4


def test_what_is_learnt_is_said(script):
    """Cells and sentences, by hand."""
    runs = [{"score": 1.0, "steps": 75, "longer": {"2": 0.5}}, {"score": 0.992, "steps": 100, "longer": {"2": 0.75}}]
    learnt = script.Seeds(runs)
    assert learnt.cell() == "**1.00** (100)" and learnt.longer() == "0.62"
    missed = script.Seeds([*runs, {"score": 0.5, "steps": 400, "longer": {}}])
    assert missed.cell() == "0.83, 0.50 to 1.00" and missed.longer() == ""
    assert script.Seeds([{"score": 0.98, "steps": 400, "longer": {}}]).cell() == "0.98"
    said = script.sentence("parity", {"a": missed, "b": learnt})
    assert said == ("- **parity**, `probes.parity(seq_len=8)`, chance 0.500. Learnt by b (100). Not by a (0.83).")


def test_a_run_ends_when_the_probe_is_learnt(script, monkeypatch):
    """A label that is always the same is learnt at the first look, and then tried in longer rows."""
    monkeypatch.setitem(script.PROBES, "parity", Even(script.PROBES["parity"]))
    options = script.read_options(["--dim", "16", "--batch", "2", "--lr", "0.1"])
    found = script.train(script.Run("feed-forward", "parity", 0, options))
    assert found["score"] == 1 and found["steps"] == script.EVERY and found["longer"] == {2: 1.0, 4: 1.0}


class Even:
    """A probe that always answers 0."""

    def __init__(self, probe):
        self.probe = probe

    def __getattr__(self, name):
        return getattr(self.probe, name)

    def draw(self, rows, generator):
        ids, labels = self.probe.draw(rows, generator)
        return ids, labels * 0

    def longer(self, seq_len):
        return Even(self.probe.longer(seq_len))


def test_every_block_is_tried(script):
    """Each variant can be built, and gives logits for the longest rows; blocks with a context have nothing to read."""
    options = script.read_options(["--dim", "16"])
    used = set()
    for variant, flags in script.VARIANTS.items():
        used |= {name for name in blocks if name in flags["layers"].replace("*", " ").replace("(", " ").split()}
        probe = script.PROBES["needle"]
        ids, _ = probe.longer(2 * probe.seq_len).draw(2, torch.Generator().manual_seed(0))
        assert script.Run(variant, "needle", 0, options).model()(ids).shape == (2, 96, probe.num_tokens)
    ours = {name for name, module in blocks.origins.items() if module.startswith("xflash.")}
    assert used == ours - {name for name in ours if blocks[name].takes_context}
