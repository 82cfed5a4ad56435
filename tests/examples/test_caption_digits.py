import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import xflash
from xflash.datasets.images import Images

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ["--dim", "12", "--heads", "2", "--batch", "5", "--warmup", "3", "--tests", "17", "--device", "cpu"]


@pytest.fixture(scope="module")
def script(examples):
    return examples("caption_digits")


def bars(n=70):
    """Pictures of 8 x 10 whose mean says their class, and no two of which are the same."""
    labels = torch.arange(n) % 10
    pixels = torch.zeros(n, 8, 10, dtype=torch.uint8)
    for i, label in enumerate(labels.tolist()):
        pixels[i, :, label] = 201
        pixels[i, 0, (label + 1) % 10] = 1 + i // 10
    return Images("bars", "made up", "here", 201, pixels, labels)


@pytest.fixture
def run(script, tmp_path, monkeypatch):
    """Runs the script in an empty folder on made-up images; gives its figure and the folder of the run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "digits", bars)
    monkeypatch.setattr(script, "SHOWN", 2)  # drawing takes longer than a few steps

    def run(*arguments, name="one"):
        share = script.main([*SMALL, *arguments, *(["--name", name] if name else [])])
        return share, tmp_path / "runs" / (name or "captions-1")

    return run


def test_captions_say_what_the_pictures_show(script):
    data = bars()
    rows = script.compose(data, 61, 3, 0.0, torch.Generator().manual_seed(0))
    assert rows.img.shape == (61, 1, 8, 30) and len(rows.captions) == 61
    known = {tile.numpy().tobytes(): int(label) for tile, label in zip(data.scaled(), data.labels, strict=True)}
    for img, text in zip(rows.img, rows.captions, strict=True):
        tiles = img.split(10, dim=-1)
        words = text.split(" ")
        shown = [script.WORDS[known[tile.contiguous().numpy().tobytes()]] for tile in tiles[: len(words)]]
        assert words == shown and all((tile == 0).all() for tile in tiles[len(words) :])
    assert {len(text.split()) for text in rows.captions} == {1, 2, 3}
    assert {word for text in rows.captions for word in text.split()} == set(script.WORDS)
    assert script.caption([3, 1, 7]) == "three one seven"


def test_rows_are_drawn_and_moved_anew(script):
    chance = torch.Generator().manual_seed(0)
    first, second = (script.compose(bars(), 7, 2, 1.0, chance) for _ in range(2))
    again = script.compose(bars(), 7, 2, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(first.img, again.img) and first.captions == again.captions
    assert first.captions != second.captions
    still = script.compose(bars(), 7, 2, 0.0, torch.Generator().manual_seed(0))
    assert still.captions == first.captions and not torch.equal(still.img, first.img)


def test_captions_become_ids_and_back(script):
    ids, lens = script.target(["three seven eight", "one"])
    assert ids.shape == (2, script.longest(3)) and lens.tolist() == [19, 5]
    assert (ids[:, 0] == script.START).all() and ids[0, -1] == script.END and ids[1, 4] == script.END
    assert (ids[1, 5:] == script.PAD).all() and int(ids.max()) < script.VOCABULARY
    assert [script.text_of(row[1:]) for row in ids] == ["three seven eight", "one"]
    for digit in range(10):
        text = script.caption([digit])
        assert script.text_of(script.target([text])[0][0, 1:]) == text


def test_a_run_says_what_it_reached_and_leaves_the_models(run, script, capsys):
    share, folder = run("--steps", "4")
    said = capsys.readouterr().out
    assert "60 training and 10 test digits, on cpu" in said and "4 steps in" in said
    assert f"{round(share * 17)} of 17 captions are right: {share:.1%}" in said and "  of 3 digits: " in said
    assert said.count("  read as  ") == 6
    assert (folder / "captions.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((folder / "result.json").read_text())
    assert kept["exact_match"] == share and kept["options"]["steps"] == 4 and kept["data"] == "bars"
    stack = json.loads((folder / "encoder" / "config.json").read_text())["attn_layers"]
    assert (stack["flash_group_size"], stack["flash_query_key_dim"]) == (12, 32)
    models = script.Captioner(*(xflash.load(folder / name) for name in ("encoder", "decoder")))
    assert isinstance(models.encoder, xflash.ViTransformerWrapper)
    rows = script.compose(bars().split()[1], 17, 3, 0.0, torch.Generator().manual_seed(0))
    made = script.read(models, rows.img, "cpu")
    assert sum(a == b for a, b in zip(made, rows.captions, strict=True)) / 17 == share
    assert all(text in said for text in made[:6] + rows.captions[:6])


def test_it_learns_to_look(run, script):
    """Captions cost more beside another row's picture: they are more than a guess of words."""
    learning = ["--steps", "150", "--lr", "1e-2", "--batch", "16", "--augment", "0", "--most", "1", "--dim", "24"]
    _, folder = run(*learning, "--enc_layers", "attn ff", "--enc_depth", "1")
    models = script.Captioner(*(xflash.load(folder / name).eval() for name in ("encoder", "decoder")))
    rows = script.compose(bars().split()[1], 31, 1, 0.0, torch.Generator().manual_seed(1))
    right, wrong = (
        script.loss_of(models, script.Rows(img, rows.captions), "cpu").item() for img in (rows.img, rows.img.roll(1, 0))
    )
    assert right < wrong - 0.3


