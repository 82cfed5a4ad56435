"""Encoders of transformers are these flags: the same logits and embeddings, padded, in both precisions."""

import pytest
import torch
from peers import of_class, tokens
from transformers import BertForMaskedLM, BertForPreTraining, BertModel, RobertaForMaskedLM, RobertaModel

from xflash.convert import from_pretrained, from_transformers

SIZES = {"hidden_size": 48, "max_position_embeddings": 41}
CASES = {
    "bert": (BertForMaskedLM, {}),
    "bert with another activation": (BertForMaskedLM, {"hidden_act": "relu", "layer_norm_eps": 1e-3}),
    "bert without a head": (BertModel, {}),
    "bert with two heads": (BertForPreTraining, {}),
    "roberta": (RobertaForMaskedLM, {"type_vocab_size": 1}),
    "roberta with other padding": (RobertaForMaskedLM, {"pad_token_id": 2, "hidden_act": "silu"}),
    "roberta without a head": (RobertaModel, {}),
}


def output(theirs, x, **beside):
    out = theirs(x, **beside)
    return next(
        found
        for name in ("logits", "prediction_logits", "last_hidden_state")
        if (found := getattr(out, name, None)) is not None
    )


def difference(ours, theirs):
    return (ours - theirs).abs().max().item()


def types(theirs, x):
    return torch.arange(x.shape[1]).div(5, rounding_mode="floor").expand_as(x) % theirs.config.type_vocab_size


@pytest.mark.parametrize("case", CASES)
def test_outputs(case):
    cls, settings = CASES[case]
    x = tokens(3, 31)
    for dtype, most in ((torch.float32, 1e-4), (torch.float64, 1e-8)):
        theirs = of_class(cls, dtype, **SIZES, **settings)
        ours, kinds = from_transformers(theirs), types(theirs, x)
        with torch.no_grad():
            expected = output(theirs, x, token_type_ids=kinds)
            assert expected.std() > 0.1
            assert difference(ours(x, embed_ids={"token_type": kinds}), expected) < most


@pytest.mark.parametrize("case", CASES)
def test_padded_rows(case):
    cls, settings = CASES[case]
    theirs = of_class(cls, **SIZES, **settings)
    ours, x, lengths = from_transformers(theirs), tokens(3, 29), (29, 17, 1)
    for left in (False, True):
        mask = torch.arange(29)[None] < torch.tensor(lengths)[:, None]
        mask = mask.flip(1) if left else mask
        with torch.no_grad():
            found = ours(x, mask, embed_ids={"token_type": torch.zeros_like(x)})
            for row in range(3):
                real = mask[row]
                assert difference(found[row, real], output(theirs, x[row, real][None])[0]) < 1e-4


@pytest.mark.parametrize("cls", [BertForMaskedLM, RobertaModel])
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
