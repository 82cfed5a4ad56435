"""The names that other libraries have for an argument are answered with ours, in constructors and in calls."""

import inspect
import re

import pytest
import torch

import xflash
from xflash import (
    GAU,
    AutoregressiveWrapper,
    BlockRecurrentTransformer,
    Decoder,
    Encoder,
    FLASHTransformer,
    MaskedLMWrapper,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
)
from xflash.flags.aliases import ALIASES
from xflash.flags.answering import CALLS
from xflash.flags.elsewhere import ELSEWHERE, HINTS, NAMES, NOTES
from xflash.saving.classes import CLASSES
from xflash.stack.config import known_flags
from xflash.wrappers.options import also_called

V = 11
IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])


def stack(cls=Decoder):
    return cls(dim=8, depth=1, heads=2)


def model(cls=Decoder):
    return TransformerWrapper(num_tokens=V, max_seq_len=9, attn_layers=stack(cls))


def both():
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in (("num_tokens", V), ("depth", 1))}
    return XTransformer(dim=8, enc_max_seq_len=9, dec_max_seq_len=9, enc_heads=2, dec_heads=2, **sides)


def test_the_table_names_what_there_is():
    """Ours are arguments of something, theirs are not flags, and each has one answer in one call."""
    ours = {name for cls in CLASSES.values() for call in ("__init__", *CALLS) for name in arguments(cls, call)}
    ours |= {*known_flags(), *(f"{side}_{flag}" for side in ("enc", "dec") for flag in known_flags())}
    assert set(NAMES) <= ours and set(NOTES) <= set(NAMES)
    assert not set(ELSEWHERE) & {*known_flags(), *ALIASES}


def arguments(cls, call):
    found = getattr(cls, call, None)
    return inspect.signature(found).parameters if inspect.isfunction(found) else ()


STACK = {
    "hidden_size": "'dim'", "embed_dim": "'dim'", "num_attention_heads": "'heads'", "num_hidden_layers": "'depth'",
    "intermediate_size": "'ff_dim'", "mlp_ratio": "'ff_mult'", "hidden_act": "'ff_activation'",
    "drop_path_rate": "'layer_dropout'", "rope_theta": "'rotary_base'", "attention_dropout": "'attn_dropout'",
    "num_key_value_heads": "'attn_kv_heads'", "layer_norm_eps": "'norm_eps'", "sliding_window": "'attn_window'",
}  # fmt: skip


@pytest.mark.parametrize(("name", "ours"), STACK.items())
def test_flags_of_a_stack(name, ours):
    with pytest.raises(TypeError, match=f"unknown flag '{name}'; it is called {ours} here$"):
        Encoder(**{name: 3})
    for wrapper in (TransformerWrapper, ViTransformerWrapper, MaskedLMWrapper):
        said = rf"{wrapper.__name__} has no argument '{name}': it is called {ours} here, an argument of the stack \("
        with pytest.raises(TypeError, match=said):
            wrapper(**{name: 3})


WRAPPERS = [
    (TransformerWrapper, "vocab_size", "; it is called 'num_tokens' here"),
    (TransformerWrapper, "max_position_embeddings", "; it is called 'max_seq_len' here"),
    (TransformerWrapper, "tie_word_embeddings", "; it is called 'tie_embedding' here"),
    (TransformerWrapper, "hidden_dropout_prob", "; emb_dropout, attn_dropout, ff_dropout and the other"),
    (TransformerWrapper, "depth", r": it is an argument of the stack \(Encoder, Decoder\)"),
    (TransformerWrapper, "img_size", ": it is called 'image_size' here, an argument of ViTransformerWrapper"),
    (ViTransformerWrapper, "img_size", "; it is called 'image_size' here"),
    (ViTransformerWrapper, "in_chans", "; it is called 'channels' here"),
    (ViTransformerWrapper, "global_pool", "; it is called 'pool' here"),
    (TransformerWrapper, "rope_scaling", r"; rotary_scaling='yarn' \('llama3', 'dynamic', 'longrope'\)"),
    (ViTransformerWrapper, "qkv_bias", ": it is called 'attn_qkv_bias' here, an argument of the stack"),
    (FLASHTransformer, "vocab_size", "; it is called 'num_tokens' here"),
    (BlockRecurrentTransformer, "vocab_size", "; it is called 'num_tokens' here"),
    (GAU, "hidden_size", "; it is called 'dim' here"),
    (XTransformer, "d_model", "; it is called 'dim' here"),
]


