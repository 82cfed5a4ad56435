"""The README's code runs, its commands are the project's own, its links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys

import code_blocks
import pytest
from code_blocks import ROOT

from xflash import __main__ as command

README = ROOT / "README.md"

# What the README writes, and the size it is run with here.
SIZES = {
    "dim=512": "dim=32",
    "depth=3": "depth=1",
    "depth=4": "depth=1",
    "heads=8": "heads=2",
    "1024": "48",
    "[700]": "[30]",
    "split(256": "split(13",
    "], 32,": "], 4,",
}


@pytest.fixture(scope="module")
def ran():
    pytest.importorskip("flash_pytorch")
    return code_blocks.run(README, SIZES)


def test_the_code_runs(ran):
    assert ran["logits"].shape[-1] == 256
    assert ran["tokens"].shape == (2, 4)
    assert ran["new"](ran["ids"]).allclose(ran["old"](ran["ids"]), atol=1e-4)
    assert "ema_decay" in ran["stack"].flag_table()


def test_it_is_short():
    assert len(README.read_text().splitlines()) < 200


def test_the_own_block_is_the_one_of_contributing():
    """One example for both, apart from quotes and imports."""
    body = [
        re.search(r"class EMA.*?else None\n", page.read_text(), re.DOTALL)
        for page in (README, ROOT / "CONTRIBUTING.md")
    ]
    ours, theirs = (found[0].replace('"', "'").replace("xflash.Block", "Block") for found in body)
    assert ours == theirs


def test_the_commands_install_what_there_is():
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    commands = [code for _, code in code_blocks.blocks(README, "sh") if "pip install" in code]
    assert len(commands) == 2
    for line in commands:
        assert line.count("\n") == 1
        for extra in re.findall(r"\.\[(.*?)\]", line):
            assert set(extra.split(",")) <= set(extras)
        for path in re.findall(r"constraints\.txt|examples/\w+\.py", line):
            assert (ROOT / path).is_file()
    tests = commands[1].rsplit("&& ", 1)[1].strip()
    assert tests in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_flag_commands_print_tables(capsys):
    lines = [line for _, code in code_blocks.blocks(README, "sh") for line in code.splitlines()]
    lines = [line for line in lines if line.startswith(("python -m xflash list", "python -m xflash flags"))]
    shown = {"list": "rmsnorm", "Decoder": "shift_tokens"}
    assert {word for line in lines for word in shlex.split(line)} >= shown.keys()
    for line in lines:
        command.main(shlex.split(line)[3:])
        expected = next(text for word, text in shown.items() if word in shlex.split(line))
        assert expected in capsys.readouterr().out


def test_the_comparison_is_that_of_its_page():
    """The command, what it printed and its picture, which the page on compare explains."""
    page = ROOT / "docs" / "compare.md"
    for kind in ("sh", "text"):
        (whole,) = [code for _, code in code_blocks.blocks(page, kind)]
        (shown,) = [code for _, code in code_blocks.blocks(README, kind) if code in whole]
        assert "flash*3 attn ff" in shown
    assert "](docs/compare.png)" in README.read_text() and "](compare.png)" in page.read_text()


@pytest.mark.slow
def test_the_script_knows_the_options_that_are_named():
    """What the text says of train_lm.py is what it can do."""
    words = [sys.executable, "examples/train_lm.py", "--help"]
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(words, cwd=ROOT, env=here, capture_output=True, text=True, check=True).stdout
    for option in re.findall(r"`--(\w+)", README.read_text()):
        assert f"--{option}" in shown


def test_links_lead_somewhere():
    pages = [
        README,
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "benchmarks" / "README.md",
        *(ROOT / "docs").glob("*.md"),
    ]
    missing = [(page.name, link) for page, link in code_blocks.links(pages) if not (page.parent / link).exists()]
    assert not missing
