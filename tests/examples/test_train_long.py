import contextlib
import importlib
import io
import json
import math
import os
import random
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from xflash.datasets import sequences as data

SCRIPT = Path(__file__).parents[2] / "examples" / "train_long.py"
# Segments of 11 tokens are in step with neither groups of 5 nor blocks of 7; the memory is shorter than a segment.
HYBRID = "flash(group_size=5,query_key_dim=6)recurrent(block_width=7,num_state_vectors=3,dim_head=4)ff"
SIZES = "--dim 16 --heads 2 --xl_depth 2 --xl_mem_len 7 --seq_len 11 --segments 2 --batch 3 --valid_every 3"
MODELS = ["--layers", HYBRID, "--xl_layers", "attn(dim_head=8) ff", "--rotary_pos_emb", "--shift_tokens", "1"]
SMALL = [*MODELS, *SIZES.split(), "--device", "cpu"]
# Dropout, so that a resumed run needs the state of torch's generator too.
STEPS = [*SMALL, "--steps", "6", "--warmup", "2", "--ff_dropout", "0.1"]
PARTS = ("hybrid", "xl")


@pytest.fixture(scope="module")
def train_long(examples):
    return examples("train_long")


@pytest.fixture
def options(train_long):
    read_command_line = importlib.import_module("training").read_command_line
    return lambda *words: read_command_line(train_long.Options, [*SMALL, *words], ())


def written(chance, n):
    return b" ".join(chance.choice((b"one", b"two", b"three", b"four")) for _ in range(n))[:n]


def pages(lengths=(190, 23, 71, 1, 150, 44, 11, 12, 90, 33, 34, 61, 70, 83)):
    chance = random.Random(1)
    return [written(chance, n) for n in lengths]


DUMP = b"".join(b"<page><text>%s</text></page>\n" % page for page in 3 * pages())


