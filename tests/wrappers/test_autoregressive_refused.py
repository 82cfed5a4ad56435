"""What the loss and the generation of a causal model refuse, each in a sentence."""

import pytest
import torch
from tiny_lm import TinyLM

from xflash import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper

B, N, NEW = 3, 5, 13
IDS = torch.zeros(B, N, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: m(IDS.float()), TypeError, "x must hold integer token ids, not torch.float32"),
        (lambda m: m([1, 2]), TypeError, r"x must be a tensor of integer token ids, not \[1, 2\] of type list"),
        (lambda m: m(IDS[0]), ValueError, r"x has shape \(5,\), but a loss needs \(b, n\)"),
        (lambda m: m(IDS[:, :1]), ValueError, r"x has shape \(3, 1\), but a loss needs .* at least n = 2 tokens"),
        (lambda m: m(IDS + 11), ValueError, "ids out of range"),
        (lambda m: m(torch.cat((IDS, IDS[:, :1] + 11), 1)), ValueError, "the target 11 is not in the vocabulary"),
        (lambda m: m(IDS, labels=IDS[:, 1:]), ValueError, r"labels has shape \(3, 4\), but x has \(3, 5\)"),
        (lambda m: m(IDS, doc_ids=IDS[:1]), ValueError, r"doc_ids has shape \(1, 5\), but x has \(3, 5\)"),
        (lambda m: m(IDS, doc_ids=IDS.float()), TypeError, "doc_ids must hold integer token ids"),
        (lambda m: m(IDS, IDS.float()), TypeError, "mask must be boolean .* not torch.float32"),
        (lambda m: m(IDS, IDS[:, 1:] == 0), ValueError, r"mask has shape \(3, 4\)"),
        (lambda m: m(IDS, lens=[5, 6, 1]), ValueError, r"lens must be from 0 to 5, .* not 6"),
        (lambda m: m(IDS, lens=[5, 4]), ValueError, r"lens has shape \(2,\), but there are 3 rows"),
        (lambda m: m(IDS, lens=5), TypeError, "lens must be a tensor or a list of 3 lengths, not 5 of type int"),
        (lambda m: m(IDS, lens=[5.0, 4.0, 3.0]), TypeError, r"lens\[0\] must be a whole number, not 5.0"),
        (
            lambda m: AutoregressiveWrapper("net"),
            TypeError,
            "net must be a model from token ids .* such as Transf.*not 'net'",
        ),
        (lambda m: AutoregressiveWrapper(m.net, pad_value=0.5), TypeError, "pad_value must be a whole number, not 0.5"),
        (lambda m: AutoregressiveWrapper(m.net, ignore_index=None), TypeError, "ignore_index must be a whole number"),
    ],
)
def test_errors_of_the_loss(model, call, error, match):
    with pytest.raises(error, match=match):
        call(model)


@pytest.mark.parametrize("method", ["generate", "stream", "beam_search"])
@pytest.mark.parametrize(
    ("prompts", "options", "error", "match"),
    [
        (IDS, {"seq_len": 0}, ValueError, "seq_len must be at least 1, not 0"),
        (IDS, {"seq_len": 2.0}, TypeError, "seq_len must be a whole number, not 2.0 of type float"),
        (IDS, {"temperature": -1.0}, ValueError, "temperature must be .* not -1.0"),
        (IDS, {"temperature": "hot"}, TypeError, "temperature must be a number, not 'hot' of type str"),
        (IDS, {"eos_token": 11}, ValueError, r"eos_token=11 is not in the model's vocabulary of 11 tokens \(0 to 10\)"),
        (IDS, {"eos_token": -1}, ValueError, "eos_token must be at least 0, not -1"),
        (
            IDS,
            {"eos_token": torch.tensor(3)},
            TypeError,
            "must be a whole number, not a tensor of torch.int64",
        ),
        (IDS.float(), {}, TypeError, "prompts must hold integer token ids, not torch.float32"),
        (IDS.bool(), {}, TypeError, "prompts must hold integer token ids, not torch.bool"),
        ("text", {}, TypeError, "prompts must be a tensor of integer token ids, not 'text' of type str"),
        (IDS[0, 0], {}, ValueError, r"prompts has no dimension: give \(n,\) for one prompt"),
        (IDS[:, :0], {}, ValueError, r"prompts of shape \(3, 0\) are empty: a prompt needs at least one token"),
        (IDS[:0], {}, ValueError, r"prompts of shape \(0, 5\) are empty"),
        ([], {}, ValueError, "prompts is an empty list: give at least one prompt"),
        ([IDS[0], IDS[0, :0]], {}, ValueError, "the prompt in row 1 is empty: a prompt needs at least one token"),
        ([IDS[0, :0]], {}, ValueError, r"prompts of shape \(1, 0\) are empty"),
        ([IDS], {}, ValueError, r"prompts\[0\] has shape \(3, 5\): in a list each prompt is 1-D"),
        ([[1, 2]], {}, TypeError, r"prompts\[0\] must be a tensor of integer token ids, not \[1, 2\]"),
        (list(IDS), {"prompt_lens": [1, 2, 3]}, ValueError, "in a list each has its own length"),
        (IDS, {"prompt_lens": [5, 0, 3]}, ValueError, "the prompt in row 1 is empty"),
        (IDS, {"prompt_lens": [5, 6, 3]}, ValueError, r"prompt_lens must be from 0 to 5, .* not 6"),
        (IDS, {"prompt_lens": [5]}, ValueError, r"prompt_lens has shape \(1,\), but there are 3 rows"),
        (IDS, {"prompt_lens": [5, 5, 5], "mask": IDS == 0}, ValueError, "prompt_lens and mask both say which"),
        (IDS, {"mask": IDS == 1}, ValueError, "the prompt in row 0 is empty"),
        (IDS, {"mask": IDS.float()}, TypeError, "mask must be boolean"),
        (IDS, {"mask": IDS[:, 1:] == 0}, ValueError, r"mask has shape \(3, 4\)"),
    ],
)
def test_errors_of_generation(model, method, prompts, options, error, match):
    options = {"seq_len": NEW, **options}
    with pytest.raises(error, match=match):
        getattr(model, method)(prompts, **options)


