"""benchmarks/roofline.py: what it counts is what there is, and its rows are made; in a process of its own, since the
stand-in device stays."""

import json
import os
import subprocess
import sys

import pytest
from code_blocks import ROOT

COUNTED = """
import sys; sys.path.insert(0, "benchmarks")
import json, torch, torch.nn.functional as F
from gpu_models import Plain, Scale, ours
from roofline_device import DEVICE, moved
from roofline_kernels import FLASH_KERNELS
from roofline_run import simulated

found = {}

def count(name, call, **options):
    with simulated(**options) as run:
        call = call()
        with run.counted() as c:
            call()
    kernels = [(k.name, k.launches, k.bytes, k.flops) for k in c.kernels]
    found[name] = dict(kernels=kernels, waits=sorted(c.waits), wrong=sorted(c.wrong), peak=c.peak)

def on(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device=DEVICE)

def made(*given):  # runs a function on tensors that are there already
    return lambda: (lambda tensors: lambda: given[-1](*tensors))([on(*shape) for shape in given[:-1]])

count("add", made((3, 5), (1, 5), lambda a, b: a + b.expand(3, 5)))
count("product", made((3, 5), (5, 7), (3, 7), lambda a, b, c: torch.mm(a, b, out=c)))
count("added to", made((2, 3, 7), (2, 3, 5), (2, 5, 7), torch.baddbmm))
count("laid down", made((2, 3, 7), (2, 3, 5), (2, 5, 7), lambda c, a, b: torch.baddbmm(c, a, b, beta=0)))
count("views", made((3, 5), lambda a: a.T[None, 1:].expand(2, -1, -1)))
count("masked", made((3, 5), lambda a: a[a > 0]))
count("filled", made((3, 5), lambda a: a.__setitem__(a > 0, 0)))
count("looks", made((3, 5), lambda a: (a.sum().item(), a.tolist(), bool(a[0, 0] > 1), a.nonzero(), a.cpu())))
count("from the CPU", made((3, 5), lambda a: (a + torch.ones(3, 5).to(DEVICE), a[torch.tensor([1, 0])])))
count("patient", made((3, 5), lambda a: a + torch.ones(3, 5).to(DEVICE, non_blocking=True) + torch.tensor(2.0)))
count("tensor", made((3, 5), lambda a: torch.tensor([1, 2], device=a.device)))
count("memory", made((2**20,), lambda a: (a + 1) + 1))
b, n, dim = 2, 96, 64
def plain():
    ids = on(b, n, dtype=torch.long)
    with torch.device("meta"):
        net = Plain(Scale(((b, n),), dim, 2, 3), n)
    net = moved(net, torch.bfloat16)
    return lambda: net(ids).sum().backward()
count("plain", plain)
def flash():
    ids = on(b, n, dtype=torch.long)
    with torch.device("meta"):
        net = ours("flash", Scale(((b, n),), dim, 2, 3), n, flash_group_size=16, depth=1)
    net = moved(net, torch.bfloat16)
    return lambda: net(ids).sum().backward()
count("flash", flash)
count("flash, kernel", flash, instead=FLASH_KERNELS)
print(json.dumps(found))
"""


def run(*command: str, cwd=ROOT) -> str:
    here = {**os.environ, "PYTHONPATH": str(ROOT), "XFLASH_TYPECHECK": "0"}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=here, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-2000:]
    return done.stdout


def places(rows: list[str]) -> set[str]:
    return {row.partition(",")[0] for row in rows}


