import argparse
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import xflash

SCRIPT = Path(__file__).parents[2] / "examples" / "train_lm.py"
SMALL = "--layers flash(group_size=7)ff --depth 1 --dim 16 --heads 2 --seq-len 31 --batch 3 --valid-every 4 --sample 5"
# Dropout, so that a resumed run needs the state of torch's generator too.
STEPS = [*SMALL.split(), "--steps", "11", "--warmup", "3", "--device", "cpu", "--ff_dropout", "0.1"]


@pytest.fixture(scope="module")
def train_lm(examples):
    return examples("train_lm")


@pytest.fixture
def run(train_lm, tmp_path, monkeypatch):
    """Runs the script in an empty folder on 50 kB of text; gives the folder of the run `name`; reports if asked to."""
    monkeypatch.chdir(tmp_path)
    real = train_lm.report
    Path("text").write_bytes(Path(argparse.__file__).read_bytes()[:50_000])

    def run(*arguments, name="one", text="text", report=False):
        monkeypatch.setattr(train_lm, "report", real if report else lambda run, parts: None)
        train_lm.main([*arguments, "--name", name, *(["--text", text] if text else [])])
        return tmp_path / "runs" / name

    return run


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    return [(entry["step"], entry["bits"], entry["lr"], entry.get("valid_bits")) for entry in log(folder)]


def saved(folder, which="checkpoint"):
    return torch.load(folder / f"{which}.pt", weights_only=True)


def stop_at(train_lm, monkeypatch, step, signum=signal.SIGTERM):
    """The signal arrives in the middle of a step."""
    real = train_lm.train_step

    def stopped(run, ids):
        if run.step + 1 == step:
            signal.raise_signal(signum)
        return real(run, ids)

    monkeypatch.setattr(train_lm, "train_step", stopped)


def test_a_run_says_what_it_reached_and_leaves_it_behind(run, capsys):
    folder = run(*STEPS, report=True)
    said = capsys.readouterr()
    assert "text: text, 50,000 bytes, licence: yours to know" in said.out
    for name in ("unigram", "bigram", "trigram", "this model", "tokens/s", "a sample"):
        assert name in said.out
    assert "WARNING: not better than the table of byte pairs" in said.err
    assert [entry["step"] for entry in log(folder)] == list(range(1, 12))
    assert [entry["step"] for entry in log(folder) if "valid_bits" in entry] == [4, 8]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "flash_group_size" in (folder / "flags.txt").read_text()
    result = json.loads((folder / "result.json").read_text())
    assert result["bits"] < 8.5
    assert result["steps"] == 11


def test_the_checkpoint_is_the_model(run):
    content = saved(run(*STEPS))
    assert json.loads(json.dumps(content["config"])) == content["config"]
    net = xflash.from_config(content["config"])
    net.load_state_dict(content["model"])
    assert net(torch.randint(256, (2, 5))).isfinite().all()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_resumes_to_the_same_losses(signum, run, train_lm, monkeypatch, capsys):
    whole = run(*STEPS, name="whole")
    with monkeypatch.context() as patch:
        stop_at(train_lm, patch, 5, signum)
        with pytest.raises(SystemExit) as stopped:
            run(*STEPS, name="parts")
    assert stopped.value.code == 128 + signum
    assert "saved at step 5; go on with --resume --name parts" in capsys.readouterr().err
    assert signal.getsignal(signum) is not importlib.import_module("runs").Stop.note
    parts = run("--resume", "--device", "cpu", name="parts", text=None)
    assert losses(parts) == losses(whole)
    for name, tensor in saved(whole)["model"].items():
        assert torch.equal(tensor, saved(parts)["model"][name]), name


def test_a_run_of_another_script_is_not_gone_on_with(run, train_lm):
    folder = run(*STEPS)
    content = saved(folder)
    torch.save({**content, "script": "train_long"}, folder / "checkpoint.pt")
    with pytest.raises(SystemExit, match=r"one is a run of train_long.py, not of train_lm.py"):
        run("--resume")
    with pytest.raises(SystemExit, match=r"nothing to resume: no run of train_lm.py in runs has a checkpoint"):
        train_lm.main(["--resume"])


def test_what_was_logged_after_the_checkpoint_is_done_again(run, train_lm, monkeypatch):
    whole = run(*STEPS, name="whole")
    with monkeypatch.context() as patch:
        stop_at(train_lm, patch, 5)
        with pytest.raises(SystemExit):
            run(*STEPS)
    with Path("runs/one/log.jsonl").open("a") as file:
        file.write('{"step": 6, "bits": 0.0, "lr": 0.0}\n{"step": 7, "bi')  # killed in the middle of a line
    assert losses(run("--resume", "--device", "cpu")) == losses(whole)


def test_resume_finds_the_last_run_and_a_finished_one_only_reports(run, train_lm, monkeypatch):
    folder = run(*STEPS)
    before = losses(folder)
    reported = []
    monkeypatch.setattr(train_lm, "report", lambda run, parts: reported.append((run.folder.name, run.step)))
    train_lm.main(["--resume", "--device", "cpu"])
    assert reported == [("one", 11)]
    assert losses(folder) == before


