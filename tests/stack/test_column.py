"""The column of a stack: how deep a block is called, and that it is what the stack has now."""

import copy
import os
import subprocess
import sys

import laws
import pytest
import torch
from cases import build

from xflash import Decoder
from xflash.stack.block_by_block import BlockByBlock
from xflash.stack.column import Column

FRAMES = """
import sys, torch
from xflash import Attention, Decoder
def package(frame):
    while frame is not None:
        if "/xflash/" in frame.f_code.co_filename:
            yield frame.f_code
        frame = frame.f_back
counts = []
inner = Attention.forward
def forward(self, x, ctx, state=None):
    codes = list(package(sys._getframe(1)))
    counts.append([code.co_name for code in codes[: codes.index(Decoder.forward.__wrapped__.__wrapped__.__code__)]])
    return inner(self, x, ctx, state)
Attention.forward = forward
Decoder(dim=12, depth=2, heads=2, pos="rotary", shift_tokens=1)(torch.randn(1, 5, 12), torch.ones(1, 5).bool())
print(max(map(len, counts)), counts[0])
"""


def test_a_block_is_called_five_frames_below_its_stack():
    """Of the package, without type checks: every frame costs time in each layer, and reads as a step on the way."""
    env = {**os.environ, "XFLASH_TYPECHECK": "0"}
    done = subprocess.run([sys.executable, "-c", FRAMES], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout.split()[0]) <= 5, done.stdout


def test_the_way_is_chosen_when_a_stack_is_built():
    assert type(build("attn ff").column) is Column
    assert type(build("state_read recurrent", causal=True).column) is BlockByBlock


@pytest.mark.parametrize("layers", ["attn ff", "block_attn(read_from=(1,)) recurrent"])
def test_what_is_replaced_in_a_stack_is_replaced_in_its_column(layers):
    stack = laws.live(build(layers, causal=True, depth=1))
    x = laws.sample(stack, 7)
    twin = copy.deepcopy(stack)
    assert twin.column.branches[0] is twin.branches[0] is not stack.branches[0]
    twin.final_norm = None
    laws.close(stack.final_norm(twin(x)), stack(x), "the last norm")
    twin.branches[1] = torch.nn.Identity()
    assert isinstance(twin.column.branches[1], torch.nn.Identity)


def test_names_of_parameters_are_the_stacks():
    names = set(Decoder(dim=12, depth=1, heads=2, pos="rel_pos", num_memory_tokens=2).state_dict())
    assert {"branches.0.before.gain", "branches.1.block.to_out.weight", "final_norm.gain"} <= names
    assert {"memory_tokens.tokens", "positions.rel_pos.tables.2.weight"} <= names
    assert not [name for name in names if "column" in name]