@pytest.fixture(scope="module")
def whole(train_long, tmp_path_factory):
    """The folder of a run that nothing has stopped, and what it printed."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        Path("pages").write_bytes(DUMP)
        train_long.main([*STEPS, "--name", "one", "--text", "pages"])
        return Path("runs/one").resolve(), said.getvalue()


@pytest.fixture
def run(train_long, tmp_path, monkeypatch):
    """Runs the script in a folder with a small text of pages; gives the folder of the run `name`."""
    monkeypatch.chdir(tmp_path)
    Path("pages").write_bytes(DUMP)

    def run(*arguments, name="one", text="pages"):
        train_long.main([*arguments, *(["--name", name] if name else []), *(["--text", text] if text else [])])
        return tmp_path / "runs" / str(name)

    return run


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    return [
        [(entry["step"], entry["bits"], entry["lr"], entry.get("valid_bits")) for entry in log(folder / part)]
        for part in PARTS
    ]


def saved(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=False)


def stop_at(train_long, monkeypatch, part, step, signum=signal.SIGTERM):
    """The signal arrives in the middle of a step of one of the models."""
    real = train_long.train_step

    def stopped(run, rows):
        if (run.part, run.step + 1) == (part, step):
            signal.raise_signal(signum)
        return real(run, rows)

    monkeypatch.setattr(train_long, "train_step", stopped)


def test_a_run_says_what_memory_is_worth_and_leaves_it_behind(whole):
    folder, said = whole
    assert "hybrid: 'flash(group_size=5" in said and "xl: '(attn(dim_head=8) ff) x 2'" in said
    assert "hybrid: 6 steps in" in said and "xl: 6 steps in" in said
    result = json.loads((folder / "result.json").read_text())
    assert result["reach"] == 11 + 2 * 7 + 4
    assert f"from 32 on {sum(n - 32 for n in (34, 61, 70, 83)):>9,}" in said
    gap = result["beyond"]["xl"] - result["beyond"]["hybrid"]
    assert result["gap_beyond"] == pytest.approx(gap)
    assert f"hybrid needs {gap:.3f} bits a byte less" in said
    for part in PARTS:
        octaves = result["octaves"][part]
        assert all(4 < value < 9 for value in octaves[:7]) and set(octaves[7:]) == {None}
        assert f"{octaves[6]:8.3f}" in next(line for line in said.splitlines() if "64 to 127" in line)
        assert [entry["step"] for entry in log(folder / part) if "valid_bits" in entry] == [3, 6]
    assert (folder / "places.png").read_bytes().startswith(b"\x89PNG")


def test_a_text_without_pages_is_read_in_parts(run, train_long, options):
    Path("plain").write_bytes(written(random.Random(2), 300_000))
    documents = train_long.lay_out(options("--valid_bytes", "300")[0], data.text("plain", say=lambda line: None))
    assert documents.train.starts.sum() == 5 and documents.held_out.real.sum() == 300
    folder = run(*STEPS, "--valid_bytes", "300", "--steps", "1", text="plain")
    assert json.loads((folder / "result.json").read_text())["octaves"]["xl"][8] is not None


@pytest.mark.parametrize(("part", "signum"), [("hybrid", signal.SIGINT), ("xl", signal.SIGTERM)])
def test_a_stopped_run_resumes_to_the_same_losses(part, signum, whole, run, train_long, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(train_long, patch, part, 4, signum)
        with pytest.raises(SystemExit) as stopped:
            run(*STEPS, name="parts")
    assert stopped.value.code == 128 + signum
    assert "saved at step 4; go on with --resume --name parts" in capsys.readouterr().err
    content = saved(Path("runs", "parts", part))
    assert content["step"] == 4 and content["carried"].stack.branches
    assert (Path("runs/parts/xl").exists()) == (part == "xl")
    parts = run("--resume", "--device", "cpu", name="parts", text=None)
    assert losses(parts) == losses(whole[0])
    for which in PARTS:
        for name, tensor in saved(whole[0] / which)["model"].items():
            assert torch.equal(tensor, saved(parts / which)["model"][name]), name
    assert (parts / "result.json").read_text() == (whole[0] / "result.json").read_text()


def test_a_resumed_run_would_lose_without_what_it_carries(whole, run, train_long, monkeypatch):
    """The test above can fail: a run that forgets its state has other losses."""
    with monkeypatch.context() as patch:
        stop_at(train_long, patch, "hybrid", 4)
        with pytest.raises(SystemExit):
            run(*STEPS, name="parts")
    path = Path("runs/parts/hybrid/checkpoint.pt")
    torch.save({**saved(path.parent), "carried": None}, path)
    hybrid, other = losses(run("--resume", "--device", "cpu", name="parts", text=None))
    assert hybrid[:4] == losses(whole[0])[0][:4] and hybrid[4] != losses(whole[0])[0][4]
    assert other == losses(whole[0])[1]


def test_resume_without_a_name_takes_the_run_saved_last(run, capsys):
    for name in ("older", "newer"):
        run(*STEPS, "--steps", "1", name=name)
    for name in ("checkpoint.pt", "log.jsonl"):
        os.utime(Path("runs/newer/hybrid") / name, (2e9, 2e9))
    capsys.readouterr()
    run("--resume", "--device", "cpu", name=None, text=None)
    assert "runs/newer has result.json" in capsys.readouterr().out
    run(*STEPS, "--steps", "1", name=None)
    assert Path("runs/long-1/xl/checkpoint.pt").exists()


def alone(net, page, seq_len):
    """The bits of each byte of a document but the first, read by itself in segments of its own."""
    ids, state, bits = data.to_ids(page).long()[None], None, []
    for start in range(0, len(page) - 1, seq_len):
        end = min(start + seq_len, len(page) - 1)
        logits, state = net.step(ids[:, start:end], state)
        state = net.remember(state)
        bits.append(F.cross_entropy(logits[0], ids[0, start + 1 : end + 1], reduction="none") / math.log(2))
    return torch.cat(bits) if bits else torch.zeros(0)


def net_of(train_long, part, options):
    """A model with weights large enough for what is far away to count; in double, for rounding counts more as well."""
    given, flags = options()
    net = train_long.build(part, given, flags)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    return given, net.double().eval()


@pytest.mark.parametrize("part", PARTS)
@torch.no_grad()
def test_bits_by_place_are_those_of_each_document_alone(part, train_long, options):
    given, net = net_of(train_long, part, options)
    rows = data.in_rows(pages(), 3, given.seq_len, torch.Generator().manual_seed(5))
    found = train_long.bits_by_place(net, rows, given.seq_len, "cpu")
    expected, count = [0.0] * 32, [0] * 32
    for page in pages():
        for place, bits in enumerate(alone(net, page, given.seq_len).tolist(), 1):
            expected[place.bit_length() - 1] += bits
            count[place.bit_length() - 1] += 1
    assert found.count.tolist() == count and sum(count[7:]) > 0
    torch.testing.assert_close(found.bits, torch.tensor(expected, dtype=torch.float64), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("part", PARTS)
@torch.no_grad()
def test_the_steps_lose_what_the_documents_lose_alone(part, train_long, options):
    given, net = net_of(train_long, part, options)
    model = train_long.wrap(net, given).eval()
    rows = data.in_rows(pages(), 3, given.seq_len, torch.Generator().manual_seed(5))
    nats, state, targets = 0.0, None, 0
    steps = -(-(rows.ids.shape[1] - 1) // (given.seq_len * given.segments))
    assert steps > 3
    for step in range(steps):
        ids, real, starts = train_long.reading(rows, step, given)
        loss, state = model(ids, real, state=state, reset=starts, return_state=True)
        at = step * given.seq_len * given.segments
        ours = (real[:, 1:] & (rows.offset[:, at + 1 : at + ids.shape[1]] > 0)).sum()
        nats, targets = nats + loss * ours, targets + ours
    expected = torch.cat([alone(net, page, given.seq_len) for page in pages()])
    assert targets == len(expected)
    torch.testing.assert_close(nats / math.log(2), expected.sum(), atol=1e-2, rtol=1e-5)
    assert all(map(torch.equal, train_long.reading(rows, steps, given), train_long.reading(rows, 0, given)))


def test_a_byte_that_begins_a_document_is_no_target_at_the_end_of_a_step(train_long, options):
    given, _ = options("--segments", "2", "--batch", "2")
    # The first row's second document begins where the first step ends; its first one ends inside a segment.
    rows = data.in_rows([b"a" * 20, b"b" * 40, b"c" * 30], 2, given.seq_len)
    ids, real, _ = train_long.reading(rows, 0, given)
    assert ids[:, -1].tolist() == [ord("c"), ord("b")]
    assert real[:, -1].tolist() == [False, True]
    _, real, starts = train_long.reading(rows, 1, given)
    assert real[:, 0].all() and starts.tolist() == [[True, False], [False, False]]


@torch.no_grad()
def test_the_reach_is_how_far_back_a_byte_still_counts(train_long, options):
    given, flags = options("--seq_len", "5", "--xl_mem_len", "3")
    net = train_long.build(train_long.XL, given, flags).double()
    n = 60
    ids = torch.randint(256, (1, n), generator=torch.Generator().manual_seed(3))

    def read(ids):
        state, logits = None, []
        for segment in ids.split(given.seq_len, 1):
            out, state = net.step(segment, state)
            state = net.remember(state)
            logits.append(out)
        return torch.cat(logits, 1)[0]

    before, farthest = read(ids), 0
    for place in range(given.seq_len):
        other = ids.clone()
        other[0, place] = (ids[0, place] + 1) % 256
        changed = (read(other) != before).any(-1).nonzero().flatten()
        farthest = max(farthest, int(changed.max()) - place + 1)
    assert farthest == train_long.reach(given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recurrent_gates", "lstm"], "unknown flag 'recurrent_gates'; did you mean 'recurrent_gate'?"),
        (["--xl_memlen", "5"], r"unknown flag 'xl_memlen'.*options of this script; did you mean 'xl_mem_len'\?"),
        (["--xl_layers", "atn ff"], "unknown block 'atn'"),
        (["--xl_layers", "flash ff"], "max_mem_len=7, but the state of the layout .* is bounded anyway"),
        (["--heads", "0"], "heads"),
        (["--xl_mem_len", "0"], "--xl_mem_len must be above 0, not 0"),
        (["--segments", "-1"], "--segments must be above 0, not -1"),
        (["--batch", "38"], "--batch 38: pages has only 37 documents to train on"),
        (["--valid_bytes", "1"], "pages has no document left to validate on; give more text, or more --valid_bytes"),
        (["stray"], "cannot place 'stray'"),
    ],
)
def test_wrong_arguments_say_what_is_possible(arguments, message, run):
    with pytest.raises(SystemExit, match=message) as error:
        run(*STEPS, *arguments)
    assert str(error.value).startswith("error: ") and "\n" not in str(error.value)
    assert not Path("runs").exists()


def test_a_resumed_run_keeps_its_settings(run, monkeypatch):
    with pytest.raises(SystemExit, match=r"nothing to resume: no run of train_long.py in runs has a checkpoint"):
        run("--resume", name=None)
    run(*STEPS, "--steps", "1")
    with pytest.raises(SystemExit, match=r"--xl_depth 5: the run has 2, and keeps it"):
        run("--resume", "--xl_depth", "5")
    with pytest.raises(SystemExit, match=r"runs/one/hybrid has a checkpoint: go on with --resume, or give another"):
        run(*STEPS)
    with pytest.raises(SystemExit, match=r"nothing to resume in runs/ones; did you mean 'one'\?"):
        run("--resume", name="ones")
    Path("other").write_bytes(b"<text>other text</text>" * 99)
    with pytest.raises(SystemExit, match="other is not the text that the run was trained on"):
        run("--resume", text="other")
