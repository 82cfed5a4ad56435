"""Encoders of transformers are these flags: the same logits and embeddings, padded, in both precisions."""

import pytest
import torch
from peers import of_class, tokens
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    Gemma3TextModel,
    ModernBertForMaskedLM,
    ModernBertModel,
    RobertaForMaskedLM,
    RobertaModel,
)

from xflash.convert import from_pretrained, from_transformers

SIZES = {"hidden_size": 48, "max_position_embeddings": 41}
CASES = {
    "bert": (BertForMaskedLM, {}),
    "bert with another activation": (BertForMaskedLM, {"hidden_act": "relu", "layer_norm_eps": 1e-3}),
    "bert without a head": (BertModel, {}),
    "bert with two heads": (BertForPreTraining, {}),
    "gemma3 both ways": (
        Gemma3TextModel,
        {
            "use_bidirectional_attention": True,
            "sliding_window": 6,
        }
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "modernbert": (ModernBertForMaskedLM, {"local_attention": 6, "num_hidden_layers": 4}),
    "modernbert with biases": (
        ModernBertForMaskedLM,
        {"norm_bias": True, "classifier_bias": True, "attention_bias": True, "mlp_bias": True, "local_attention": 7},
    ),
    "modernbert without a head": (ModernBertModel, {"local_attention": 6, "hidden_activation": "silu"}),
    "roberta": (RobertaForMaskedLM, {"type_vocab_size": 1}),
    "roberta with other padding": (RobertaForMaskedLM, {"pad_token_id": 2, "hidden_act": "silu"}),
    "roberta without a head": (RobertaModel, {}),
}


def output(theirs, x, **given):
    out = theirs(x, **given)
    return next(
        found
        for name in ("logits", "prediction_logits", "last_hidden_state")
        if (found := getattr(out, name, None)) is not None
    )


def difference(ours, theirs):
    return (ours - theirs).abs().max().item()


def beside(theirs, x):
    """What both are given beside the tokens: their types, where there are any."""
    count = getattr(theirs.config, "type_vocab_size", 0)
    if not count:
        return {}, {}
    kinds = torch.arange(x.shape[1]).div(5, rounding_mode="floor").expand_as(x) % count
    return {"embed_ids": {"token_type": kinds}}, {"token_type_ids": kinds}


# transformers computes the angles of rotary positions in float32 always.
MOST = {"modernbert": 1e-5, "gemma3_text": 1e-5}


@pytest.mark.parametrize("case", CASES)
def test_outputs(case):
    cls, settings = CASES[case]
    x = tokens(3, 31)
    for dtype, most in ((torch.float32, 1e-4), (torch.float64, MOST.get(cls.config_class.model_type, 1e-8))):
        theirs = of_class(cls, dtype, **SIZES, **settings)
        ours, (given, theirs_given) = from_transformers(theirs), beside(theirs, x)
        with torch.no_grad():
            expected = output(theirs, x, **theirs_given)
            assert expected.std() > 0.1
            assert difference(ours(x, **given), expected) < most


@pytest.mark.parametrize("case", CASES)
def test_padded_rows(case):
    cls, settings = CASES[case]
    theirs = of_class(cls, **SIZES, **settings)
    ours, x, lengths = from_transformers(theirs), tokens(3, 29), (29, 17, 1)
    for left in (False, True):
        mask = torch.arange(29)[None] < torch.tensor(lengths)[:, None]
        mask = mask.flip(1) if left else mask
        with torch.no_grad():
            given = {"embed_ids": {"token_type": torch.zeros_like(x)}} if beside(theirs, x)[0] else {}
            found = ours(x, mask, **given)
            for row in range(3):
                real = mask[row]
                assert difference(found[row, real], output(theirs, x[row, real][None])[0]) < 1e-4


@pytest.mark.parametrize("cls", [BertForMaskedLM, ModernBertForMaskedLM, RobertaModel])
def test_folders(cls, tmp_path):
    theirs = of_class(cls, **SIZES)
    theirs.save_pretrained(tmp_path)
    found, expected = from_pretrained(tmp_path).state_dict(), from_transformers(theirs).state_dict()
    assert list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in found)


def test_decoders_of_bert_are_refused():
    theirs = of_class(BertModel, **SIZES)
    theirs.config.is_decoder = True
    with pytest.raises(ValueError, match="is_decoder=True of a 'bert' config has no counterpart in xflash; only False"):
        from_transformers(theirs)
