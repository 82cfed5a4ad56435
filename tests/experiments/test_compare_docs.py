"""The page of `compare` says what it does."""

from dataclasses import fields

import code_blocks
from code_blocks import ROOT
from test_compare_tasks import TEXT

from xflash.experiments.settings import Settings

PAGE = ROOT / "docs" / "compare.md"
SIZES = {"budget='60s'": "budget='4 steps', dim=32, seq_len=16, batch=2, seeds=1, lr=0.01", "300 steps": "12 steps"}


def test_the_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "book.txt").write_bytes(TEXT)
    space = code_blocks.run(PAGE, SIZES)
    assert {row.name for row in space["found"].rows} == set(space["variants"])
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert "wide" in capsys.readouterr().out
    assert list((tmp_path / "xflash" / "compare").rglob("run-0.01-*.json"))


def test_the_settings_have_the_defaults_that_it_says():
    text = PAGE.read_text()
    named = {field.name: field.default for field in fields(Settings) if f"`{field.name}=" in text}
    assert len(named) > 7
    for name, default in named.items():
        said = text.split(f"`{name}=")[1].split("`")[0]
        assert not said or name == "kind" or eval(said) == default or name == "train", name


def test_its_table_has_the_columns_that_it_explains():
    explained = {row[0] for row in code_blocks.rows(PAGE, "The columns")}
    (printed,) = [text for _, text in code_blocks.blocks(PAGE, "text")]
    assert all(column in printed for column in explained)


def test_its_links_lead_somewhere():
    assert all((PAGE.parent / link).exists() for _, link in code_blocks.links([PAGE]))
