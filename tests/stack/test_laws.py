"""The laws over everything that is registered: a new block, norm, position or residual is tested by being there."""

import laws
import pytest
import torch

import xflash
from xflash import AttentionLayers
from xflash.base.registry import blocks, norms, positions, residuals

SMALL = {
    "attn": {"attn_dim_head": 6},
    "gau": {"gau_query_key_dim": 14},
    "flash": {"flash_query_key_dim": 14, "flash_group_size": 5},
    "block_attn": {"block_attn_block_width": 5, "block_attn_dim_head": 6},
    "recurrent": {"recurrent_block_width": 5, "recurrent_dim_head": 6, "recurrent_num_state_vectors": 3},
    "state_read": {"state_read_dim_head": 6},
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


# What a block needs beside it.
COMPANY = {"state_read": "state_read recurrent"}
CASES = {
    **{f"block {name}": {"layers": COMPANY.get(name, name)} for name in blocks},
    "a context in pieces": {"layers": "cross_attn state_read recurrent", "shift_tokens": 1, "num_memory_tokens": 7},
    "states read below": {"layers": "block_attn(read_from=(1,)) flash recurrent(reads=False) ff", "depth": 1},
    "read_layer": {"layers": "block_attn recurrent(read_layer=1) ff", "depth": 1},
    "compressed": {"layers": "recurrent ff", "recurrent_compress": "conv", "recurrent_compress_factor": 5},
    "compress loss": {"layers": "block_attn ff", "block_attn_compress": "conv", "block_attn_compress_factor": 5}
    | {"block_attn_compress_loss": True, "num_memory_tokens": 7},
    # Ten tokens are held: less than the sequences have.
    "retrieve": {"layers": "recurrent ff", "recurrent_retrieve": 3, "recurrent_retrieve_len": 10, "shift_tokens": 1},
    "retrieve all": {"layers": "block_attn ff", "block_attn_retrieve": 99, "pos": "rotary", "num_memory_tokens": 11},
    "sliding": {"layers": "block_attn ff", "block_attn_reach": "sliding", "pos": "rotary", "rotary_xpos": True},
    "lstm": {
        "layers": "recurrent",
        "recurrent_gate": "lstm",
        "recurrent_update": "dual",
        "recurrent_write_from": "window",
    },
    "gru": {"layers": "recurrent", "recurrent_gate": "gru", "recurrent_update": "single", "recurrent_kv_heads": 2},
    **{f"norm {name}": {"layers": "attn ff flash", "norm": name} for name in norms},
    **{f"position {name}": {"layers": able(name), "pos": name} for name in positions},
    **{f"residual {name}": {"layers": "attn gau", "residual": name} for name in residuals},
    "shift": {"layers": "attn ff flash", "shift_tokens": (2, 0, 1, 1, 3, 0)},
    "sinks": {"layers": "attn(window=3,sinks=2) ff", "pos": ("rotary", "rel_pos")},
    "memory tokens": {"layers": "flash attn gau", "num_memory_tokens": 3, "shift_tokens": 1},
    # Blocks of ten, lest the sequences that the laws use fall into too many pieces.
    "all blocks": {
        "layers": " ".join(blocks).replace("recurrent", "recurrent(block_width=10)"),
        "pos": "rotary",
        "shift_tokens": 1,
    },
}


def both_ways(cases: dict[str, dict]) -> list:
    """Each case as a causal stack and, without blocks that look back only, as a bidirectional one: (flags, causal)."""
    found = []
    for case, flags in cases.items():
        found.append(pytest.param(flags, True, id=f"{case}-causal"))
        entries = flags["layers"].split()
        gone = [entry for entry in entries if blocks[entry.split("(")[0]].causal_only]
        left = " ".join(entry for entry in entries if entry not in gone)
        if left and not any(flag.startswith(tuple(gone)) for flag in flags if gone):
            found.append(pytest.param({**flags, "layers": left}, False, id=f"{case}-bidirectional"))
    return found


@pytest.mark.parametrize(("flags", "causal"), both_ways(CASES))
def test_laws(flags, causal, tmp_path):
    # A column of many blocks stands for itself, those of one or two are repeated.
    once = len(flags["layers"].split()) > 2 and not isinstance(flags.get("shift_tokens"), tuple)
    laws.all_laws(build(causal=causal, **{"depth": 1 if once else 2, **flags}), tmp_path)


@pytest.mark.parametrize(("flags", "causal"), both_ways(CASES))
def test_sane_start(flags, causal):
    flags = {**flags, "shift_tokens": 1 if flags.get("shift_tokens") else 0}
    stack = build(causal=causal, **{"depth": 12, **flags})
    if flags.get("residual") == "rezero":
        with torch.no_grad():
            for branch in stack.branches:
                branch.residual.gain.fill_(0.1)
    laws.sane_start(stack)


@pytest.mark.parametrize("name", blocks)
def test_bidirectional_blocks_refuse_to_step(name):
    if blocks[name].causal_only:
        with pytest.raises(ValueError, match=f"has '{name}', which looks back only, in a bidirectional stack"):
            build(layers=name, causal=False)
        return
    stack = build(layers=name, causal=False)
    with pytest.raises(ValueError, match=r"bidirectional stack .* has no state and no step"):
        laws.go(stack, torch.randn(1, 3, DIM))


@pytest.mark.parametrize(
    ("name", "causal"), [(n, causal) for n in blocks for causal in (True, False) if causal or not blocks[n].causal_only]
)
def test_documents_never_mix(name, causal):
    """Packed documents give what each gives alone, token-exact, or the block refuses doc_ids."""
    stack = laws.live(build(layers=f"{COMPANY.get(name, name)} ff", causal=causal, shift_tokens=1))
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


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("name", [name for name, block in blocks.items() if "doc_ids" in block.honours])
def test_a_number_that_comes_again_is_another_document(name, causal):
    """Alike for every block, and for the loss: a document is a run of equal numbers among the real tokens."""
    stack = laws.live(build(layers=name, causal=causal, shift_tokens=1))
    x = laws.sample(stack, 11)
    again = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0, 0, 5, 0]]).expand(3, -1)
    runs = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 4]]).expand(3, -1)
    laws.close(stack(x, doc_ids=again), stack(x, doc_ids=runs), "runs")
    # A masked token does not exist, so that what stands on both sides of it is one run.
    mask = torch.ones(3, 11, dtype=torch.bool)
    mask[1, 3:7] = False
    joined = runs.clone()
    joined[1, 7:9] = 0
    laws.close(stack(x, mask, doc_ids=again), stack(x, mask, doc_ids=joined), "runs of real tokens")
    if causal:
        net = laws.live(
            xflash.TransformerWrapper(num_tokens=29, max_seq_len=13, attn_layers=build(layers=name, causal=True))
        )
        loss, ids = (
            xflash.AutoregressiveWrapper(net),
            torch.randint(29, (3, 11), generator=torch.Generator().manual_seed(0)),
        )
        laws.close(loss(ids, doc_ids=again), loss(ids, doc_ids=runs), "loss")
        laws.close(loss(ids, mask, doc_ids=again), loss(ids, mask, doc_ids=joined), "loss of real tokens")


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
