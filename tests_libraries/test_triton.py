"""FLASH's kernels in Triton without a GPU: interpreted, and compiled for two of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from xflash.layers.kernels import triton_groups
from xflash.layers.kernels.fused_pieces import Settings

HERE = Path(__file__).parent
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Bytes of shared memory that a program may take, and of registers that do not fit and are spilled, by capability.
LIMITS = {90: (227 * 1024, 0), 80: (163 * 1024, 40)}


def test_interpreted():
    """In a process of its own: what interprets its kernels cannot compile them, and is told before it is imported."""
    files = [HERE / "interpreted" / f"{name}.py" for name in ("values", "contract", "decided")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout


class Device:
    """What triton asks a driver before it compiles a kernel: a device a capability, so that each is compiled anew."""

    def __init__(self, arch):
        self.arch = arch

    def get_current_target(self):
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self):
        return self.arch

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Compiles what a call forward and backward would launch for a capability; the binaries by name."""

    def call(arch, b, dtype, attn_fn, ragged=False, bare=False):
        found, w, k, e, n = {}, 256, 128, 2048, 260

        def compiling(kernel, grid):
            def compile_only(**given):
                found[kernel.__name__] = kernel.run(grid=grid, warmup=True, **given)

            return compile_only

        monkeypatch.setattr(JITFunction, "__getitem__", compiling)
        monkeypatch.setattr(driver, "_active", Device(arch))
        hidden, table = torch.zeros(b, n, 2 * e + k, dtype=dtype), torch.zeros(n, 32, dtype=dtype)
        gamma, sums = torch.zeros(4, k), torch.zeros(b, k, e)
        beta, vector, cos, sin = [None] * 4 if bare else (gamma, torch.zeros(1, 2 * w - 1), table, table)
        closed, after, new = (sums, sums, torch.full((b,), n)) if ragged else [None] * 3
        settings, paired = Settings(w, attn_fn, 1 / w, 1.0, True), 0 if bare else 32
        given = (hidden, gamma, beta, vector, cos, sin)
        out, y, kept, _ = triton_groups.forward(*given, closed, new, settings, paired, True)
        triton_groups.backward(out, after, *given, new, y, kept, settings, paired)
        if bare:
            triton_groups.forward(*given, closed, new, settings, paired, False)
        return found

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return call


def spilled(binary, folder):
    """Bytes of a program's stack: registers that did not fit."""
    (folder / "cubin").write_bytes(binary)
    told = subprocess.run(
        [TOOLS / "cuobjdump", "--dump-resource-usage", folder / "cubin"], capture_output=True, text=True, check=True
    )
    words = dict(word.split(":", 1) for word in told.stdout.split() if ":" in word)
    assert int(words["REG"]) > 0
    return int(words["STACK"]) + int(words["LOCAL"])


# Whole rows with rotary positions and a bias, or without what can be left out; one row behind a state, for which what
# carries sums is cut into narrow programs.
WHOLE, BARE = (4, torch.bfloat16, "relu2"), (4, torch.bfloat16, "relu2", False, True)
RAGGED = (1, torch.float16, "laplace", True)
WAYS = {
    "whole on 90": (90, WHOLE),
    "bare on 90": (90, BARE),
    "ragged on 90": (90, RAGGED),
    "ragged on 80": (80, RAGGED),
}


@pytest.mark.parametrize(("arch", "how"), WAYS.values(), ids=WAYS)
def test_compiled(arch, how, compiled, tmp_path):
    """Shared memory suffices, registers too or nearly, and products go by tensor cores: those of Hopper, if wide."""
    found = compiled(arch, *how)
    most, spills = LIMITS[arch]
    assert set(found) == {kernel.__name__ for kernel in triton_groups.KERNELS}
    for name, binary in found.items():
        assert binary.metadata.shared <= most, name
        assert spilled(binary.asm["cubin"], tmp_path) <= spills, name
        wide, any_width = (binary.asm["ptx"].count(product) for product in ("wgmma.mma_async", "mma.sync"))
        multiplies = name not in ("queries", "base_back")
        assert multiplies == bool(wide + any_width), name
        narrow = arch == 80 or (name in ("carry", "carry_back") and how is RAGGED)
        assert bool(wide) == (multiplies and not narrow), name
