"""The scripts that the README's figures come from still run, at sizes that say nothing."""

import importlib
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
from code_blocks import ROOT


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Imports a benchmark; what it leaves goes into a folder of its own."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(tmp_path)
    return importlib.import_module


def test_long(script, capsys):
    module, small = script("long"), ["--dim", "16", "--depth", "2", "--segment", "17", "--chunk", "13"]
    module.main([*small, "--only", "read", "--read", "19", "59"])
    short, long = json.loads(capsys.readouterr().out)
    assert (short["tokens"], long["tokens"]) == (19, 59) and short["state_mb"] == long["state_mb"] > 0
    losses = []
    for way in module.WAYS:
        module.main([*small, "--only", "train", "--tokens", "61", "--way", way])
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(RuntimeError, match="--way=none ended with 2"):
        module.apart(["--only=train", "--way=none"])


def test_decode_cost(script, capsys, tmp_path):
    module = script("decode_cost")
    rows = module.main(["--contexts", "9", "150", "--tokens", "3", "--rounds", "2", "--dim", "32"])
    assert [(row["stack"], row["context"]) for row in rows] == [(s, c) for s in ("flash", "attn ff") for c in (9, 150)]
    held = {(row["stack"], row["context"]): row["state_mb"] for row in rows}
    assert held["flash", 9] == held["flash", 150]
    assert held["attn ff", 9] < held["attn ff", 150]
    assert "state MB" in capsys.readouterr().out
    kept = json.loads((tmp_path / "runs/benchmarks/decode_cost.json").read_text())
    assert kept["rows"] == rows and kept["machine"]["torch"]
    assert (tmp_path / "runs/benchmarks/decode_cost.png").stat().st_size > 1000


def test_routed(script, capsys, tmp_path):
    sizes = ["--lengths", "30", "150", "--segment", "40", "--tokens", "3", "--dim", "14", "--block_width", "10"]
    rows = script("routed").main([*sizes, "--retrieve", "3"])
    assert [row["tokens"] for row in rows] == [30, 150]
    assert all(row["segment_s"] > 0 and row["ms"] > 0 and row["peak_rss_mb"] > 10 for row in rows)
    # One piece that holds all 150 tokens; keys and values of float32, the window's 2 x 2 blocks beside it.
    assert [round(row["state_mb"] * 2**20) for row in rows] == [(150 * 2 + 40) * 14 * 4] * 2
    assert "ms a token" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/benchmarks/routed.json").read_text())["rows"] == rows


def test_packed(script, capsys, tmp_path):
    module = script("packed")
    sizes = ["--n", "23", "--documents", "3", "--dim", "34", "--depth", "1", "--width", "5", "--rounds", "1"]
    rows = module.main(sizes)
    assert [row["layers"] for row in rows] == list(module.LAYOUTS)
    assert all(row["ratio"] == row["packed_ms"] / row["ms"] > 0 for row in rows)
    ids = module.documents(module.read_options(sizes))
    assert ids.shape == (2, 23) and (ids[:, -1] == 2).all() and not ids[:, 0].any()
    assert "3 documents, ms" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/benchmarks/packed.json").read_text())["rows"] == rows


def test_patterns(script, capsys, tmp_path, monkeypatch):
    module = script("patterns")
    # A process for one of them only.
    peak = module.peak
    monkeypatch.setattr(module, "peak", lambda name, o: (peak if name == module.BOTH else module.taken)(name, o))
    sizes = ["--n", "43", "--rows", "2", "--dim", "14", "--window", "5", "--documents", "3", "--rounds", "1"]
    rows = module.main(sizes)
    assert [row["pattern"] for row in rows] == list(module.patterns(module.read_options(sizes)))
    assert all(row["ms"] > 0 and row["train_ms"] > 0 and row["mb"] >= 0 for row in rows)
    assert rows[0]["ratio"] == rows[1]["train_ratio"] == 1
    assert "window both ways" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/benchmarks/patterns.json").read_text())["rows"] == rows


