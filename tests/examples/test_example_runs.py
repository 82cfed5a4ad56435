"""What the training scripts do where something goes wrong: one sentence, and nothing lost."""

import argparse
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from xflash import AutoregressiveWrapper, Decoder, TransformerWrapper

SMALL = [
    "--layers",
    "ff",
    "--depth",
    "1",
    "--dim",
    "8",
    "--heads",
    "2",
    "--seq-len",
    "15",
    "--batch",
    "2",
    "--valid-every",
    "4",
    "--sample",
    "5",
    "--device",
    "cpu",
]


@pytest.fixture
def script(examples, tmp_path, monkeypatch):
    """train_lm in an empty folder with a text, without its report."""
    monkeypatch.chdir(tmp_path)
    Path("text").write_bytes(Path(argparse.__file__).read_bytes()[:5_000])
    module = examples("train_lm")
    monkeypatch.setattr(module, "report", lambda run, parts: None)
    return module


def begun(script, *arguments, name="one", steps=3):
    script.main([*SMALL, "--steps", str(steps), "--text", "text", "--name", name, *arguments])
    return Path("runs") / name


def saved(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def stopped_at(script, monkeypatch, step):
    """A run of twice as many steps that is told to stop after some."""
    real = script.train_step

    def stopping(run, ids):
        entry = real(run, ids)
        if run.step == step:
            run.total = step
        return entry

    with monkeypatch.context() as patch:
        patch.setattr(script, "train_step", stopping)
        folder = begun(script, "--save-every", "1000", "--valid-bytes", "99", steps=2 * step)
    content = saved(folder)
    torch.save({**content, "total": 2 * step}, folder / "checkpoint.pt")
    return folder


def test_what_a_run_was_begun_with_stays_through_any_number_of_resumes(script, monkeypatch):
    folder = stopped_at(script, monkeypatch, 2)
    options = saved(folder)["options"]
    assert options["text"] == "text"
    for _ in range(3):
        script.main(["--resume", "--name", "one"])
        assert {**saved(folder)["options"], "resume": False} == options
    assert saved(folder)["step"] == 4


def test_what_is_said_anew_is_kept_too(script):
    folder = begun(script)
    Path("moved").write_bytes(Path("text").read_bytes())
    Path("text").unlink()
    script.main(["--resume", "--name", "one", "--text", "moved", "--valid-bytes", "77"])
    script.main(["--resume"])
    assert (saved(folder)["options"]["text"], saved(folder)["options"]["valid_bytes"]) == ("moved", 77)


def test_a_run_that_was_moved_goes_on_where_it_is(script):
    script.main([*SMALL, "--steps", "3", "--text", "text", "--name", "one", "--runs", "there"])
    Path("there").rename("runs")
    script.main(["--resume", "--name", "one"])
    assert not Path("there").exists()
    assert saved(Path("runs/one"))["options"]["runs"] == "runs"


def diverging(monkeypatch, factor):
    def forward(self, x):
        return sum(p.sum() for p in self.parameters()) * factor

    monkeypatch.setattr(AutoregressiveWrapper, "forward", forward)


def test_a_loss_that_is_no_number_ends_in_a_sentence(script, monkeypatch):
    diverging(monkeypatch, float("nan"))
    said = (
        r"error: the loss is nan and its gradient nan; begin anew .* \(at step 1 of runs/one, which has no checkpoint"
    )
    with pytest.raises(SystemExit, match=said):
        begun(script)


def test_the_checkpoint_before_it_is_kept(script, monkeypatch):
    folder = begun(script)
    torch.save({**saved(folder), "total": 7}, folder / "checkpoint.pt")
    before = (folder / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as patch:
        diverging(patch, float("inf"))
        with pytest.raises(
            SystemExit, match=r"the loss is .*step 4 of runs/one, whose checkpoint.pt is of a step be"
        ) as end:
            script.main(["--resume", "--name", "one"])
    assert isinstance(end.value.code, str)  # printed, and exit status 1
    assert (folder / "checkpoint.pt").read_bytes() == before
    script.main(["--resume", "--name", "one"])
    assert saved(folder)["step"] == 7


@pytest.mark.parametrize(
    ("name", "size"),
    [("train_seq2seq", "--tests 3"), ("train_vit", "--images 40 --layouts ff"), ("caption_digits", "--tests 3")],
)
def test_the_other_scripts_end_so_too(name, size, examples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--steps", "9", "--batch", "2", "--dim", "8", "--heads", "2", "--lr", "1e30", "--warmup", "1"]
    with pytest.raises(SystemExit, match=r"error: the loss is .*; begin anew with a smaller --lr or a longer --warmup"):
        examples(name).main([*small, *size.split(), "--device", "cpu"])


def test_needles_too(examples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--steps", "9", "--dim", "8", "--batch", "2", "--width", "8", "--states", "2", "--test_rows", "2"]
    with pytest.raises(SystemExit, match=r"error: the loss of xl is .* at step \d; give a smaller --lr"):
        examples("needle").main([*small, "--variants", "xl", "--lr", "1e30"])
    Path("file").touch()
    with pytest.raises(SystemExit, match=r"error: .*file"):
        examples("needle").main([*small, "--out", "file/needle.json"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: {k: v for k, v in c.items() if k not in ("rng", "step")}, "checkpoint.pt: it has no rng, step"),
        (lambda c: [c], "checkpoint.pt: it holds a list, not a run"),
    ],
)
def test_a_checkpoint_without_its_fields_names_the_file(change, match, script, capsys):
    folder = begun(script)
    torch.save(change(saved(folder)), folder / "checkpoint.pt")
    (folder / "checkpoint.previous.pt").unlink(missing_ok=True)
    with pytest.raises(SystemExit, match=r"error: nothing to resume in runs/one"):
        script.main(["--resume", "--name", "one"])
    assert f"cannot read runs/one/{match}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"options": {"colour": "red"}}, "in runs/one is of another version of the script: .*'colour'"),
        ({"rng": {}}, "in runs/one cannot be gone on from: 'sampler'"),
        ({"model": {}}, "in runs/one cannot be gone on from: .*Missing key"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "in runs/one cannot be gone on from: .*parameter group"),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_run(change, match, script):
    folder = begun(script)
    torch.save({**saved(folder), **change}, folder / "checkpoint.pt")
    with pytest.raises(SystemExit, match=f"error: the checkpoint {match}"):
        script.main(["--resume", "--name", "one"])


SCRIPTS = ("train_lm", "train_long", "train_seq2seq", "train_vit", "caption_digits")


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--name", "../../x"], r"--name '\.\./\.\./x' must be the name of a folder in --runs, not a path"),
        (["--name", "/x"], "--name '/x' must be the name"),
        (["--name", ".."], r"--name '\.\.' must be the name"),
        (["--name", ""], "--name '' must be the name"),
        (["--device", "gpu"], "--device gpu cannot be used: Expected one of"),
        (["--lr", "nan"], "--lr must be above 0, not nan"),
        (["--runs", "text"], "error: .*text"),
    ],
)
def test_options_that_cannot_be_meant(name, arguments, match, examples, script, monkeypatch):
    text = ["--text", "text"] if name in ("train_lm", "train_long") else []
    with pytest.raises(SystemExit, match=match):
        examples(name).main([*text, "--device", "cpu", *arguments])
    assert [path.name for path in Path.cwd().iterdir()] == ["text"]


def test_texts_that_cannot_be_read(script, examples):
    Path("empty").touch()
    Path("short").write_bytes(b"short")
    Path("broken.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + b"\xff" * 40)
    for name, match in (
        ("empty", "holds no bytes"),
        ("short", "."),
        (".", "is a folder"),
        ("broken.gz", "cannot be read"),
    ):
        for module in (script, examples("train_long")):
            with pytest.raises(SystemExit, match=f"error: .*{match}"):
                module.main(["--text", name, "--device", "cpu"])


def test_the_optimizer_decays_so(examples):
    model = TransformerWrapper(
        num_tokens=11, max_seq_len=5, attn_layers=Decoder(dim=8, depth=1, heads=2, layers="gau", num_memory_tokens=2)
    )
    options = dataclasses.replace(examples("train_lm").Options(), lr=0.1, weight_decay=1.0)
    optimizer = examples("training").make_optimizer(model, options)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    linear = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert moved == linear | {"embedding.token_emb.weight"}
