"""Stacks that attend to a context, small ones, and contexts for them."""

import laws
import pytest
import torch

from xflash import Decoder
from xflash.base.state import Ctx

DIM, OUTSIDE, HEADS, BATCH, N, C = 26, 22, 2, 3, 11, 7
CTX = Ctx(0, None, None, torch.arange(N)[None])
BLOCKS = {
    "cross_attn": {"cross_attn_dim_head": 6},
    "cross_gau": {"cross_gau_query_key_dim": 10},
}
SETTINGS = {
    "cross_attn": ("cross_attn", {}),
    "cross_attn, shared heads": ("cross_attn", {"cross_attn_kv_heads": 1, "cross_attn_qk_norm": True}),
    "cross_attn, gates": ("cross_attn", {"cross_attn_gate_values": True, "cross_attn_head_scale": True}),
    "cross_gau": ("cross_gau", {}),
    "cross_gau, relu2": ("cross_gau", {"cross_gau_attn_fn": "relu2"}),
    "cross_gau, laplace": ("cross_gau", {"cross_gau_attn_fn": "laplace", "cross_gau_heads": 2}),
    "cross_gau, row_sum": ("cross_gau", {"cross_gau_attn_fn": "relu2", "cross_gau_normaliser": "row_sum"}),
    "cross_gau, softmax_plus": ("cross_gau", {"cross_gau_attn_fn": "softmax_plus"}),
    "cross_gau, fixed": (
        "cross_gau",
        {"cross_gau_attn_fn": "relu2", "cross_gau_normaliser": "fixed", "cross_gau_fixed_length": 19},
    ),
}
every_block = pytest.mark.parametrize("block", BLOCKS)
every_setting = pytest.mark.parametrize("setting", SETTINGS)


def stack(block="cross_attn", cls=Decoder, layers="{} ff", outside=False, **flags):
    torch.manual_seed(0)
    own = {f"{block}_dim_context": OUTSIDE} if outside else {}
    small = {"attn_dim_head": 6} if "attn" in layers.split() else {}
    flags = {"dim": DIM, "depth": 2, "heads": HEADS, **BLOCKS[block], **small, **own, **flags}
    return laws.live(cls(layers=layers.format(block), **flags))


def draw(n, width, seed):
    return torch.randn(BATCH, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(n=N):
    return draw(n, DIM, 1)


def source(width=DIM, c=C):
    return draw(c, width, 2)


def context_masks():
    """Padded to the right, to the left, with holes; a row whose context is all padding in each."""
    right = torch.arange(C) < torch.tensor([[C], [3], [0]])
    holes = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0, 1, 0, 0, 0, 0, 0], [0] * 7]).bool()
    return {"right": right, "left": right.flip(1), "holes": holes}