def test_bits_per_byte(script, tmp_path):
    pytest.importorskip("flash_pytorch")
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(random.Random(0).choices(b"abcd \n", k=4000)))
    sizes = ["--dim", "34", "--depth", "1", "--group_size", "8", "--n", "20", "--windows", "3", "--steps", "2"]
    rows = script("bits_per_byte").main(["--text", str(text), *sizes, "--seeds", "0", "1"])
    assert [(row["library"], row["seed"]) for row in rows] == [
        (n, s) for s in (0, 1) for n in ("xflash", "flash_pytorch")
    ]
    assert all(4 < row["bits"] < 10 for row in rows)
    assert set(json.loads((tmp_path / "runs/benchmarks/bits_per_byte.json").read_text())["medians"]) == {
        "xflash",
        "flash_pytorch",
    }


def test_shares(script, capsys, tmp_path):
    pytest.importorskip("flash_pytorch")
    pytest.importorskip("block_recurrent_transformer_pytorch")
    sizes = ["--lengths", "9", "--dtypes", "fp32", "--recurrent", "14", "--block_width", "7"]
    rows = script("shares").main([*sizes, "--rounds", "1"])
    assert [row["side"] for row in rows] == ["peer", "xflash"] * 2
    for row in rows:
        assert row["products"] + row["others"] + row["outside"] == pytest.approx(1)
        assert min(row["products"], row["others"], row["outside"]) > 0 and row["ms"] > 0
    assert rows[1]["ratio"] == 1 and rows[1]["bound"] == pytest.approx(1 / rows[1]["products"])
    assert "faults" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/benchmarks/shares.json").read_text())["rows"] == rows


def test_recall(script, tmp_path):
    pytest.importorskip("flash_pytorch")
    sizes = ["--dim", "34", "--depth", "1", "--n", "20", "--symbols", "5", "--batch", "3", "--periods", "4", "7"]
    rows = script("recall").main([*sizes, "--steps", "1", "2", "--seeds", "0"])
    assert [row["model"] for row in rows] == ["FLASHTransformer", "flash_pytorch"]
    assert all(set(row["accuracy"]) == {1, 2} and 0 <= row["accuracy"][2] <= 1 for row in rows)
    assert set(json.loads((tmp_path / "runs/benchmarks/recall.json").read_text())["medians"]) == {
        "FLASHTransformer",
        "flash_pytorch",
    }


def test_recurrent(script, capsys, tmp_path):
    pytest.importorskip("block_recurrent_transformer_pytorch")
    sizes = ["--n", "48", "--dim", "64", "--depth", "2", "--block_width", "8", "--prompt", "9", "--tokens", "3"]
    rows = script("recurrent").main([*sizes, "--peer_tokens", "2", "--rounds", "1"])
    assert [row["model"] for row in rows] == ["xflash", "peer", "peer, fused attention"]
    assert rows[0]["times_as_long"] == rows[0]["token_times"] == 1
    # A token's time is a difference of two, which noise may make negative.
    assert all(row["step_ms"] > 0 and math.isfinite(row["token_ms"]) for row in rows)
    assert "how many times as long" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/benchmarks/recurrent.json").read_text())["rows"] == rows


