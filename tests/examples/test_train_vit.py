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
SMALL = ["--dim", "12", "--depth", "1", "--heads", "2", "--batch", "11", "--warmup", "3", "--device", "cpu"]


@pytest.fixture(scope="module")
def train_vit(examples):
    return examples("train_vit")


def tiles(n=70):
    """Classes that are easily told apart: which corners of each 2 x 2 tile are bright."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 5
    bright = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [0, 0]], [[1, 0], [1, 0]], [[1, 0], [0, 1]], [[0, 1], [1, 1]]])
    pixels = torch.randint(0, 60, (n, 8, 8), generator=draw) + 190 * bright[labels].repeat(1, 4, 4)
    return Images("tiles", "made up", "here", 255, pixels.to(torch.uint8), labels)


@pytest.fixture
def run(train_vit, tmp_path, monkeypatch):
    """Runs the script in an empty folder on made-up images; gives its results and the folder of the run `one`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_vit, "digits", tiles)

    def run(*arguments, name="one"):
        results = train_vit.main([*SMALL, *arguments, *(["--name", name] if name else [])])
        return results, tmp_path / "runs" / (name or "vit-1")

    return run


def test_a_run_compares_its_models(run, capsys):
    results, folder = run("--steps", "3")
    said = capsys.readouterr().out
    assert [r.layout for r in results] == ["attn ff", "gau*2", "flash*2"]
    for r in results:
        assert f"{r.layout}" in said and f"{r.parameters:,}" in said and f"{r.accuracy:.2%}" in said
        assert r.steps == 3 and r.seconds > 0
    assert "55 training and 15 test images, on cpu" in said and "one standard error is" in said
    assert (folder / "digits.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((folder / "result.json").read_text())
    assert [row["accuracy"] for row in kept["results"]] == [r.accuracy for r in results]
    assert kept["options"]["dim"] == 12 and kept["data"] == "tiles"
    test = tiles().split()[1]
    stack = json.loads((folder / "flash_2" / "config.json").read_text())["attn_layers"]
    assert (stack["flash_group_size"], stack["flash_query_key_dim"]) == (4, 32)
    for name, r in zip(("attn_ff", "gau_2", "flash_2"), results, strict=True):
        model = xflash.load(folder / name).eval()
        with torch.no_grad():
            assert torch.equal(model(test.scaled()).argmax(-1), r.read)


def test_it_learns(run):
    """Tiles must stay where they are, so nothing is moved; five classes are 20 % by chance."""
    (result,), _ = run("--steps", "60", "--layouts", "attn ff", "--augment", "0", "--lr", "0.01")
    assert result.accuracy > 0.9


def test_runs_repeat_and_have_names_of_their_own(run):
    (first,), folder = run("--steps", "2", "--layouts", "gau", name=None)
    assert folder.is_dir()
    (again,), _ = run("--steps", "2", "--layouts", "gau", name=None)
    assert (folder.parent / "vit-2").is_dir()
    a, b = (xflash.load(folder.parent / name / "gau").state_dict() for name in ("vit-1", "vit-2"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert torch.equal(first.read, again.read)


def test_flags_reach_the_wrapper_and_the_stack(run, train_vit, monkeypatch):
    _, folder = run(
        "--steps", "1", "--layouts", "attn ff", "--num_register_tokens", "3", "--ff-dropout", "0.1", "--pool", "cls",
        "--pos-emb", "sincos2d", "--patch", "4", "--images", "30",
    )  # fmt: skip
    config = json.loads((folder / "attn_ff" / "config.json").read_text())
    assert (config["num_register_tokens"], config["pool"], config["pos_emb"]) == (3, "cls", "sincos2d")
    assert config["patch_size"] == 4 and config["attn_layers"]["ff_dropout"] == 0.1


def test_a_patch_is_a_quarter_of_the_side(train_vit):
    assert [train_vit.patch_side(None, side) for side in (28, 8, 20, 3)] == [7, 2, 5, 1]
    assert train_vit.patch_side(3, 28) == 3


def test_images_are_moved_a_little(train_vit):
    chance = torch.Generator().manual_seed(0)
    img = torch.zeros(40, 1, 28, 28)
    img[:, :, 10:18, 10:18] = 1
    made = train_vit.moved(img, 1.0, chance)
    y, x = ((made * torch.arange(28).view(shape)).sum((1, 2, 3)) / made.sum((1, 2, 3)) for shape in ((-1, 1), (1, -1)))
    for at in (y, x):
        assert (at - 13.5).abs().max() < 2.5 and at.std() > 0.5
    assert 64 / 1.25 < made.sum((1, 2, 3)).min() < made.sum((1, 2, 3)).max() < 64 * 1.25
    assert train_vit.moved(img, 0.0, chance) is img


def test_every_image_is_seen_once_in_a_pass(train_vit):
    options = train_vit.Options(batch=7)
    order = train_vit.batches(21, options, torch.Generator().manual_seed(0))
    passes = [torch.cat([next(order) for _ in range(3)]).tolist() for _ in range(2)]
    assert all(sorted(p) == list(range(21)) for p in passes) and passes[0] != passes[1]
    few = train_vit.batches(5, options, torch.Generator())
    assert sorted(next(few).tolist()) == list(range(5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layouts", "attn fff"], "error: .*'fff'"),
        (["--layouts", "attn ff", "gau", "--gau_head", "2"], "unknown flag 'gau_head'; did you mean 'gau_heads'"),
        (["--epoch", "3"], r"unknown flag 'epoch'.*among the options of this script.*'epochs'"),
        (["--layouts"], "error: --layouts is empty; give at least one, such as 'attn ff'"),
        (["--batch", "0"], "error: --batch must be above 0, not 0"),
        (["--patch", "3"], "image_size has a height of 8, which patches of height 3 do not divide"),
        (["--images", "9"], "error: --images must be at least 10, two for each class, not 9"),
        (["--layouts", "ff", "--num_register_tokens", "-1"], "num_register_tokens must be at least 0, not -1"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(arguments, message, run, train_vit, monkeypatch, tmp_path):
    monkeypatch.setattr(train_vit, "train", lambda *a: pytest.fail("training began"))
    with pytest.raises(SystemExit, match=message):
        run(*arguments)
    assert not (tmp_path / "runs").exists()


def test_without_images_it_says_so(run, train_vit, monkeypatch):
    def none():
        raise FileNotFoundError("no digits: try again")

    monkeypatch.setattr(train_vit, "digits", none)
    with pytest.raises(SystemExit, match="error: no digits: try again"):
        run()


def test_it_starts_as_a_script():
    words = [sys.executable, str(EXAMPLES / "train_vit.py"), "--help"]
    here = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    shown = subprocess.run(words, env=here, capture_output=True, text=True, check=True).stdout
    assert "--layouts" in shown and "--augment" in shown
