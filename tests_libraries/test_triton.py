"""FLASH's kernels in Triton without a GPU: interpreted, and compiled for two of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from xflash.layers.kernels import triton_groups
from xflash.layers.kernels.triton_groups import KERNELS, Shape, tiles_for

HERE = Path(__file__).parent
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
HALF = {"H", "FOUR", "SUMS", "F", "OUT", "Y", "DOUT", "DY", "DKV", "DH", "DS", "DFOUR", "COS", "SIN"}
SINGLE = {"GAMMA", "BETA", "VECTOR", "CLOSED", "AFTER", "DAFTER", "DCLOSED", "PARTS"}
# Bytes of shared memory that a program may take, and of registers that do not fit and are spilled, by capability.
LIMITS = {90: (227 * 1024, 0), 80: (163 * 1024, 40)}


@pytest.mark.parametrize("file", ["values", "contract", "decided"])
def test_interpreted(file):
    """In a process of its own: what interprets its kernels cannot compile them, and is told before it is imported."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "interpreted" / f"{file}.py"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout


def compiled(kernel, arch, half, relu2, without):
    """A kernel as it is launched for 2,048 channels of values and 128 of queries, for 8 rows or (laplace) for one."""
    tiles = tiles_for(kernel, Shape(8 if relu2 else 1, 2048, 2048, 128, 256))
    constants = tiles._asdict() | {"MEAN": True, "RELU2": relu2} | dict.fromkeys(without)
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        kinds = ((constants, "constexpr"), (HALF, f"*{half}"), (SINGLE, "*fp32"), ({"NEW"}, "*i64"))
        kinds += (({"scale", "divide"}, "fp32"), ({name}, "i32"))
        signature[name] = next(kind for names, kind in kinds if name in names)
        if signature[name][0] == "*" or name in ("e", "k", "w", "turned"):
            attributes[(i,)] = [["tt.divisibility", 16]]
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages, "enable_fp_fusion": True}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def spilled(binary, folder):
    """Bytes of a program's stack: registers that did not fit."""
    (folder / "cubin").write_bytes(binary)
    told = subprocess.run(
        [TOOLS / "cuobjdump", "--dump-resource-usage", folder / "cubin"], capture_output=True, text=True, check=True
    )
    words = dict(word.split(":", 1) for word in told.stdout.split() if ":" in word)
    assert int(words["REG"]) > 0
    return int(words["STACK"]) + int(words["LOCAL"])


# Weights by relu2, whole rows; by laplace, rows of unlike lengths behind a state.
WHOLE, RAGGED = ("bf16", True, ("NEW", "CLOSED", "DAFTER")), ("fp16", False, ())


@pytest.mark.parametrize(("arch", "how"), [(90, WHOLE), (90, RAGGED), (80, RAGGED)])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_compiled(kernel, arch, how, tmp_path, monkeypatch):
    """Shared memory suffices, registers too or nearly, and products go by tensor cores."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    most, spills = LIMITS[arch]
    binary = compiled(kernel, arch, *how)
    assert binary.metadata.shared <= most
    assert spilled(binary.asm["cubin"], tmp_path) <= spills
    products = sum(map(binary.asm["ptx"].count, ("wgmma.mma_async", "mma.sync")))
    assert products or kernel in (triton_groups.queries, triton_groups.base_back)


def test_this_is_not_interpreted():
    assert not triton.knobs.runtime.interpret and not torch.cuda.is_available()
