"""The score step `cope`: by its definition, by x-transformers, and with what hides keys."""

import laws
import pytest
import torch
from cases import build

from xflash import Decoder, PrefixDecoder, Site
from xflash.layers.scores.cope import CoPE
from xflash.layers.scores.step import Read

MIXED = {
    "window": {"attn_window": 5, "attn_kv_heads": 2, "pos": "rotary"},
    "sinks": {"attn_window": 3, "attn_sinks": 2, "num_memory_tokens": 1, "attn_num_mem_kv": 2},
    "others": {"pos": "alibi", "attn_weight_fn": "sigmoid", "attn_scores": "residual forget cope talking_heads topk"},
    "streams": {"join": "orthogonal", "shift_tokens": 1, "attn_qk_norm": True, "reads": "lime"},
}


class Call:
    prefix = None


def step(positions: int, width: int = 7, heads: int = 4) -> CoPE:
    found = CoPE(CoPE.Config(positions=positions), Site(34, causal=True, dim_head=width), heads, "attn").double()
    found.e.data.normal_()
    return found


def defined(cope: CoPE, q, s, mask):
    """What is added to the score of each key, one by one."""
    found = torch.zeros_like(s)
    last = len(cope.e) - 1
    for b, h, i, j in torch.ones_like(s).nonzero().tolist():
        seen = mask[b, h, i] if mask.dim() == 4 else mask[i]
        p = min(float((s[b, h, i].sigmoid() * seen)[j : i + 1].sum()), last)
        n = min(int(p), last - 1)
        found[b, h, i, j] = q[b, h, i] @ ((1 - p + n) * cope.e[n] + (p - n) * cope.e[n + 1])
    return found


@pytest.mark.parametrize("positions", [2, 4, 64])
def test_definition(positions):
    cope, s = step(positions), torch.randn(2, 4, 11, 11, dtype=torch.float64)
    q, mask = torch.randn(2, 4, 11, 7, dtype=torch.float64), torch.ones(11, 11, dtype=torch.bool).tril()
    peer = pytest.importorskip("x_transformers.x_transformers").CoPE(7, 4, positions).double()
    peer.pos_emb.data = cope.e.data
    ours = cope.before(s, Read(q, q, Call(), mask=mask))
    laws.close(ours, s + defined(cope, q, s, mask), "definition")
    laws.close(ours, s + peer(q, s.masked_fill(~mask, -torch.inf)), "x-transformers")
    hidden = mask & (torch.rand(2, 4, 11, 11) < 0.7)
    laws.close(cope.before(s, Read(q, q, Call(), mask=hidden)), s + defined(cope, q, s, hidden), "hidden keys")


def strong(**flags):
    """A stack whose positions matter as much as what is there."""
    stack = laws.live(build("attn ff", causal=True, **{"attn_scores": "cope", "attn_cope_positions": 3, **flags}))
    for block in stack.blocks()[::2]:
        block.reader.steps["cope"].e.data.normal_(generator=torch.Generator().manual_seed(1))
    return stack


@pytest.mark.parametrize("case", MIXED)
def test_laws(case, tmp_path):
    laws.all_laws(strong(**MIXED[case]), tmp_path, ways=(False,))


def test_documents_count_for_themselves():
    stack = strong(pos="rotary")
    x, ids = laws.sample(stack, 9), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1]).expand(laws.BATCH, 9)
    laws.close(stack(x, doc_ids=ids), torch.cat((stack(x[:, :4]), stack(x[:, 4:])), 1), "documents")


def test_a_head_that_sees_nothing_counts_nothing():
    """Its scores are mixed into those of other heads, which must not hear of what comes later."""
    stack = strong(attn_scores="cope talking_heads")
    x, mask = laws.sample(stack, 6), torch.ones(1, 4, 6, 6, dtype=torch.bool)
    mask[:, 0, 2] = False
    later = torch.cat((x[:, :3], x[:, 3:] * 2), 1)
    laws.close(stack(later, attn_mask=mask)[:, :3], stack(x, attn_mask=mask)[:, :3], "blind")


def test_keys_ahead_in_a_prefix_are_at_zero():
    flags = {"dim": 34, "depth": 1, "heads": 2, "layers": "attn", "attn_scores": "cope", "attn_num_mem_kv": 1}
    stack = laws.live(PrefixDecoder(**flags))
    e = stack.blocks()[0].reader.steps["cope"].e
    with torch.no_grad():
        e.normal_()
        e[0] = 0
    x = laws.sample(stack, 5)
    whole, (head, state) = stack(x, prefix_attn_len=4), stack.step(x[:, :4], prefix_attn_len=4)
    laws.close(torch.cat((head, stack.step(x[:, 4:], state)[0]), 1), whole, "chunk")
    # The first token's own key is at most one position away, every other one ahead.
    first = stack(x[:, :4], prefix_attn_len=4)[:, 0]
    with torch.no_grad():
        e[2:] = 9
    laws.close(stack(x[:, :4], prefix_attn_len=4)[:, 0], first, "ahead")


def test_refused():
    with pytest.raises(ValueError, match="attn_scores has 'cope', which looks back only, in a bidirectional stack"):
        build("attn", causal=False, attn_scores="cope")
    with pytest.raises(ValueError, match="cross_attn_scores has 'cope', but cross_attn has no keys that are the row's"):
        build("cross_attn", causal=True, cross_attn_scores="cope")
    with pytest.raises(ValueError, match="attn_flash=True asks for the fused kernel, which makes no scores for attn_s"):
        Decoder(dim=34, depth=1, attn_scores="cope", attn_flash=True)
