"""`from_x_transformers` for what attends to a context: stacks, CrossAttender, XTransformer."""

import laws
import pytest
import torch
from x_transformers_cases import CROSS, LIMIT, SMALL, VOCABULARY, exact, make_stack, peers

from xflash import CrossAttender, Decoder, XTransformer, from_config, load
from xflash.convert.x_transformers import from_x_transformers

CLOSE = 1e-8
B, N, C = 3, 23, 11
MASK = torch.arange(N) < torch.tensor([[N], [14], [1]])
SEEN = torch.arange(C) < torch.tensor([[C], [2], [7]])


def close(ours, theirs, what):
    gap = (ours - theirs).abs().max().item()
    assert gap < CLOSE, f"{what}: off by {gap:.2e}"


def draw(n, width, seed):
    return torch.randn(B, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compare(ours, peer, flags):
    """Whole and padded calls and (causal) pieces, with whole and padded contexts."""
    x, context = draw(N, SMALL["dim"], 1), draw(C, flags.get("cross_attn_dim_context", SMALL["dim"]), 2)
    with torch.no_grad():
        for seen in (None, SEEN, SEEN.flip(1)):
            beside = {"context": context, "context_mask": seen}
            theirs = peer(x, **beside)
            close(ours(x, **beside), theirs, "whole")
            if ours.causal or not flags.get("shift_tokens"):
                close(ours(x, MASK, **beside)[MASK], peer(x, mask=MASK, **beside)[MASK], "padded")
            if ours.causal:
                head, state = ours.step(x[:, :5], **beside)
                close(torch.cat((head, laws.steps(ours, x[:, 5:], [1, 1, N - 7], None, state)[0]), 1), theirs, "pieces")
        if flags.get("rotary_pos_emb"):
            beside["context_pos"] = torch.tensor([3, 0, 1, 2, 9, 4, 5, 8, 40, 7, 6])
            close(ours(x, **beside), peer(x, **beside), "context_pos")


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("name", CROSS)
def test_stacks_give_the_same(name, causal):
    peer = exact(make_stack(CROSS[name], causal))
    ours = from_x_transformers(peer)
    assert ours.causal is causal and any(block.takes_context for block in ours.blocks())
    compare(ours, peer, CROSS[name])


@pytest.mark.parametrize("flags", [{}, {"cross_attn_dim_context": 20, "attn_kv_heads": 2, "ff_glu": True}], ids=str)
def test_a_cross_attender_gives_the_same(flags):
    peer = exact(peers.CrossAttender(**SMALL, **flags))
    ours = from_x_transformers(peer)
    assert type(ours) is CrossAttender and ours.layout == "(cross_attn ff) x 2"
    compare(ours, peer, flags)


def test_flags_are_those_a_person_would_write():
    flags = {"cross_attend": True, "attn_kv_heads": 2, "cross_attn_num_mem_kv": 3, "cross_attn_dim_context": 20}
    given = {k: v for k, v, spec in from_x_transformers(make_stack(flags, causal=True)).rows if v != spec.default}
    assert given == {
        "dim": 34, "depth": 2, "heads": 4, "causal": True, "layers": "attn cross_attn ff", "final_norm": True,
        "attn_dim_head": 12, "attn_kv_heads": 2, "cross_attn_dim_head": 12, "cross_attn_kv_heads": 2,
        "cross_attn_num_mem_kv": 3, "cross_attn_dim_context": 20,
    }  # fmt: skip


SIZES = {
    "dim": 34, "enc_num_tokens": VOCABULARY, "dec_num_tokens": VOCABULARY, "enc_depth": 1, "dec_depth": 2,
    "enc_heads": 2, "dec_heads": 4, "enc_attn_dim_head": 7, "dec_attn_dim_head": 12, "enc_max_seq_len": C,
    "dec_max_seq_len": LIMIT, "enc_verbose": False, "dec_verbose": False,
}  # fmt: skip
PAIRS = {
    "plain": {},
    "tied": {"tie_token_emb": True},
    "other vocabulary": {"enc_num_tokens": 19, "ignore_index": -5, "pad_value": 3, "cross_attn_tokens_dropout": 0.2},
    "rotary, memory tokens": {
        "enc_rotary_pos_emb": True, "dec_rotary_pos_emb": True, "enc_num_memory_tokens": 3, "tie_token_emb": True,
    },
    "sinusoidal": {"enc_scaled_sinu_pos_emb": True, "dec_use_abs_pos_emb": False, "dec_rel_pos_bias": True},
    "inherited": {
        "dec_attn_kv_heads": 2, "dec_attn_num_mem_kv": 2, "dec_cross_attn_num_mem_kv": 0,
        "enc_ff_glu": True, "dec_use_rmsnorm": True, "enc_emb_dropout": 0.1, "dec_shift_tokens": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_an_xtransformer_gives_the_same(name, tmp_path):
    torch.manual_seed(0)
    flags = {**SIZES, **PAIRS[name]}
    peer = exact(peers.XTransformer(**flags))
    ours = from_x_transformers(peer)
    assert type(ours) is XTransformer and type(ours.decoder.net.attn_layers) is Decoder
    src, tgt = torch.randint(0, flags["enc_num_tokens"], (B, C)), torch.randint(0, VOCABULARY, (B, N))
    front = draw(4, 34, 3)
    with torch.no_grad():
        for mask in (None, SEEN):
            close(ours(src, tgt, mask=mask), peer(src, tgt, mask=mask), "loss")
            theirs = peer(src, tgt, mask=mask, src_prepend_embeds=front)
            close(ours(src, tgt, mask=mask, src_prepend_embeds=front), theirs, "embeddings in front")
            found = ours.encode(src, mask)
            encoded = peer.encoder(src, mask=mask, return_embeddings=True)
            close(found.context[SEEN], encoded[SEEN], "encoder")
            logits = peer.decoder.net(tgt, mask=MASK, context=encoded, context_mask=mask)
            own = ours.decoder.net(tgt, MASK, context=found.context, context_mask=found.mask)
            close(own[MASK], logits[MASK], "decoder")
        ignored = tgt.masked_fill(~MASK, flags.get("ignore_index", -100))
        close(ours(src, ignored, mask=SEEN), peer(src, ignored, mask=SEEN), "padded targets")
        close(ours(src, tgt, mask=SEEN, tgt_mask=MASK), peer(src, ignored, mask=SEEN), "a mask of the target")
        made = ours.generate(src, tgt[:, :2], 5, mask=SEEN, temperature=0.0)
        # Without its cache, which knows nothing of token shift.
        theirs = peer.generate(src, tgt[:, :2], 5, mask=SEEN, temperature=0.0, cache_kv=False)
        assert torch.equal(made, theirs)
    assert (ours.decoder.ignore_index, ours.decoder.pad_value) == (peer.decoder.ignore_index, peer.decoder.pad_value)
    assert ours.cross_attn_tokens_dropout == peer.cross_attn_tokens_dropout
    tied = PAIRS[name].get("tie_token_emb", False)
    assert (ours.encoder.embedding.token_emb is ours.decoder.net.embedding.token_emb) is tied
    assert not {p.data_ptr() for p in ours.parameters()} & {p.data_ptr() for p in peer.parameters()}
    assert from_config(ours.to_config()).to_config() == ours.to_config()
    ours.save(tmp_path)
    assert torch.equal(load(tmp_path).eval()(src, tgt, mask=SEEN), ours(src, tgt, mask=SEEN))
