"""The laws over everything that is registered: a new block, norm, position or residual is tested by being there."""

import laws
import pytest
import torch

import xflash
from xflash import AttentionLayers
from xflash.registry import blocks, norms, positions, residuals

SMALL = {
    "attn": {"attn_dim_head": 6},
    "gau": {"gau_query_key_dim": 14},
    "flash": {"flash_query_key_dim": 14, "flash_group_size": 5},
    "cross_attn": {"cross_attn_dim_head": 6, "cross_attn_dim_context": 22},
    "cross_gau": {"cross_gau_query_key_dim": 14, "cross_gau_dim_context": 22},
}
DIM, HEADS = 34, 4


def build(layers: str = "attn ff", depth: int = 2, **flags) -> AttentionLayers:
    torch.manual_seed(0)
    small = {
        k: v for name, given in SMALL.items() if name in layers.replace("(", " ").split() for k, v in given.items()
    }
    return AttentionLayers(**{"dim": DIM, "depth": depth, "heads": HEADS, "layers": layers, **small, **flags})


def able(position: str) -> str:
    """A layout of all blocks that can use a position."""
    return " ".join(name for name, block in blocks.items() if position in block.positions)


CASES = {
    **{f"block {name}": {"layers": name} for name in blocks},
    **{f"norm {name}": {"layers": "attn ff flash", "norm": name} for name in norms},
    **{f"position {name}": {"layers": able(name), "pos": name} for name in positions},
    **{f"residual {name}": {"layers": "attn gau", "residual": name} for name in residuals},
    "shift": {"layers": "attn ff flash", "shift_tokens": (2, 0, 1, 1, 3, 0)},
    "memory tokens": {"layers": "flash attn gau", "num_memory_tokens": 3, "shift_tokens": 1},
    "all blocks": {"layers": " ".join(blocks), "pos": "rotary", "shift_tokens": 1},
}


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("case", CASES)
def test_laws(case, causal, tmp_path):
    laws.all_laws(build(causal=causal, **CASES[case]), tmp_path)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("case", CASES)
def test_sane_start(case, causal):
    flags = dict(CASES[case])
    flags["shift_tokens"] = 1 if flags.get("shift_tokens") else 0
    stack = build(causal=causal, depth=12, **flags)
    if flags.get("residual") == "rezero":
        with torch.no_grad():
            for branch in stack.branches:
                branch.residual.gain.fill_(0.1)
    laws.sane_start(stack)


@pytest.mark.parametrize("name", blocks)
def test_bidirectional_blocks_refuse_to_step(name):
    stack = build(layers=name, causal=False)
    with pytest.raises(ValueError, match=r"bidirectional stack .* has no state and no step"):
        laws.go(stack, torch.randn(1, 3, DIM))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("name", blocks)
def test_documents_never_mix(name, causal):
    """Packed documents give what each gives alone, token-exact, or the block refuses doc_ids."""
    stack = laws.live(build(layers=f"{name} ff", causal=causal, shift_tokens=1))
    lengths = [7, 1, 13, 2]
    x = laws.sample(stack, sum(lengths))
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).expand(laws.BATCH, -1)
    if "doc_ids" not in blocks[name].honours and name != "ff":
        with pytest.raises(ValueError, match="cannot honour doc_ids"):
            stack(x, doc_ids=ids, **laws.beside(stack, x))
        return
    packed = stack(x, doc_ids=ids)
    for piece, out in zip(x.split(lengths, 1), packed.split(lengths, 1), strict=True):
        laws.close(out, stack(piece), "documents")


def test_the_laws_can_fail(tmp_path):
    """A block that looks ahead, and one that counts padding, are caught."""
    stack = laws.live(build(layers="attn", causal=True))
    stack.causal = True
    for block in stack.blocks():
        object.__setattr__(block.site, "causal", False)
    with pytest.raises(AssertionError, match="sees a later one"):
        laws.causal(stack)
    with pytest.raises(AssertionError, match="chunk"):
        laws.chunk(stack)


def test_every_registered_name_is_tested():
    assert {"attn", "ff", "gau", "flash", "cross_attn", "cross_gau"} <= set(xflash.blocks)