def test_flags_reach_both_sides(run):
    _, folder = run(
        "--steps", "1", "--enc_layers", "attn ff", "--enc-num-register-tokens", "3", "--enc_pos_emb=sincos2d",
        "--enc_heads", "3", "--dec_layers", "gau cross_gau", "--dec_depth", "2", "--dec_tie_embedding", "--patch", "2",
    )  # fmt: skip
    encoder, decoder = (json.loads((folder / name / "config.json").read_text()) for name in ("encoder", "decoder"))
    assert (encoder["num_register_tokens"], encoder["pos_emb"], encoder["patch_size"]) == (3, "sincos2d", 2)
    assert encoder["attn_layers"]["heads"] == 3 and decoder["net"]["attn_layers"]["heads"] == 2
    assert decoder["net"]["tie_embedding"] and decoder["net"]["attn_layers"]["depth"] == 2
    assert decoder["net"]["attn_layers"]["layers"] == "gau cross_gau"


def test_a_column_of_its_own_replaces_the_layout(run):
    _, folder = run("--steps", "1", "--enc_custom_layers", "('a', 'f')")
    config = json.loads((folder / "encoder" / "config.json").read_text())["attn_layers"]
    assert config["custom_layers"] == ["a", "f"] and config["depth"] is None
    assert config.get("flash_group_size") is None


def test_runs_get_folders_of_their_own(run):
    _, folder = run("--steps", "1", name=None)
    run("--steps", "1", name=None)
    assert {path.name for path in folder.parent.iterdir()} == {"captions-1", "captions-2"}
    with pytest.raises(SystemExit, match=r"error: .*captions-1 holds models: give another --name"):
        run("--steps", "1", name="captions-1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--enc_depht", "3"], "in the encoder, whose flags begin with enc_: unknown flag 'depht'; did you mean 'd"),
        (["--dec_layers", "attn fff"], "in the decoder, whose flags begin with dec_: .*'fff'"),
        (["--dec_layers", "attn ff"], "in the decoder, .* no block of the layout 'attn ff' attends to a context"),
        (["--step", "3"], "unknown flag 'step'; did you mean 'steps'.*; flags of the models begin with enc_ or dec_"),
        (["--enc_pool", "cls"], "enc_pool cannot be set: it follows from the pictures, the captions and --dim and --p"),
        (["--dec_dim", "24"], "dec_dim cannot be set"),
        (["--dec_cross_attn_dim_context", "24"], "width"),
        (["--dec_average_pool_embed"], "in the decoder"),
        (["--patch", "3"], "image_size has a height of 8, which patches of height 3 do not divide"),
        (["--most", "0"], "error: --most must be above 0, not 0"),
        (["stray"], "error: cannot place 'stray'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(arguments, message, run, script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "train", lambda *a: pytest.fail("training began"))
    with pytest.raises(SystemExit, match=message):
        run(*arguments)
    assert not (tmp_path / "runs").exists()


def test_without_images_it_says_so(run, script, monkeypatch):
    def none():
        raise FileNotFoundError("no digits: try again")

    monkeypatch.setattr(script, "digits", none)
    with pytest.raises(SystemExit, match="error: no digits: try again"):
        run()


@pytest.mark.slow
def test_it_starts_as_a_script():
    words = [sys.executable, str(EXAMPLES / "caption_digits.py"), "--help"]
    here = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    shown = subprocess.run(words, env=here, capture_output=True, text=True, check=True).stdout
    assert "--most" in shown and "--augment" in shown
