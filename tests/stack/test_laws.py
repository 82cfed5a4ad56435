"""The laws over everything that is registered: a new part of any kind is tested by being there."""

import laws
import pytest
import torch
from cases import CASES, COMPANY, DIM, both_ways, build
from quick import quick

import xflash
from xflash.base.registry import blocks

# Each block, and a part of what may stand in its place.
SOME = quick(both_ways(CASES), lambda case, number: case.startswith("block ") or number % 9 == 0)
PACKED = [name for name, block in blocks.items() if "doc_ids" in block.honours]


@pytest.mark.parametrize(("flags", "causal"), SOME)
def test_laws(flags, causal, tmp_path):
    # A column of many blocks stands for itself, those of one or two are repeated.
    once = len(flags["layers"].split()) > 2 and not isinstance(flags.get("shift_tokens"), tuple)
    laws.all_laws(build(causal=causal, **{"depth": 1 if once else 2, **flags}), tmp_path)


@pytest.mark.parametrize(("flags", "causal"), SOME)
def test_sane_start(flags, causal):
    flags = {**flags, "shift_tokens": 1 if flags.get("shift_tokens") else 0}
    stack = build(causal=causal, **{"depth": 12, **flags})
    if "rezero" in flags.get("scale", ""):
        with torch.no_grad():
            for branch in stack.branches:
                branch.scale["rezero"].gain.fill_(0.1)
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


@pytest.mark.parametrize(
    ("name", "causal"), [(n, way) for n in PACKED for way in (True, False) if way or not blocks[n].causal_only]
)
def test_a_number_that_comes_again_is_another_document(name, causal):
    """Alike for every block, and for the loss: a document is a run of equal numbers among the real tokens."""
    layers = COMPANY.get(name, name)
    stack = laws.live(build(layers=layers, causal=causal, shift_tokens=1))
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
            xflash.TransformerWrapper(num_tokens=29, max_seq_len=13, attn_layers=build(layers=layers, causal=True))
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
