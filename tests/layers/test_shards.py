"""Shards of fused projections by neighbouring columns (tensor parallel): right, or refused."""

import copy
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from xflash import CrossAttender, Decoder, Encoder


def cut(linear: nn.Linear, part: int, parts: int, axis: int) -> nn.Linear:
    """A linear map with one of equal parts of its outputs (axis 0) or inputs (1)."""
    weight = linear.weight.detach().chunk(parts, axis)[part]
    less = nn.Linear(weight.shape[1], weight.shape[0], bias=axis == 0 and linear.bias is not None).to(weight)
    less.weight = nn.Parameter(weight)
    if less.bias is not None:
        less.bias = nn.Parameter(linear.bias.detach().chunk(parts)[part])
    return less


class Sharded(nn.Module):
    """A block whose named projections are cut by columns and whose `to_out` is cut by rows, the parts' sum taken."""

    def __init__(self, block: nn.Module, names: tuple[str, ...], parts: int):
        super().__init__()
        self.ranks = nn.ModuleList(copy.deepcopy(block) for _ in range(parts))
        for part, rank in enumerate(self.ranks):
            for name in names:
                setattr(rank, name, cut(getattr(rank, name), part, parts, 0))
            rank.to_out = cut(rank.to_out, part, parts, 1)

    def forward(self, x, ctx, state=None):
        given = [None] * len(self.ranks) if state is None else state
        found = [rank(x, ctx, held) for rank, held in zip(self.ranks, given, strict=True)]
        return sum(y for y, _ in found), tuple(held for _, held in found) if ctx.keep_state else None


SHARDS = {
    "attn": ({"attn_dim_head": 6, "pos": "rotary"}, ("query_key_value",)),
    "attn one of two": ({"attn_dim_head": 6, "attn_kv_heads": 2, "pos": "rotary"}, ("query_key_value",)),
    "attn gates": (
        {"attn_dim_head": 6, "attn_qk_norm": True, "attn_gate_values": True},
        ("query_key_value", "to_gate"),
    ),
    "attn normed": (
        {"attn_dim_head": 6, "attn_qk_rmsnorm": "head", "attn_qkv_bias": True, "attn_score_scale": 0.3},
        ("query_key_value",),
    ),
    "cross_attn": ({"cross_attn_dim_head": 6, "cross_attn_kv_heads": 2}, ("to_q", "key_value")),
}


@pytest.mark.parametrize("case", SHARDS)
def test_shards_of_attention_are_right(case):
    flags, names = SHARDS[case]
    kind = case.split()[0]
    torch.manual_seed(0)
    stack = (CrossAttender if kind == "cross_attn" else Encoder)(
        dim=20, depth=1, heads=4, layers=kind, **flags
    ).double()
    x, context = (torch.randn(2, n, 20, dtype=torch.float64) for n in (7, 5))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3]).bool()
    beside = {"context": context} if kind == "cross_attn" else {}
    whole = stack(x, mask, **beside)
    branch = stack.branches[0]
    sharded = Sharded(branch.block, names, 2)
    branch.block.forward = sharded.forward
    torch.testing.assert_close(stack(x, mask, **beside), whole, atol=1e-12, rtol=0)


REFUSED = {
    "attn_num_mem_kv=2": ("attn", {"attn_num_mem_kv": 2}, ("query_key_value",)),
    "attn_head_scale=True": ("attn", {"attn_head_scale": True}, ("query_key_value",)),
    "attn_qk_norm_dim_scale=True": (
        "attn",
        {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
        ("query_key_value",),
    ),
    "attn_qk_rmsnorm='width'": ("attn", {"attn_qk_rmsnorm": "width"}, ("query_key_value",)),
    "a bias by position": ("attn", {"pos": "alibi"}, ("query_key_value",)),
    "a projection of ff gave 80 of its 160 channels": ("ff", {"ff_glu": True}, ("to_inner",)),
    "a projection of gau gave": ("gau", {}, ("to_hidden",)),
    "a projection of flash gave": ("flash", {}, ("to_hidden",)),
    "a projection of block_attn gave": ("block_attn", {}, ("key_value",)),
    "a projection of recurrent gave": ("recurrent", {"recurrent_block_width": 4}, ("state_key_value",)),
}


@pytest.mark.parametrize("words", REFUSED)
def test_shards_that_would_be_wrong_are_refused(words):
    layers, flags, names = REFUSED[words]
    small = {"attn_dim_head": 6} if layers == "attn" else {}
    stack = Decoder(dim=20, depth=1, heads=4, layers=layers, **small, **flags)
    block = stack.branches[0].block
    for name in names:
        setattr(block, name, cut(getattr(block, name), 0, 2, 0))
    with pytest.raises(ValueError, match=words):
        stack(torch.randn(2, 7, 20))


def test_a_mask_for_each_head_is_refused_beside_shards():
    stack = Encoder(dim=20, depth=1, heads=4, layers="attn", attn_dim_head=6)
    block = stack.branches[0].block
    block.query_key_value = cut(block.query_key_value, 0, 2, 0)
    with pytest.raises(
        ValueError, match="gave 2 of 4 key/value heads, but an attn_mask for each head is there for all"
    ):
        stack(torch.randn(2, 7, 20), attn_mask=torch.ones(1, 4, 7, 7, dtype=torch.bool))


def two_ranks(rank: int, port: int) -> None:
    """One of two processes: the stack as PyTorch shards it, against the whole one, forward, backward and a step."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    flags = {"attn_dim_head": 6, "attn_kv_heads": 2, "pos": "rotary", "ff_mult": 2.0}
    flags |= {"attn_qkv_bias": True, "attn_out_bias": True, "attn_qk_rmsnorm": "head"}
    stack = Decoder(dim=20, depth=2, heads=4, layers="attn ff", **flags).double()
    x = torch.randn(2, 7, 20, dtype=torch.float64)
    whole = stack(x)
    (expected,) = torch.autograd.grad(whole.square().sum(), stack.branches[0].before.gain)
    plan = {}
    for i in (0, 2):
        plan |= {f"branches.{i}.block.query_key_value": ColwiseParallel()}
        plan |= {f"branches.{i + 1}.block.to_inner": ColwiseParallel()}
        plan |= {f"branches.{i + j}.block.to_out": RowwiseParallel() for j in (0, 1)}
    parallelize_module(stack, init_device_mesh("cpu", (2,)), plan)
    y = stack(x)
    torch.testing.assert_close(y, whole, atol=1e-12, rtol=0)
    (found,) = torch.autograd.grad(y.square().sum(), stack.branches[0].before.gain)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    with torch.no_grad():
        head, state = stack.step(x[:, :4])
        torch.testing.assert_close(torch.cat((head, stack.step(x[:, 4:], state)[0]), 1), whole, atol=1e-12, rtol=0)
    dist.destroy_process_group()


@pytest.mark.slow
def test_pytorchs_own_tensor_parallel_on_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(two_ranks, (port,), nprocs=2)
