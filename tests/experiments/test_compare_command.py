"""`python -m xflash compare`: the same from a shell."""

import json
import subprocess
import sys

import pytest
from test_compare_tasks import TEXT

from xflash import __main__ as command
from xflash.experiments.command import settings_first

WORDS = ["dim=24", "heads=2", "seq_len=11", "batch=2", "num_layers=2", "held_out=22", "looks=1"]


@pytest.fixture
def words(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    options = ["--data", str(tmp_path / "text.txt"), "--folder", str(tmp_path / "runs"), "--seeds", "2"]
    return ["compare", "attn ff", "gau", *WORDS, *options, "--lr", "0.01", "--budget", "4 steps"]


def test_layouts_are_compared_and_kept(words, tmp_path, capsys):
    files = {name: tmp_path / f"table.{name}" for name in ("json", "html", "png")}
    more = ["--json", str(files["json"]), "--html", str(files["html"]), "--plot", str(files["png"])]
    command.main([*words, "--match", "params", *more])
    out = capsys.readouterr()
    lines = out.out.splitlines()
    assert lines[0].startswith("text.txt: 4 steps a run, 2 seeds, 2 rows of 11; xflash ")
    assert lines[1].startswith("gau: dim 24 -> ")
    assert {line.split("  ")[0] for line in lines[4:6]} == {"attn ff", "gau"}
    assert "4 runs, 0 of them known already" in out.err
    assert len(json.loads(files["json"].read_text())["rows"]) == 2
    assert files["html"].read_text().startswith("<table>") and files["png"].stat().st_size > 1000
    command.main([*words, "--match", "params"])
    again = capsys.readouterr()
    assert again.out == out.out and "4 runs, 4 of them known already" in again.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "soon"], "error: budget='soon' is no number with a unit"),
        (["flash_grup_size=3"], "error: variant 'attn ff': unknown flag 'flash_grup_size'; did you mean"),
        (["--data", "nowhere.txt"], "error: no text at nowhere.txt"),
        (["lr=soon"], "error: lr must be a number"),
        (["--data", "recall"], "error: 'recall' is a probe"),
        (["--against", "time"], "error: against is 'time'; possible are"),
    ],
)
def test_what_is_wrong_is_one_line(words, more, message, capsys):
    with pytest.raises(SystemExit):
        command.main([words[0], *words[1:], *more] if more[0].startswith("--") else [words[0], *more, *words[1:]])
    assert capsys.readouterr().err.startswith(message)


def test_an_option_that_there_is_not(words, capsys):
    with pytest.raises(SystemExit):
        command.main([*words, "--seed", "1"])
    assert "error: '--seed' is no argument of compare; did you mean '--seeds'?" in capsys.readouterr().err


def test_settings_may_stand_behind_options():
    words = ["attn ff", "--lr", "1e-3", "dim=8", "--data", "a=b", "seeds=1", "--budget", "2s"]
    assert settings_first(words) == ["dim=8", "seeds=1", "attn ff", "--lr", "1e-3", "--data", "a=b", "--budget", "2s"]


def test_the_package_is_imported_without_it():
    late = "xflash.experiments.comparing matplotlib pandas IPython torch.utils.flop_counter"
    code = f"import sys, xflash; print([name for name in {late.split()} if name in sys.modules]); xflash.compare"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