def test_what_is_counted():
    found = json.loads(run("-c", COUNTED))
    kernels = {name: [tuple(kernel) for kernel in count["kernels"]] for name, count in found.items()}
    # In bytes of two: 15 + 5 read, 15 written; a result that is given is written only.
    assert kernels["add"] == [("add", 1, 70, 0)]
    assert kernels["product"] == [("mm", 1, 2 * (15 + 35 + 21), 2 * 3 * 5 * 7)]
    assert kernels["added to"] == [("baddbmm", 2, 2 * (42 + 30 + 70 + 42 + 2 * 42), 2 * 2 * 3 * 5 * 7)]
    assert kernels["laid down"] == [("baddbmm", 1, 2 * (30 + 70 + 42), 2 * 2 * 3 * 5 * 7)]
    assert kernels["views"] == []
    assert places(found["masked"]["waits"]) == {"index by a mask"} and not found["filled"]["waits"]
    assert places(found["looks"]["waits"]) == {"a number", "tolist", "nonzero", "copy to the CPU"}
    assert places(found["from the CPU"]["waits"]) == {"copy from the CPU"}
    assert places(found["from the CPU"]["wrong"]) == {"index"}
    assert not found["patient"]["waits"] and not found["patient"]["wrong"]
    assert places(found["tensor"]["waits"]) == {"copy from the CPU"}
    assert found["memory"]["peak"] == 3 * 2**21
    b, n, dim, depth = 2, 96, 64, 3
    products = 3 * 2 * b * n * (12 * dim**2 * depth + dim * 256)
    # Attention is made again in the backward; under a causal mask half of it, and half of the diagonal.
    attention = 3.5 * 2 * b * n * n * 2 * dim * depth * (1 - (n - 1) / (2 * n))
    assert sum(flops for *_, flops in kernels["plain"]) == pytest.approx(products + attention, rel=1e-9)
    names = {name for name, *_ in kernels["flash"]}
    assert {"silu_backward", "baddbmm", "bmm"} <= names and not any("flash_groups" in name for name in names)
    modelled = {name for name, *_ in kernels["flash, kernel"]}
    assert {"FLASH's gated", "FLASH's carry back"} <= modelled and len(kernels["flash, kernel"]) < len(kernels["flash"])


@pytest.mark.slow
@pytest.mark.thorough
def test_rows(tmp_path):
    script = str(ROOT / "benchmarks" / "roofline.py")
    rows = ("train 2 x 48: attn ff, rotary", "train 2 x 48: floor", "token b=1 after 9: flash", "48: flash, its kernel")
    text = run(script, "--tiny", "--by", "op", *rows, cwd=tmp_path)
    found = json.loads((tmp_path / "runs/benchmarks/roofline.json").read_text())["rows"]
    assert [name.partition(": ")[2] for name in found] == [
        "floor: plain transformer, SDPA",
        "attn ff, rotary",
        "flash, its kernel (modelled)",
        "flash",
    ]
    for row in found.values():
        assert row["ms"] == max(row["host_ms"], row["device_ms"]) > 0 and row["gb"] > 0 and not row["waits"]
    # Deeper by layers that are alike.
    assert (
        found["train 2 x 48: attn ff, rotary"]["launches"]
        > found["train 2 x 48: floor: plain transformer, SDPA"]["launches"]
    )
    assert "native_layer_norm_backward" in text and "peak GB" in text


@pytest.mark.slow
@pytest.mark.thorough
def test_compiled_rows(tmp_path):
    run(str(ROOT / "benchmarks" / "roofline.py"), "--tiny", "48: floor", "compiled: fl", "48: flash", cwd=tmp_path)
    found = json.loads((tmp_path / "runs/benchmarks/roofline.json").read_text())["rows"]
    floor, fused = (found[f"train 2 x 48{kind}: floor: plain transformer, SDPA"] for kind in ("", ", compiled"))
    # The same products in fewer kernels.
    assert fused["launches"] < floor["launches"] and fused["gb"] < floor["gb"]
    assert fused["tflop"] == pytest.approx(floor["tflop"], rel=0.02)
    assert found["train 2 x 48, compiled: flash"]["launches"] < found["train 2 x 48: flash"]["launches"]


@pytest.mark.slow
@pytest.mark.thorough
def test_goals_are_of_rows_that_there_are():
    names = run(str(ROOT / "benchmarks" / "roofline.py"), "--goals", "--list").splitlines()
    # What they are measured by: the plain transformer, compiled too, at both lengths.
    assert len(names) == 15 + 4