@pytest.mark.parametrize(("cls", "name", "said"), WRAPPERS)
def test_arguments_of_wrappers(cls, name, said):
    with pytest.raises(TypeError, match=f"^{cls.__name__} has no argument '{name}'{said}"):
        cls(**{name: 3})


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"vocab_size": 3}, "unknown flag 'vocab_size'; it is called 'enc_num_tokens' or 'dec_num_tokens' here"),
        ({"dec_vocab_size": 3}, "unknown flag 'dec_vocab_size'; it is called 'dec_num_tokens' here"),
        ({"num_encoder_layers": 3}, "unknown flag 'num_encoder_layers'; it is called 'enc_depth' here"),
        ({"enc_mlp_ratio": 3}, "unknown flag 'enc_mlp_ratio'; it is called 'enc_ff_mult' here"),
    ],
)
def test_flags_of_both_sides(flags, match):
    with pytest.raises(TypeError, match=match):
        XTransformer(dim=8, **flags)


def test_a_flag_of_another_class():
    with pytest.raises(
        TypeError, match="'vocab_size': it is called 'num_tokens' here, an argument of TransformerWrapper"
    ):
        Decoder(vocab_size=3)
    with pytest.raises(TypeError, match=r"FLASHTransformer: missing a required argument: 'num_tokens'"):
        FLASHTransformer(dim=8)


FORWARD = {
    "attention_mask": r"; it is called 'mask' here \(True = a real token\)",
    "key_padding_mask": r"; it is called 'mask' here \(True = a real token\)",
    "input_ids": "; it is called 'x' here",
    "labels": r"; AutoregressiveWrapper\(model\) and MaskedLMWrapper\(model\) have a loss",
    "use_cache": r"; step\(ids, state\) gives \(logits, state\), and goes on from a state",
    "past_key_values": ": it is called 'state' here, an argument of TransformerWrapper.step",
    "state": ": it is an argument of TransformerWrapper.step",
    "inputs_embeds": r"; it is called 'prepend_embeds' here \(embeddings in front of the tokens",
    "position_ids": "; positions are counted from the mask and the doc_ids",
    "token_type_ids": r"; it is called 'embed_ids' here \(a dict by name, of a model with embed_num_tokens\)",
    "output_attentions": "; it is called 'return_attn' here",
    "output_hidden_states": "; it is called 'return_hiddens' here",
    "pixel_values": "; where xflash has it, it is 'img'",
    "is_causal": "; a Decoder is causal, an Encoder is not",
    "retrun_attn": r"; did you mean 'return_attn'\?",
    "xyzzy": "$",
}


@pytest.mark.parametrize(("name", "said"), FORWARD.items())
def test_a_call_of_a_model(name, said):
    with pytest.raises(TypeError, match=f"^TransformerWrapper.forward has no argument '{name}'{said}"):
        model()(IDS, **{name: None})


GENERATE = {
    "max_new_tokens": r"; it is called 'seq_len' here \(the number of new tokens\)",
    "eos_token_id": "; it is called 'eos_token' here",
    "attention_mask": r"; it is called 'mask' here \(True = a real token\)",
    "do_sample": "; temperature=0 takes the likeliest token always",
    "use_cache": r"; it is called 'cache_kv' here \(False goes without\)",
    "pad_token_id": "; pad_value is said when the wrapper is built",
    "num_return_sequences": "; repeat the prompts",
}


@pytest.mark.parametrize(("name", "said"), GENERATE.items())
def test_generation(name, said):
    lm, two = AutoregressiveWrapper(model()), both()
    with pytest.raises(TypeError, match=f"^generate has no option '{name}'{said}"):
        lm.generate(IDS, 3, **{name: 3})
    with pytest.raises(TypeError, match=f"^generate has no option '{name}'{said}"):
        two.generate(IDS, IDS[:, :1], 3, **{name: 3})