@pytest.mark.parametrize("method", ["generate", "beam_search"])
def test_an_unknown_option_goes_to_the_net(model, method):
    with pytest.raises(TypeError, match="unexpected keyword argument 'restrict'"):
        getattr(model, method)(IDS, NEW, restrict=True)


@pytest.mark.parametrize("method", ["generate", "stream"])
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"filter_logits_fn": "top_q"}, ValueError, "unknown filter 'top_q'; did you mean 'top_[kpa]'"),
        ({"filter_kwargs": {"kk": 3}}, TypeError, "the filter 'top_k' takes no 'kk'; did you mean 'k'"),
        ({"filter_logits_fn": "min_p", "filter_thres": 0.9}, TypeError, "the filter 'min_p' takes no 'thres'"),
        ({"filter_thres": 1.5}, ValueError, "thres must be at most 1, not 1.5"),
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty must be above 0, not 0"),
        ({"min_tokens": 3}, ValueError, "min_tokens=3 holds back the end token, but eos_token is not given"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator, not 3"),
    ],
)
def test_errors_of_drawing(model, method, options, error, match):
    with pytest.raises(error, match=match):
        getattr(model, method)(IDS, NEW, **options)


def test_a_bidirectional_net_is_refused():
    net = TinyLM()
    net.causal = False
    with pytest.raises(ValueError, match="TinyLM is bidirectional, so it sees what it is to predict"):
        AutoregressiveWrapper(net)


def test_what_makes_tokens_is_named():
    stack = {"dim": 8, "depth": 1, "heads": 2}
    net = TransformerWrapper(num_tokens=5, max_seq_len=9, attn_layers=Decoder(**stack))
    for how in ("generate", "stream", "beam_search"):
        said = rf"^TransformerWrapper has no {how}: AutoregressiveWrapper\(model\).{how} makes tokens$"
        with pytest.raises(TypeError, match=said):
            getattr(net, how)(IDS, 3, max_new_tokens=3)
    hidden = TransformerWrapper(num_tokens=5, max_seq_len=9, attn_layers=Encoder(**stack))
    with pytest.raises(TypeError, match=r"has no generate: MaskedLMWrapper\(model\).generate fills in tokens"):
        hidden.generate(IDS, 3)
    pooled = TransformerWrapper(num_tokens=5, max_seq_len=9, attn_layers=Decoder(**stack), attn_pool=True)
    with pytest.raises(TypeError, match="has no generate: its output is one of whole sequences"):
        pooled.generate(IDS, 3)


def test_conditions_of_tokens():
    """Of all n tokens or none; and what generates makes tokens that would have none."""
    net = TransformerWrapper(
        num_tokens=5, max_seq_len=9, attn_layers=Decoder(dim=8, depth=1, heads=2, norm="adaptive_rmsnorm")
    )
    lm, ids = AutoregressiveWrapper(net), torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    each = torch.randn(2, 4, 8)
    assert lm(ids, condition=each, condition_mask=torch.ones(2, 4).bool()).ndim == 0
    for short in ({"condition": each[:, 1:]}, {"condition": each, "condition_mask": torch.ones(2, 3).bool()}):
        with pytest.raises(ValueError, match="is of 3 tokens, but x has 4"):
            lm(ids, **short)
    for how in ("generate", "stream", "beam_search"):
        said = rf"{how} makes tokens that would have no condition: \(2, 4, 8\) is one for each .* give one for each row"
        with pytest.raises(ValueError, match=said):
            getattr(lm, how)(ids, 3, condition=each)
    assert lm.generate(ids, 3, condition=each[:, 0]).shape == (2, 3)
