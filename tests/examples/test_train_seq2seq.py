import datetime
import json
import random
from pathlib import Path

import pytest

import xflash

SCRIPT = Path(__file__).parents[2] / "examples" / "train_seq2seq.py"
SMALL = ["--dim", "24", "--heads", "2", "--batch", "5", "--device", "cpu", "--tests", "7", "--beams", "3"]


@pytest.fixture(scope="module")
def script(examples):
    return examples("train_seq2seq")


@pytest.fixture
def run(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        script.main([*SMALL, *arguments])
        return tmp_path / "runs"

    return run


def test_every_text_has_one_meaning(script):
    found = {}
    for day in range(script.DAYS.start, script.DAYS.stop, 29):
        date = datetime.date.fromordinal(day)
        for way in script.WAYS:
            for cut in (3, None):
                text = way(date, f"{date:%B}"[:cut], f"{date:%A}"[:cut]).lower()
                assert found.setdefault(text, date) == date
                assert len(text) <= script.LONGEST and set(text) <= set(script.LETTERS)
    date = datetime.date.fromordinal(script.DAYS.start + 29 * 1000)
    texts = {script.written(date, random.Random(seed)) for seed in range(100)}
    assert len(texts) >= len(script.WAYS) and {found[text] for text in texts} == {date}


def test_what_is_tried_was_never_trained_on(script):
    days, unseen = script.split(seed=3, tests=500)
    assert len(unseen) == 500 and not set(days) & set(unseen) and len(days) + 500 == len(script.DAYS)
    assert script.split(3, 500) == (days, unseen) and script.split(4, 500)[1] != unseen


def test_texts_become_ids_and_back(script):
    dates = [datetime.date(1988, 5, 3), datetime.date(2019, 3, 27)]
    ids = script.target(dates)
    assert ids.shape == (2, script.ISO + 2) and (ids[:, 0] == script.START).all() and (ids[:, -1] == script.END).all()
    assert [script.text_of(row[1:]) for row in ids] == ["1988-05-03", "2019-03-27"]
    src = script.source(["27 march 2019", "3.5.1988"])
    assert src.shape == (2, 13) and (src[1, 8:] == script.PAD).all() and (src[0] != script.PAD).all()
    assert script.text_of(src[1][:8]) == "3.5.1988"
    assert int(src.max()) < script.VOCABULARY


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--dec_layers", "attn cross_gau ff", "--dec_cross_gau_query_key_dim=8"],
        ["--tie_token_emb", "--enc_layers=attn ff"],
    ],
    ids=["default", "cross_gau", "tied"],
)
def test_a_run_says_what_it_reached_and_leaves_the_model(flags, run, script, capsys):
    folder = run("--steps", "4", *flags) / "dates-1"
    said = capsys.readouterr().out
    for words in ("greedy: ", "beam of 3: ", " of 7 unseen dates are right", "4 steps, loss "):
        assert words in said
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 4 and 0 <= result["greedy"] <= 1 and 0 <= result["beam"] <= 1
    model = xflash.load(folder)
    assert isinstance(model, xflash.XTransformer)
    texts = ["27 march 2019", "3.5.1988"]
    options = script.Options(device="cpu")
    assert script.answers(model, texts, options, None) == script.answers(model, texts, options, 1)


@pytest.mark.slow
def test_it_learns_to_read_the_source(run, script):
    """What it writes costs more when the sources are another row's: it is more than a guess of dates."""
    learning = ["--steps", "150", "--lr", "1e-2", "--batch", "16"]
    folder = run(*learning, "--enc_layers", "attn ff", "--enc_depth", "1")
    model = xflash.load(folder / "dates-1").eval()
    texts, dates = script.examples(script.split(0, 60)[1], random.Random(1))
    src, tgt = script.source(texts), script.target(dates)
    right, wrong = (model(ids, tgt, mask=ids != script.PAD).item() for ids in (src, src.roll(1, 0)))
    assert right < wrong - 0.1


def test_runs_get_folders_of_their_own(run):
    run("--steps", "1")
    assert {path.name for path in run("--steps", "1").iterdir()} == {"dates-1", "dates-2"}
    with pytest.raises(SystemExit, match=r"error: .*dates-1 holds a model: give another --name"):
        run("--steps", "1", "--name", "dates-1")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--enc_depht", "3"], "error: unknown flag 'enc_depht'; did you mean 'enc_depth'"),
        (
            ["--dec_layers", "attn ff"],
            "error: in the decoder, .* no block of the layout 'attn ff' attends to a context",
        ),
        (["--steps", "0"], "error: --steps must be above 0, not 0"),
        (["stray"], "error: cannot place 'stray'"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(words, match, run):
    with pytest.raises(SystemExit, match=match):
        run(*words)
    assert not Path("runs").exists()
