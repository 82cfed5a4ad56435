"""Forgetful causal masking: what is hidden while training, from whom, and who cannot."""

import pytest
import torch
from tiny_lm import TinyLM

from xflash import AutoregressiveWrapper, Decoder, PrefixDecoder, RecurrentMemoryWrapper, TransformerWrapper
from xflash.wrappers.forgetting import forgetful

B, N, V, DIM = 3, 11, 37, 10
HOLES = torch.tensor([[1] * N, [1, 1, 0, 1, 1, 0, 1, 1, 1, 0, 1], [0, 0, 1, 1, 1] + [0] * 6]).bool()
DOCS = torch.tensor([[0] * 4 + [1] * 7, [2] * 11, [3] * 2 + [4] * 9])


def net(stack=Decoder, **flags):
    torch.manual_seed(0)
    flags = {"layers": "attn", "attn_dim_head": 4, **flags}
    flags |= {"gau_query_key_dim": 6} if "gau" in flags["layers"] else {}
    stack = stack(dim=DIM, depth=1, heads=2, pos="rotary", **{k: v for k, v in flags.items() if k != "attn_dim_head"})
    return TransformerWrapper(num_tokens=V, attn_layers=stack).double()


FRONT = {"prepend_embeds": torch.randn(B, 2, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.double)}
CASES = {
    "plain": (net, {}),
    "gau": (lambda: net(layers="gau"), {}),
    "memory tokens": (lambda: net(num_memory_tokens=2), {"mask": HOLES}),
    "documents": (net, {"doc_ids": DOCS, "mask": HOLES}),
    "lengths": (net, {"lens": [N, 4, 1]}),
    "embeddings in front": (lambda: net(num_memory_tokens=2), FRONT),
    "a prefix": (lambda: net(PrefixDecoder, num_memory_tokens=1), {"prefix_attn_len": 4, **FRONT}),
    "another mask": (net, {"attn_mask": torch.ones(N, N).tril(-2).bool() | torch.eye(N).bool()}),
}


def ids():
    return torch.randperm(V, generator=torch.Generator().manual_seed(2))[: B * N].view(B, N)


def hidden_of(given):
    """Which tokens are hidden from later ones, by the seed, and which are real."""
    mask = given.get("mask", torch.ones(B, N, dtype=torch.bool))
    if "lens" in given:
        mask = torch.arange(N) < torch.tensor(given["lens"])[:, None]
    torch.manual_seed(7)
    front = {name: value for name, value in given.items() if name == "prepend_embeds"}
    seen = forgetful(ids(), mask, given.get("doc_ids"), front, 0.4)[:, 0]
    p = 2 if front else 0
    assert seen.diagonal(dim1=1, dim2=2).all() and seen[:, :, :p].all() and seen.shape[1:] == (p + N, p + N)
    hidden = ~seen[:, -1] | ~seen[:, p]
    alike = seen | torch.eye(p + N).bool()
    assert (alike == (~hidden[:, None] | torch.eye(p + N).bool())).all()
    return hidden[:, p:], mask


@pytest.mark.parametrize("name", CASES)
def test_what_is_hidden(name):
    """As many as are asked for, none at the beginning, and no later token depends on one."""
    make, given = CASES[name]
    model, x = make(), ids()
    hidden, real = hidden_of(given)
    assert not (hidden & ~real).any() and hidden.any()
    docs = given.get("doc_ids", torch.zeros(B, N))
    for row in range(B):
        places = real[row].nonzero().flatten().tolist()
        firsts = [i for at, i in enumerate(places) if at == 0 or docs[row, i] != docs[row, places[at - 1]]]
        assert not hidden[row, firsts].any()
        assert hidden[row].sum() == min(int(len(places) * 0.4 + 1e-4), len(places) - len(firsts))
    torch.manual_seed(7)
    loss, logits = AutoregressiveWrapper(model, mask_prob=0.4).train()(x, return_outputs=True, **given)
    assert loss.isfinite()
    table = model.embedding.token_emb.weight
    found = 0
    for row, i in real[:, :-1].nonzero().tolist():
        (grad,) = torch.autograd.grad(logits[row, i].logsumexp(-1), table, retain_graph=True)
        depends = grad[x[row]].abs().amax(1) > 0
        assert depends[i] and not (depends & hidden[row])[torch.arange(N) != i].any()
        found += int(depends.sum())
    assert found > 2 * real.sum()


def test_it_ends_with_training():
    x, plain = ids(), AutoregressiveWrapper(net())
    trainer = AutoregressiveWrapper(plain.net, mask_prob=0.4)
    losses = [trainer(x).item() for _ in range(3)]
    assert len(set(losses)) == 3 and plain(x).item() not in losses
    assert "mask_prob=0.4" in repr(trainer.extra_repr()) and "mask_prob" not in plain.extra_repr()
    for model in (trainer.eval(), AutoregressiveWrapper(plain.net, mask_prob=0.01).train()):
        torch.testing.assert_close(model(x), plain(x))


def test_who_cannot_forget():
    sizes = {"flash_group_size": 4, "flash_query_key_dim": 6}
    flash = TransformerWrapper(
        num_tokens=V, attn_layers=Decoder(dim=DIM, depth=1, layers="attn flash", pos="rotary", **sizes)
    )
    with pytest.raises(ValueError, match=r"mask_prob=0.2 hides tokens by attn_mask, which MixedChunkAttention cannot"):
        AutoregressiveWrapper(flash, mask_prob=0.2)
    for model in (TinyLM(), RecurrentMemoryWrapper(net(), 2, 4)):
        with pytest.raises(TypeError, match=r"mask_prob=0.2 hides tokens by attn_mask, which \w+\.forward does not"):
            AutoregressiveWrapper(model, mask_prob=0.2)
    with pytest.raises(TypeError, match="attn_mask must be a boolean tensor"):
        AutoregressiveWrapper(net(), mask_prob=0.2)(ids(), attn_mask="causal")
    with pytest.raises(ValueError, match=r"mask_prob must be below 1, not 1\.0"):
        AutoregressiveWrapper(net(), mask_prob=1.0)
