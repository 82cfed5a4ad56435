"""The score step `selective`: what its sums are, one by one, documents, prefixes, and what a state holds of them."""

import laws
import torch
from cases import build

from xflash import Decoder, PrefixDecoder
from xflash.layers.scores.selective import Selective


def taken(s, mask):
    """What is taken from the score of each key, one by one."""
    found = torch.zeros_like(s[:, 0])
    for b, i, j in torch.ones_like(found).nonzero().tolist():
        if j:
            found[b, i, j] = sum(float(s[b, 0, q, j].relu()) for q in range(j + 1, i) if mask[q, j])
    return found


def seen(stack, x, monkeypatch):
    """The scores in front of the step and behind it."""
    both = []

    def before(self, s, read):
        both.append((s, true(self, s, read)))
        return both[-1][1]

    true = Selective.before
    with monkeypatch.context() as patch:
        patch.setattr(Selective, "before", before)
        with torch.no_grad():
            stack(x)
    return both[-1]


def test_definition(monkeypatch):
    for window, mem in ((None, 0), (4, 2)):
        stack = laws.live(
            build("attn", depth=1, causal=True, attn_scores="selective", attn_window=window, attn_num_mem_kv=mem)
        )
        s, left = seen(stack, laws.sample(stack, 9), monkeypatch)
        mask = torch.ones(9, 9, dtype=torch.bool).tril()
        mask = mask if window is None else mask.triu(1 - window)
        expected = taken(s[..., mem:], mask)
        assert expected.abs().max() > 0.1
        laws.close((s - left)[..., mem:] * mask, (expected[:, None] * mask).expand_as(s[..., mem:]), "sums")
        assert torch.equal(left[..., :mem], s[..., :mem])


def test_documents_fade_for_themselves():
    stack = laws.live(build("attn", causal=True, attn_scores="selective"))
    x, ids = laws.sample(stack, 9), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1]).expand(laws.BATCH, 9)
    laws.close(stack(x, doc_ids=ids), torch.cat((stack(x[:, :4]), stack(x[:, 4:])), 1), "documents")


def test_a_prefix_in_one_piece():
    stack = laws.live(PrefixDecoder(dim=34, depth=1, heads=2, layers="attn", attn_scores="selective"))
    x = laws.sample(stack, 7)
    whole, (head, state) = stack(x, prefix_attn_len=4), stack.step(x[:, :4], prefix_attn_len=4)
    laws.close(torch.cat((head, stack.step(x[:, 4:], state)[0]), 1), whole, "chunk")


def test_an_older_state_keeps_its_sums():
    """Sums are rewritten by every step: of a state that others have gone on from, too, in their own tensors."""
    stack = laws.live(Decoder(dim=34, depth=1, heads=2, layers="attn", attn_dim_head=6, attn_scores="selective"))
    x = laws.sample(stack, 9)
    with torch.no_grad():
        _, state = stack.step(x[:, :4])
        held = [t[:, :, :4].clone() for t in state.branches[0].block.brought]
        first = stack.step(x[:, 4:5], state)[0]
        for i in range(5, 9):
            stack.step(x[:, i : i + 1], state)
        assert all(
            torch.equal(a[:, :, :4], b[:, :, :4]) for a, b in zip(state.branches[0].block.brought, held, strict=True)
        )
        laws.close(stack.step(x[:, 4:5], state)[0], first, "again")
