"""The table and the curves of a comparison, from runs made up by hand."""

import sys
from types import SimpleNamespace

import pytest
import torch

from xflash.experiments.comparison import Comparison
from xflash.experiments.lane import Lane
from xflash.experiments.results import rows_of
from xflash.experiments.settings import Settings
from xflash.experiments.tasks.choose import choose
from xflash.experiments.variants import Variant

TEXT = bytes(range(256)) * 3
FACTS = {"parameters": 1234, "flops": 2.5e6, "training_flops": 7.5e6, "peak_bytes": 3_400_000, "decode_ms": 1.234}


def comparison(scores, rates=(0.01,), failed=None):
    """A comparison of variants with these scores, a list a rate; each run made 5 steps in 2 seconds."""
    task = choose(TEXT, Settings(seq_len=11, batch=3))
    runs = []
    for name, by_rate in scores.items():
        variant = Variant(name, {"layers": "attn ff", "depth": 2, "dim": 12}, rates, {})
        for rate, values in zip(rates, by_rate, strict=True):
            for seed, score in enumerate(values):
                lane = Lane(variant, rate, seed, task, torch.device("cpu"), step=5, total=5, seconds=2.0, score=score)
                lane.looks = [(3, score + 1), (5, score)]
                runs.append(lane)
    for name, why in (failed or {}).items():
        variant = Variant(name, {"layers": "flash", "depth": 1, "dim": 12}, rates, {})
        runs.append(Lane(variant, 0.01, 0, task, torch.device("cpu"), failed=why))
    facts = {name: {**FACTS, "state_bytes": 1024.0} for name in scores}
    return Comparison(rows_of(runs, facts, task), runs, task, "about", ["b: dim 8 -> 12"])


def test_the_text():
    found = comparison({"b": [[2.5, 2.7]], "a": [[1.0, 1.5]]}, failed={"c": "diverged: the loss of step 4 is nan"})
    lines = str(found).splitlines()
    assert lines[:2] == ["about", "b: dim 8 -> 12"]
    assert lines[2].split("  ")[0] == "variant" and set(lines[3]) == {"-"}
    # 5 steps of 33 tokens in 2 seconds.
    assert lines[4].split() == "a (attn ff) x 2 12 1,234 2.50 82 3.4 5 1.250 ±0.250 0.01 1.23 1,024".split()  # noqa: SIM905
    assert lines[5].split()[11:13] == ["2.600", "±0.100"]
    assert "flash" in lines[6] and "diverged: the loss of step 4 is nan" in lines[6]
    assert lines[7] == "bits a byte: less is better; ± half of what lies between the seeds"
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("other", "level"), [([[1.4, 1.9]], True), ([[1.5, 1.9]], True), ([[1.51, 1.9]], False), ([[1.3]], False)]
)
def test_what_the_seeds_reach_is_no_difference(other, level):
    found = comparison({"a": [[1.0, 1.5]], "b": other})
    assert [row.level for row in found.rows] == [False, level]
    assert ("≈" in str(found)) is level


def test_other_rates_stand_beside_the_best():
    found = comparison({"a": [[2.0, 2.2], [1.0, 1.5], [3.0]]}, rates=(0.01, 0.03, 0.1))
    assert found.rows[0].lr == 0.03
    assert "0.03  0.01: 2.100; 0.1: 3.000" in str(found)


def test_one_seed_says_nothing_of_differences():
    assert "one seed, so nobody knows what a difference is worth" in str(comparison({"a": [[1.0]], "b": [[2.0]]}))


def test_a_notebook_gets_a_table():
    page = comparison({"a": [[1.0, 1.5]], "<b>": [[2.5, 2.7]]})._repr_html_()
    assert page.startswith("<table><caption>about; b: dim 8 -&gt; 12</caption>")
    assert page.count("<tr") == 3 and page.count("<p>") == 1
    assert '<td style="text-align:left">1.250 ±0.250</td>' in page
    assert '<td style="text-align:left">&lt;b&gt;</td>' in page and '<td style="text-align:right">0.01</td>' in page


def test_a_frame_has_the_rows(monkeypatch):
    made = SimpleNamespace(set_index=lambda name: (name, rows))
    rows = []
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda given: rows.extend(given) or made))
    found = comparison({"a": [[1.0, 1.5]], "b": [[2.5, 2.7]]})
    assert found.to_pandas() == ("name", [row.as_json() for row in found.rows])
    assert [row["score"] for row in rows] == [1.25, 2.6]


@pytest.mark.parametrize(
    ("against", "x"), [("steps", [3, 5]), ("seconds", [1.2, 2.0]), ("flops", [3 * 33 * 7.5e6, 5 * 33 * 7.5e6])]
)
def test_the_curves_are_the_looks_of_the_best_rate(against, x, tmp_path):
    found = comparison({"a": [[2.0, 2.2], [1.0, 1.5]], "b": [[4.0], [3.0]]}, rates=(0.01, 0.03))
    figure = found.plot(against, tmp_path / "curves.png")
    lines = figure.axes[0].get_lines()
    assert [list(line.get_ydata()) for line in lines] == [[2.0, 1.0], [2.5, 1.5], [4.0, 3.0]]
    assert all(line.get_xdata() == pytest.approx(x) for line in lines)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b"]
    assert figure.axes[0].get_ylabel() == "bits a byte"
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_an_axis_that_there_is_not():
    with pytest.raises(ValueError, match="against is 'time'; possible are 'steps', 'seconds', 'flops'"):
        comparison({"a": [[1.0]]}).plot("time")
