"""benchmarks/on_gpu.py on a CPU: every part runs, what is wrong is found, and no case ends the run."""

import importlib
import json
import re
import subprocess
import time
import types
import warnings

import pytest
import torch
from code_blocks import ROOT
from torch import nn

TINY = ["--device", "cpu", "--tiny", "--minutes", "2"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    with warnings.catch_warnings():
        yield importlib.import_module


@pytest.fixture
def out(tmp_path):
    return tmp_path / "found" / "on_gpu.jsonl"


def rows_of(out):
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize(
    ("part", "only", "cases"),
    [
        ("right", "block flash", 2),
        ("right", "Masked", 2),
        ("right", "generation", 1),
        ("speed", "max_documents", 1),
        ("decode", "floor", 1),
        ("compare", "paper", 1),
        pytest.param("decode", "attn ff, compile_step", 1, marks=pytest.mark.slow),
        ("compile", "alibi", 1),
    ],
)
def test_parts(script, out, part, only, cases):
    module = script("on_gpu")
    given = [*TINY, "--out", str(out), "--parts", part, "--only", only]
    module.main([*given, "--here"])
    assert module.summary(part, module.read_options(given))[0] == f"{part}: {cases} cases ran, 0 broke off"
    rows = [row for row in rows_of(out) if not {"begun", "seconds"} & set(row)]
    assert rows and {row["part"] for row in rows} == {part}
    if part == "right":
        assert all(row["failed"] == {} == row["waits"] for row in rows)
    elif part == "compare":
        assert [row["peer"] for row in rows] == ["Transformer++"] * 2 and all(row["ratio"] > 0 for row in rows)
    else:
        assert all(row["ms"] > 0 for row in rows)


def test_what_was_measured_is_drawn_beside_what_was_predicted(script, out):
    module = script("on_gpu")
    out.parent.mkdir()
    timed = {"2x48 floor": (3.5, None), "flash": (2.5, "b=1 after 5"), "gau": (1.5, None)}
    rows = [{"part": "speed", "case": case, "ms": ms} | ({"size": s} if s else {}) for case, (ms, s) in timed.items()]
    known = {"part": "predicted", "case": "flash, b=1 after 5", "of": "flash", "size": "b=1 after 5", "ms": 0.5}
    out.write_text("".join(json.dumps(row) + "\n" for row in [*rows, known]))
    joined = script("on_gpu_compare").joined([*rows, known])
    assert joined == [("2x48 floor", 3.5, None), ("flash, b=1 after 5", 2.5, 0.5), ("gau", 1.5, None)]
    picture = out.with_suffix(".png")
    said = module.pictured(module.read_options(["--out", str(out)]))
    assert said == ["  flash, b=1 after 5: 2.50 ms, predicted 0.50", str(picture)] and picture.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.thorough
def test_predictions(script, out, capsys):
    # In a process of its own in any case: the stand-in device stays in one.
    module = script("on_gpu")
    out.parent.mkdir()
    out.write_text(json.dumps({"part": "speed", "case": "2x48 floor", "ms": 3.5}) + "\n")
    module.main([*TINY, "--out", str(out), "--parts", "predicted", "--only", "x48 floor"])
    text = capsys.readouterr().out
    assert "predicted: 1 cases ran, 0 broke off" in text and "2x48 floor: 3.50 ms, predicted 0." in text


def test_a_library_that_is_not_there_is_left_out(script, out, monkeypatch, capsys):
    module = script("on_gpu")

    def missing():
        import no_such_library  # noqa: F401  # ty: ignore[unresolved-import]

        yield {}

    monkeypatch.setattr(module, "cases", lambda part, options: iter([("one", missing)]))
    module.main([*TINY, "--out", str(out), "--parts", "speed", "--here"])
    assert "one: no no_such_library here" in capsys.readouterr().out


def test_where_there_is_no_gpu_it_says_so_of_the_kernels(script, out, capsys):
    module = script("on_gpu")
    given = [*TINY, "--out", str(out), "--parts", "kernel"]
    module.main([*given, "--here"])
    cases = {row["case"] for row in rows_of(out)}
    assert {case.split()[0] for case in cases} == {"right", "fast", "step", "verdict"}
    (summary,) = module.summary("kernel", module.read_options(given))
    told = f"{len(cases) - 1} skipped (the kernels in Triton were not tried: they are not for cpu)"
    assert summary == f"kernel: {len(cases)} cases ran, 0 broke off, {told}"
    assert "verdict: nothing is decided" in capsys.readouterr().out
    # The plain operator, beside which they would be, is right and timed.
    assert all(0 < row.get("plain_off", 1e-3) < 2e-2 and row.get("plain_ms", 1) > 0 for row in rows_of(out))


def test_what_decides_about_the_kernels(script, out):
    module, kernel = script("on_gpu"), script("on_gpu_kernel")
    options = module.read_options([*TINY, "--out", str(out), "--parts", "kernel"])
    part = module.Part("kernel", types.SimpleNamespace(out=out), 0)
    out.parent.mkdir()
    part.write("right whole", off=1e-3, plain_off=2e-3, failed={})
    assert next(kernel.verdict(options))["said"].startswith("nothing is decided")
    part.write("fast 8x2048", ms=1.0, faster=1.5)
    assert next(kernel.verdict(options))["said"].startswith("XFLASH_TRITON could be the default: compared in 1 cases")
    part.write("step 8x2048 flash", begun=True)
    assert next(kernel.verdict(options))["wrong"] == ["step 8x2048 flash"]
    part.write("fast 1x2048", ms=1.0, faster=0.9)
    assert next(kernel.verdict(options))["slower"] == ["fast 1x2048"]
    part.write("right ragged", off=1e-1, plain_off=2e-3, failed={"out": "off by 0.1"})
    assert next(kernel.verdict(options))["said"].startswith("XFLASH_TRITON stays a choice: compared in 2 cases, wrong")


def test_a_case_that_fails_stops_nothing(script, out, monkeypatch, capsys):
    module = script("on_gpu")

    def fails(error):
        raise error
        yield {}

    def lasts():
        yield {"ms": 1.0}
        time.sleep(9)

    found = {
        "wrong": lambda: fails(ValueError("no such thing\nmore")),
        "large": lambda: fails(torch.cuda.OutOfMemoryError("CUDA out of memory")),
        "slow": lasts,
        "broken": lambda: fails(RuntimeError("CUDA error: an illegal memory access")),
        "last": lambda: iter([{"ms": 2.0, "ratio": 1.5, "launches": 7}]),
    }
    monkeypatch.setattr(module, "cases", lambda part, options: iter(found.items()))
    given = [*TINY, "--out", str(out), "--parts", "speed", "--case_seconds", "0.2"]
    with pytest.raises(SystemExit) as ended:
        module.main([*given, "--here"])
    assert ended.value.code == module.BROKEN
    # The process that comes after it goes on behind what was begun.
    module.main([*given, "--here"])
    text = capsys.readouterr().out
    for line in (
        "wrong: ValueError: no such thing\n",
        "large: out of memory",
        "slow: stopped after 0 s",
        "broken: RuntimeError: CUDA error",
        "last: 2.00 ms, 1.50x floor, 7 launches",
    ):
        assert text.count(line) == 1, line
    summary = module.summary("speed", module.read_options(given))
    assert summary == ["speed: 5 cases ran, 3 broke off, 1 skipped (out of memory)"]


def test_each_part_is_a_process_that_is_begun_again(script, out, monkeypatch, capsys):
    module, codes, commands = script("on_gpu"), [-11, 75, 0], []

    def run(command, timeout, check):
        commands.append(command)
        with out.open("a") as file:
            file.write(json.dumps({"part": "decode", "case": f"case {len(commands)}", "begun": True}) + "\n{cut")
        return types.SimpleNamespace(returncode=codes[len(commands) - 1])

    monkeypatch.setattr(subprocess, "run", run)
    assert module.main([*TINY, "--out", str(out), "--parts", "decode", "--only", "gau"])[0].startswith(
        "decode: 0 cases ran, 0 broke off, case 1 took the process with it"
    )
    assert len(commands) == 3
    again = module.read_options(commands[0][2:])
    assert (again.here, again.tiny, again.device, again.out, again.only) == (True, True, "cpu", out, "gau")
    assert again.parts == ["decode"] and 1.9 < again.minutes <= 2
    assert json.loads(out.read_text().splitlines()[0])["torch"] == torch.__version__


def test_no_time_left(script, out):
    module = script("on_gpu")
    given = [*TINY[:-1], "1e-9", "--out", str(out), "--parts", "speed"]
    module.main([*given, "--here"])
    text = module.summary("speed", module.read_options(given))[0]
    assert text.startswith("speed: 0 cases ran, 0 broke off, ") and text.endswith(" skipped (no time left)")


def test_what_differs_is_found(script):
    module, other = script("on_gpu_right"), []

    def call(net, given):
        other.append(1)
        return net(given["x"]) + (1e-3 if len(other) == 2 else 0)

    case = module.Case(lambda: nn.Linear(3, 5), call, lambda _: {"x": torch.ones(2, 3, dtype=torch.float64)}, "cpu")
    row = case.checked()
    assert list(row["failed"]) == ["float64"] and "off by" in row["failed"]["float64"]
    right = {"y": torch.ones(3)}
    assert module.gap({"y": torch.tensor([1.0, 1.0, 0.5])}, right, "cpu") == 0.5
    for y, error in ((torch.tensor([1.0, 1.0, torch.nan]), "y is not finite"), (torch.ones(2), r"y is \(2,\) on cpu")):
        with pytest.raises(ValueError, match=error):
            module.gap({"y": y}, right, "cpu")


def test_where_the_host_waits(script):
    module, calls = script("on_gpu_right"), []
    stack = module.small.build("ff", 1)

    def looks(*_):
        calls.append(1)
        if len(calls) > 1:  # the first call warms up
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)

    stack.branches[0].block.register_forward_pre_hook(looks)
    (place,) = module.waiting(lambda: stack(torch.ones(1, 2, stack.dim)), "cpu")
    assert re.fullmatch(r"layers/branch\.py:\d+", place)
    assert module.waiting(lambda: torch.ones(1) * 2, "cpu") == []