def test_a_damaged_checkpoint_falls_back_to_the_one_before(run, train_lm, monkeypatch, capsys):
    whole = run(*STEPS, name="whole")
    with monkeypatch.context() as patch:
        stop_at(train_lm, patch, 6)
        with pytest.raises(SystemExit):
            run(*STEPS, "--save-every", "0")
    folder = Path("runs/one")
    content = (folder / "checkpoint.pt").read_bytes()
    assert saved(folder, "checkpoint.previous")["step"] == 6
    (folder / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    assert losses(run("--resume", "--device", "cpu", "--save-every", "99")) == losses(whole)
    assert "cannot read runs/one/checkpoint.pt" in capsys.readouterr().err
    assert saved(folder)["step"] == 11
    assert saved(folder, "checkpoint.previous")["step"] == 6  # the damaged one has not pushed it out

    for path in (folder / "checkpoint.pt", folder / "checkpoint.previous.pt"):
        path.write_bytes(b"")
    with pytest.raises(SystemExit, match="error: nothing to resume in runs/one"):
        run("--resume")


def test_a_half_written_checkpoint_replaces_nothing(run, train_lm, monkeypatch):
    folder = run(*STEPS)
    good = (folder / "checkpoint.pt").read_bytes()

    def torn(content, file):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="disk full"):
        run("--resume", "--device", "cpu")
    assert (folder / "checkpoint.pt").read_bytes() == good
    assert not [path for path in folder.iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--flash_group", "64"], "unknown flag 'flash_group'; did you mean 'flash_group_size'?"),
        (
            ["--stepps", "5"],
            r"unknown flag 'stepps'.* \(or, among the options of this script; did you mean 'steps'\?\)",
        ),
        (["--flash-group-size=many"], "flash_group_size must be a whole number, not 'many'"),
        (["--gau_expansion_factor", "2"], "gau_expansion_factor is set but the layout .* has no 'gau'"),
        (["--batch", "0"], "--batch must be above 0, not 0"),
        (["stray"], "cannot place 'stray': options and flags are written --name value"),
        (["--seq-len", "50000"], "50000 bytes of text are too few for --seq-len 50000"),
    ],
)
def test_wrong_arguments_say_what_is_possible(arguments, message, run):
    with pytest.raises(SystemExit, match=message):
        run(*STEPS, *arguments)
    assert not Path("runs/one/checkpoint.pt").exists()


def test_missing_text_and_taken_names(run):
    with pytest.raises(SystemExit, match=r"no text at texd; did you mean 'text'\?"):
        run(*STEPS, text="texd")
    run(*STEPS)
    with pytest.raises(SystemExit, match=r"runs/one has a checkpoint: go on with --resume, or give another --name"):
        run(*STEPS)
    with pytest.raises(SystemExit, match=r"nothing to resume in runs/ones; did you mean 'one'\?"):
        run("--resume", name="ones")


def test_a_resumed_run_keeps_its_settings(run):
    run(*STEPS)
    with pytest.raises(SystemExit, match=r"--lr 0\.5: the run has 0\.005, and keeps it"):
        run("--resume", "--lr", "0.5")
    with pytest.raises(SystemExit, match=r"the flags \{'ff_mult': 2\}: the run has \{'ff_dropout': 0\.1\}, and keeps"):
        run("--resume", "--ff_mult", "2")
    Path("other").write_bytes(b"other text " * 99)
    with pytest.raises(SystemExit, match="other is not the text that the run was trained on"):
        run("--resume", text="other")


def test_runs_without_a_name_are_numbered(run, train_lm, monkeypatch):
    monkeypatch.setattr(train_lm, "report", lambda run, parts: None)
    for _ in range(2):
        train_lm.main([*STEPS, "--text", "text"])
    assert sorted(path.name for path in Path("runs").iterdir()) == ["lm-1", "lm-2"]


@pytest.mark.slow
def test_the_steps_are_planned_from_the_first_ones(run):
    folder = run(*SMALL.split(), "--seconds", "1.5", "--device", "cpu")
    content = saved(folder)
    assert content["total"] == content["step"] == len(log(folder)) > 13
    # The learning rate has come down to a tenth, where the cosine ends.
    assert log(folder)[-1]["lr"] < 0.15 * max(entry["lr"] for entry in log(folder))


def test_the_learning_rate_is_a_function_of_the_step(train_lm):
    options = dataclasses.replace(train_lm.Options(), lr=1.0, warmup=4)
    rates = [train_lm.learning_rate(step, 24, options) for step in range(25)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[14] == pytest.approx(0.55)
    assert rates[24] == pytest.approx(0.1)
    assert train_lm.learning_rate(3, None, options) == train_lm.learning_rate(3, 24, options)


def test_every_byte_but_the_first_is_validated_once(run, train_lm):
    made = []

    class Counting(torch.nn.Module):
        def forward(self, x):
            made.append(x)
            return torch.zeros(*x.shape, 256)

    options = dataclasses.replace(train_lm.Options(), seq_len=5, batch=2, device="cpu")
    wrapper = torch.nn.Module()
    wrapper.net = Counting()
    for n in (2, 5, 6, 7, 11, 23):
        made.clear()
        ids = torch.arange(n, dtype=torch.uint8)
        stub = train_lm.Run("train_lm", options, {}, "", wrapper, None)
        assert train_lm.bits_per_byte(stub, ids) == pytest.approx(8.0)
        assert torch.cat([x.flatten() for x in made]).tolist() == list(range(n - 1))


@pytest.mark.slow
def test_sigterm_ends_a_process_with_a_checkpoint(tmp_path):
    (tmp_path / "text").write_bytes(Path(argparse.__file__).read_bytes()[:50_000])
    command = [sys.executable, str(SCRIPT), *SMALL.split(), "--steps", "100000", "--text", "text", "--device", "cpu"]
    paths = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [*command, "--name", "one"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE
    )
    file = tmp_path / "runs" / "one" / "log.jsonl"
    while process.poll() is None and not (file.exists() and file.stat().st_size):
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    process.terminate()
    errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert saved(tmp_path / "runs" / "one")["step"] == len(log(tmp_path / "runs" / "one"))