@pytest.mark.slow
def test_compare(script, monkeypatch, capsys, tmp_path):
    for peer in ("flash_pytorch", "x_transformers", "block_recurrent_transformer_pytorch"):
        pytest.importorskip(peer)
    module, sizes = script("compare"), script("contenders")
    monkeypatch.setattr(sizes, "DIM", 32)
    monkeypatch.setitem(sizes.COMPILED, "backend", "eager")
    monkeypatch.setattr(module, "TOKENS", 32)
    monkeypatch.setattr(module, "peak", lambda kind, name, n, device, depth=12: 8.0 if "peer" in name else 2.0)
    rows = module.main(["decode", "memory", "paper", "--rounds", "1", "--lengths", "16", "32", "--tokens", "3"])
    found = {(row.part, row.peer): row for row in rows}
    assert set(found) == {
        ("decode", "x-transformers"),
        ("decode", "FLASH-pytorch"),
        ("memory", "FLASH-pytorch"),
        ("memory", "x-transformers"),
        ("paper", "Transformer++"),
    }
    assert found["memory", "FLASH-pytorch"].ratio == 4 and found["memory", "FLASH-pytorch"].verdict == "missed"
    assert all(row.theirs > 0 and row.ours > 0 for row in rows)
    assert "missed" in capsys.readouterr().out
    kept = json.loads((tmp_path / "runs/benchmarks/compare.json").read_text())
    assert [row["ratio"] for row in kept["rows"]] == [row.ratio for row in rows]
    assert len(list((tmp_path / "runs/benchmarks").glob("compare_*.png"))) == 4
    with pytest.raises(SystemExit):
        module.main(["speed"])
    assert "no part 'speed'" in capsys.readouterr().err


def test_floor(script, monkeypatch, capsys, tmp_path):
    pytest.importorskip("x_transformers")
    sizes, module = script("contenders"), script("floor")
    monkeypatch.setitem(sizes.COMPILED, "backend", "eager")
    rows = module.main(["--contexts", "9", "--tokens", "2", "--rounds", "1"])
    assert [row["what"] for row in rows][:3] == ["x-transformers", "xflash", "xflash, compile_step"] and len(rows) == 6
    assert all(row["ms"] > 0 for row in rows) and "ms a token" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/benchmarks/floor.json").read_text())["rows"] == rows


@pytest.mark.slow
def test_peak(script):
    """What a call takes is what it takes; what was freed before counts for nothing where the system resets a peak."""
    # In processes of their own: what others have freed would be taken anew, and not be counted.
    lines = """
import peak, torch
before = peak.peak_mb()
torch.ones(2**26)
print(peak.peak_mb() - before)
if peak.forget_peak():
    before = peak.peak_mb()
    held = torch.ones(2**25)
    print(peak.peak_mb() - before)
"""
    command = [sys.executable, "-c", lines]
    folder = Path(script("peak").__file__).parent
    taken = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split()
    assert taken
    for found, held in zip(taken, (256, 128), strict=False):
        assert float(found) == pytest.approx(held, rel=0.2)
    pytest.importorskip("flash_pytorch")
    assert script("compare").peak("layer", "flash xflash", 4096, "cpu") > 20


def test_learning(script, capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(random.Random(0).choices(b"abcd \n", k=900)))
    module = script("learning")
    sizes = ["--text", str(text), "--lengths", "16", "--dim", "32", "--tokens", "32", "--held-out", "48"]
    words = [*sizes, "--tries", "0.05", "--seconds", "0.1", "--seeds", "2", "--rates", "1e-3", "3e-3"]
    words += ["--variants", "GAU, shift", "--folder", str(tmp_path / "kept")]
    (found,) = module.main(words)
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == {"softmax", "GAU, shift"} and found["length"] == 16
    assert all(4 < row["score"] < 10 and len(next(iter(row["scores"].values()))) == 2 for row in rows.values())
    assert abs(rows["GAU, shift"]["parameters"] / rows["softmax"]["parameters"] - 1) < 0.02
    assert module.main([*words, "--table"]) == json.loads(json.dumps([found]))
    assert "GAU, shift" in capsys.readouterr().out
    others = module.main([*words, "--seeds", "3", "--table"])[0]["rows"]
    assert {row["name"]: row["score"] for row in others} == {name: row["score"] for name, row in rows.items()}
    kept = json.loads((tmp_path / "runs/benchmarks/learning.json").read_text())
    assert kept["lengths"][0]["length"] == 16
