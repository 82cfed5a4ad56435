"""T5 and BART of transformers are an XTransformer of these flags: the same logits, padded, decoded with a cache."""

import json

import pytest
import torch
from peers import live, same, tokens
from transformers import BartForConditionalGeneration, BartModel, T5ForConditionalGeneration

from xflash.convert import from_pretrained, from_transformers

SIZES = {"d_model": 42, "d_kv": 10, "d_ff": 53, "num_heads": 6, "num_layers": 2, "vocab_size": 71}
BART = {"d_model": 48, "vocab_size": 71, "max_position_embeddings": 41, "encoder_layers": 2, "decoder_layers": 3}
BART |= {"encoder_attention_heads": 6, "decoder_attention_heads": 4, "encoder_ffn_dim": 53, "decoder_ffn_dim": 67}
CASES = {
    "t5 1.0": (T5ForConditionalGeneration, {**SIZES, "num_decoder_layers": 3}),
    "t5 1.1": (T5ForConditionalGeneration, {**SIZES, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5 few buckets": (
        T5ForConditionalGeneration,
        {**SIZES, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
    ),
    "t5 head of its own": (
        T5ForConditionalGeneration,
        {**SIZES, "feed_forward_proj": "gated-silu", "tie_word_embeddings": False},
    ),
    "bart": (BartForConditionalGeneration, BART),
    "bart scaled": (BartForConditionalGeneration, {**BART, "scale_embedding": True, "activation_function": "relu"}),
}


def model(case, dtype=torch.float32):
    cls, settings = CASES[case]
    made = cls(cls.config_class(**settings))
    if case == "t5 head of its own":
        # As Flan-T5's weights are, whatever its config says.
        made.lm_head.weight = torch.nn.Parameter(torch.randn(71, 42))
    if case == "bart":
        made.final_logits_bias.copy_(torch.randn(1, 71))
    return live(made, dtype)


def logits(ours, src, tgt, mask=None, tgt_mask=None):
    return ours.decoder.net(tgt, tgt_mask, context=ours.encoder(src, mask), context_mask=mask)


@pytest.mark.parametrize("case", CASES)
def test_logits(case):
    src, tgt = tokens(3, 29), tokens(3, 23, seed=2)
    for dtype, most in ((torch.float32, 1e-4), (torch.float64, 1e-8 if case.startswith("bart") else 1e-5)):
        theirs = model(case, dtype)
        ours = from_transformers(theirs)
        with torch.no_grad():
            expected = theirs(input_ids=src, decoder_input_ids=tgt).logits
            assert expected.std() > 0.1
            assert (logits(ours, src, tgt) - expected).abs().max() < most


@pytest.mark.parametrize("case", CASES)
def test_padded_rows(case):
    theirs = model(case)
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
    theirs = model(case)
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
    theirs = model(case)
    theirs.save_pretrained(tmp_path)
    found, expected = from_pretrained(tmp_path), from_transformers(theirs)
    assert found.encoder.embedding.token_emb is found.decoder.net.embedding.token_emb
    assert all(torch.equal(t, expected.state_dict()[name]) for name, t in found.state_dict().items())


def test_bart_without_a_head_has_its_embedding_as_head(tmp_path):
    """As base and large are published."""
    theirs = live(BartModel(BartModel.config_class(**BART)))
    theirs.save_pretrained(tmp_path)
    src, tgt = tokens(2, 13), tokens(2, 11, seed=2)
    with torch.no_grad():
        hidden = theirs(input_ids=src, decoder_input_ids=tgt).last_hidden_state
        for ours in (from_pretrained(tmp_path), from_transformers(theirs)):
            assert (logits(ours, src, tgt) - hidden @ theirs.shared.weight.mT).abs().max() < 1e-4


def test_names_of_old(tmp_path):
    """The largest ones of T5 1.0 say another class."""
    theirs = model("t5 1.0")
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["T5WithLMHeadModel"]}))
    same(from_pretrained(tmp_path), from_transformers(theirs))
