"""T5 of transformers is an XTransformer of these flags: the same logits, padded, decoded with a cache."""

import pytest
import torch
from peers import live, tokens
from transformers import T5Config, T5ForConditionalGeneration

from xflash.convert import from_pretrained, from_transformers

SIZES = {"d_model": 42, "d_kv": 10, "d_ff": 53, "num_heads": 6, "num_layers": 2, "vocab_size": 71}
CASES = {
    "1.0": {"num_decoder_layers": 3},
    "1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "few buckets": {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
    "head of its own": {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False},
}


def t5(case, dtype=torch.float32):
    model = T5ForConditionalGeneration(T5Config(**SIZES, **CASES[case]))
    if case == "head of its own":
        # As Flan-T5's weights are, whatever its config says.
        model.lm_head.weight = torch.nn.Parameter(torch.randn(71, 42))
    return live(model, dtype)


def logits(ours, src, tgt, mask=None, tgt_mask=None):
    return ours.decoder.net(tgt, tgt_mask, context=ours.encoder(src, mask), context_mask=mask)


@pytest.mark.parametrize("case", CASES)
def test_logits(case):
    src, tgt = tokens(3, 29), tokens(3, 23, seed=2)
    for dtype, most in ((torch.float32, 1e-4), (torch.float64, 1e-5)):
        theirs = t5(case, dtype)
        ours = from_transformers(theirs)
        with torch.no_grad():
            expected = theirs(input_ids=src, decoder_input_ids=tgt).logits
            assert expected.std() > 0.1
            assert (logits(ours, src, tgt) - expected).abs().max() < most


@pytest.mark.parametrize("case", CASES)
def test_padded_rows(case):
    theirs = t5(case)
    ours, src, tgt = from_transformers(theirs), tokens(3, 29), tokens(3, 23, seed=2)
    mask = torch.arange(29)[None] < torch.tensor([[29], [17], [1]])
    tgt_mask = torch.arange(23)[None] < torch.tensor([[5], [23], [9]])
    with torch.no_grad():
        found = logits(ours, src, tgt, mask, tgt_mask)
        for row in range(3):
            own, other = src[row, mask[row]][None], tgt[row, tgt_mask[row]][None]
            expected = theirs(input_ids=own, decoder_input_ids=other).logits[0]
            assert (found[row, tgt_mask[row]] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_decoding(case):
    theirs = t5(case)
    ours, src, tgt = from_transformers(theirs), tokens(2, 29), tokens(2, 23, seed=2)
    with torch.no_grad():
        expected = theirs(input_ids=src, decoder_input_ids=tgt).logits
        state, found = None, []
        for piece in tgt.split([5, *[1] * 18], 1):
            step, state = ours.decoder.net.step(piece, state, **({} if state else {"context": ours.encoder(src)}))
            found.append(step)
        assert (torch.cat(found, 1) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_folders(case, tmp_path):
    theirs = t5(case)
    theirs.save_pretrained(tmp_path)
    found, expected = from_pretrained(tmp_path), from_transformers(theirs)
    assert found.encoder.embedding.token_emb is found.decoder.net.embedding.token_emb
    assert all(torch.equal(t, expected.state_dict()[name]) for name, t in found.state_dict().items())
