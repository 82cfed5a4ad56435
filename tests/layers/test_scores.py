"""Steps on scores: by the kernel and by the matrix, in half a layout only, borrowed, refused, and one of one's own."""

import laws
import pytest
import torch
from cases import build
from torch import nn

import xflash
from xflash import Decoder, ScoreStep, scores
from xflash.layers.scores import read as reading


class Fresh(ScoreStep):
    """Keys are worth what they say themselves, as long as they are among the last; for testing only."""

    needs = frozenset({"causal"})
    brings = ("fresh",)

    def __init__(self, config, site, heads, kind):
        super().__init__(config, site, heads, kind)
        self.worth = nn.Linear(site.dim, heads)

    def bring(self, x, ctx, last):
        return {"fresh": self.worth(x).mT[..., None]}

    def bias(self, read):
        keys = torch.arange(read.k.shape[2], device=read.k.device)[None] if read.keys is None else read.keys
        return read.buffers["fresh"].mT / (1 + (read.at[:, None, :, None] - keys[:, None, None]).abs())


@pytest.fixture
def own():
    before = dict(scores._parts)
    scores.register("fresh")(Fresh)
    yield
    scores._parts = before


@pytest.mark.parametrize("flags", [{}, {"attn_window": 5}, {"attn_window": 3, "attn_sinks": 2, "attn_kv_heads": 2}])
def test_a_step_of_ones_own_with_a_buffer(own, flags, tmp_path):
    step = "fresh talking_heads" if not flags else "fresh"
    stack = build("attn ff", causal=True, attn_scores=step, num_memory_tokens=2, pos="rotary", **flags)
    laws.all_laws(stack, tmp_path, ways=(False,))
    assert xflash.from_config(stack.to_config()).to_config() == stack.to_config()
    with pytest.raises(ValueError, match="cross_attn_scores has 'fresh', but cross_attn has no buffers"):
        build("cross_attn", cross_attn_scores="fresh")


KERNEL = {"attn_scores": "forget learned_sink", "attn_num_mem_kv": 2, "attn_kv_heads": 2, "pos": "alibi"}


def test_what_is_a_bias_or_a_key_leaves_the_kernel(monkeypatch):
    """In training too: the definition is never asked for, and gives the same."""
    stacks = [laws.live(build("attn", causal=True, **KERNEL, attn_flash=flash)) for flash in (True, False)]
    x = laws.sample(stacks[0], 13)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "attend_slow", lambda *given: pytest.fail("the matrix was made"))
        fast = laws.trained(stacks[0], lambda: [stacks[0](x)])
    for ours, slow in zip(fast, laws.trained(stacks[1], lambda: [stacks[1](x)]), strict=True):
        laws.close(ours, slow, "kernel")


def test_documents_are_forgotten_for_themselves():
    stack = laws.live(build("attn", causal=True, attn_scores="forget", attn_forget_start=0.5))
    x = laws.sample(stack, 9)
    whole = stack(x, doc_ids=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1]).expand(laws.BATCH, 9))
    laws.close(whole, torch.cat((stack(x[:, :4]), stack(x[:, 4:])), 1), "documents")


def test_a_layer_of_its_own_step():
    layers = (
        "attn(scores='softclamp', softclamp_value=3) attn(scores='topk talking_heads', talking_heads_pre=False) attn"
    )
    stack = build(layers, depth=1, attn_topk_k=3, attn_scores="learned_sink")
    steps = [dict(block.reader.steps.items()) for block in stack.blocks()]
    assert [list(found) for found in steps] == [["softclamp"], ["topk", "talking_heads"], ["learned_sink"]]
    assert steps[0]["softclamp"].config.value == 3 and steps[1]["topk"].config.k == 3
    assert steps[1]["talking_heads"].config.post and not steps[1]["talking_heads"].config.pre
    assert "attn_topk_k" in stack.flag_table() and "attn_softclamp_value" in stack.flag_table()


def test_attn_lends_cross_attn_what_both_have():
    flags = {
        "dim": 24,
        "depth": 2,
        "cross_attend": True,
        "attn_dim_head": 16,
        "attn_window": 5,
        "attn_softclamp_value": 9,
    }
    stack = Decoder(**flags, attn_scores="forget softclamp residual", attn_weight_fn="sigmoid", cross_attn_dropout=0.1)
    own, cross = (block.config for block in stack.blocks()[:2])
    assert (cross.dim_head, cross.scores, cross.weight_fn, cross.dropout) == (16, ("softclamp",), "sigmoid", 0.1)
    assert own.dropout == 0 and stack.blocks()[1].reader.steps["softclamp"].config.value == 9
    assert xflash.from_config(stack.to_config()).to_config() == stack.to_config()
    other = Decoder(**flags, attn_scores="softclamp", cross_attn_scores=None, cross_attn_dim_head=7)
    assert (other.blocks()[1].config.dim_head, other.blocks()[1].config.scores) == (7, None)
    alone = xflash.CrossAttender(dim=24, depth=1, attn_dim_head=16)
    assert alone.blocks()[0].config.dim_head == 16 and "attn_dim_head" not in alone.arguments


@pytest.mark.parametrize("name", ["talking_heads", "learned_sink"])
def test_a_query_that_some_heads_blind_leaks_nothing(name):
    """A head that sees nothing reads zeros, and tells the others nothing of what it does not see."""
    stack = laws.live(build("attn", causal=True, attn_scores=name))
    x = laws.sample(stack, 6)
    mask = torch.ones(1, 4, 6, 6, dtype=torch.bool)
    mask[:, 0, 2] = False
    y = stack(x, attn_mask=mask)
    laws.close(stack(torch.cat((x[:, :3], x[:, 3:] * 2), 1), attn_mask=mask)[:, :3], y[:, :3], "blind")