def test_generation_without_its_length():
    two, lm = both(), AutoregressiveWrapper(model())
    for call, prompts in ((lm.generate, (IDS,)), (lm.stream, (IDS,)), (two.generate, (IDS, IDS[:, :1]))):
        said = rf"{call.__name__} has no argument 'max_new_tokens'; it is called 'seq_len' here \(the"
        with pytest.raises(TypeError, match=said):
            call(*prompts, temperature=0.5, max_new_tokens=3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'seq_len'"):
        lm.generate(IDS, temperature=0.5)


def test_the_other_calls():
    two, vit = both(), ViTransformerWrapper(image_size=4, patch_size=2, attn_layers=stack(Encoder))
    calls = [
        (
            lambda: model().step(IDS, past_key_values=None),
            "TransformerWrapper.step has no argument 'past_key_values'; it",
        ),
        (lambda: two(IDS, IDS, decoder_input_ids=IDS), "XTransformer.forward has no .*; it is called 'tgt' here"),
        (lambda: two(IDS, IDS, decoder_attention_mask=IDS), r"called 'tgt_mask' here \(True = a real token\)"),
        (lambda: two.encode(IDS, attention_mask=IDS), r"XTransformer.encode has no .*; it is called 'mask' here"),
        (lambda: vit(pixel_values=torch.randn(1, 3, 4, 4)), "ViTransformerWrapper.forward has no .* called 'img' here"),
        (lambda: stack()(torch.randn(1, 3, 8), attention_mask=None), "Decoder.forward has no .* called 'mask' here"),
        (
            lambda: vit.features(torch.randn(1, 3, 4, 4), indices=(1,)),
            "features has .* called 'layers' here",
        ),
        (lambda: stack().flag_table(changed=True), r"Decoder.flag_table has no .*; did you mean 'changed_only'\?"),
        (lambda: stack().save(directory="here"), "Decoder.save has no argument 'directory'"),
        (lambda: stack().step(torch.randn(1, 3, 8), cache=None), "Decoder.step has no .* called 'state' here"),
        (
            lambda: AutoregressiveWrapper(model())(IDS, input_ids=IDS),
            "the loss has no option 'input_ids'; it is called 'x'",
        ),
        (lambda: MaskedLMWrapper(model(Encoder), mask_token_id=0)(IDS, attention_mask=IDS), "called 'mask' here"),
    ]
    for call, match in calls:
        with pytest.raises(TypeError, match=match):
            call()


def test_every_call_answers():
    """No public call leaves an unknown argument to Python's own words, and none changes what it is called with."""
    for cls in {value for value in vars(xflash).values() if isinstance(value, type) and value in CLASSES.values()}:
        for call in CALLS:
            found = getattr(cls, call, None)
            if inspect.isfunction(found) and "self" in inspect.signature(found).parameters:
                assert found.answers, f"{cls.__name__}.{call}"


def test_a_subclass_answers_with_its_own_arguments():
    class Own(TransformerWrapper):
        def forward(self, x, mask=None, *, temperature=1.0):
            return super().forward(x, mask) / temperature

    own = Own(num_tokens=V, max_seq_len=9, attn_layers=stack())
    assert torch.equal(own(IDS, temperature=2.0), own(IDS) / 2)
    with pytest.raises(TypeError, match=r"Own.forward has no argument 'temprature'; did you mean 'temperature'\?"):
        own(IDS, temprature=2.0)


def test_a_net_of_ones_own_takes_what_it_likes():
    class Net(torch.nn.Module):
        num_tokens = V

        def forward(self, x, attention_mask=None, **rest):
            assert attention_mask is not None and "token_type_ids" in rest
            return torch.nn.functional.one_hot(x, V).float()

    assert AutoregressiveWrapper(Net())(IDS, attention_mask=IDS, token_type_ids=IDS).ndim == 0


def test_two_names_of_one_argument_answer_too():
    class Own(TransformerWrapper):
        @also_called(ids="x")
        def generate(self, x, seq_len, **options):
            return x, seq_len, options

    own = Own(num_tokens=V, max_seq_len=9, attn_layers=stack())
    assert own.generate(ids=1, seq_len=2, temperature=3) == (1, 2, {"temperature": 3})
    with pytest.raises(TypeError, match=r"Own.generate has no argument 'max_new_tokens'; it is called 'seq_len' here"):
        own.generate(ids=1, max_new_tokens=2)


def test_compiled_it_answers_too():
    net = model().eval()
    compiled = torch.compile(net, backend="eager")
    with pytest.raises(
        TypeError, match=r"TransformerWrapper.forward has no argument 'attention_mask'; it is called 'mask'"
    ):
        compiled(IDS, attention_mask=None)
    with torch.no_grad():
        assert torch.equal(compiled(IDS, mask=IDS > 0), net(IDS, mask=IDS > 0))


def test_answers_are_one_sentence():
    assert all(not re.search(r"[.]\s|\n", hint) for hint in [*HINTS.values(), *NOTES.values()])
