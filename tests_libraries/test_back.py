"""`to_transformers`: what came from there goes back, models of ours become theirs, others are refused."""

import pytest
import torch
from peers import causal, of_class, same, tokens
from test_decoders import CASES
from test_encoders import CASES as ENCODERS
from test_encoders import SIZES
from test_folder import KINDS
from transformers import AutoModel

from xflash import Decoder, Encoder, TransformerWrapper, ViTransformerWrapper
from xflash.convert import from_transformers, to_transformers


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case):
    kind, settings = CASES[case]
    theirs = causal(kind, **settings)
    back = to_transformers(from_transformers(theirs), theirs.config)
    assert type(back) is type(theirs) and not back.training
    same(back, theirs)


@pytest.mark.parametrize("case", [case for case in ENCODERS if " with " not in case])
def test_encoders_there_and_back(case):
    cls, settings = ENCODERS[case]
    theirs = of_class(cls, **SIZES, **settings)
    back = to_transformers(from_transformers(theirs), theirs.config)
    kept = {name: t for name, t in theirs.state_dict().items() if "pooler" not in name and "seq_rel" not in name}
    found = back.state_dict()
    assert all(torch.equal(found[name], t) for name, t in kept.items())
    assert all("pooler" in name for name in found.keys() - kept.keys())


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gemma3_text", "gpt_oss", "falcon"])
def test_models_without_a_head_there_and_back(kind):
    theirs = AutoModel.from_config(causal(kind, **KINDS[kind]).config).bfloat16()
    ours = from_transformers(theirs)
    back = to_transformers(ours, theirs.config)
    assert type(back) is type(theirs) and back.training and ours.return_only_embed
    same(back, theirs)


def test_a_config_is_made_of_a_model_without_a_head():
    ours, x = small(ff_activation="silu", return_only_embed=True), tokens(2, 11)
    theirs = to_transformers(ours)
    assert type(theirs).__name__ == "LlamaModel"
    with torch.no_grad():
        assert (theirs(x).last_hidden_state - ours(x)).abs().max() < 1e-4


# Two lists of positions, or of factors, are said by a config only.
SAID = [case for case in CASES if not case.startswith(("gemma3", "gpt2 scaled", "opt behind"))]


@pytest.mark.parametrize("case", SAID)
def test_a_config_is_made(case):
    """Of the same outputs: a Mistral without windows is a LLaMA."""
    kind, settings = CASES[case]
    ours, x = from_transformers(causal(kind, torch.float64, **settings)), tokens(2, 23)
    back = to_transformers(ours)
    if hasattr(back, "set_experts_implementation"):
        back.set_experts_implementation("eager")
    with torch.no_grad():
        assert (back(x).logits - ours(x)).abs().max() < 1e-5


AROUND = ("return_only_embed", "average_pool_embed", "logits_dim", "num_memory_tokens", "emb_dim")


def small(stack=Decoder, **flags):
    around = {name: flags.pop(name) for name in AROUND if name in flags}
    flags = {"norm": "rmsnorm", "pos": "rotary", "attn_dim_head": 10, "ff_glu": True, "ff_no_bias": True, **flags}
    made = stack(dim=42, depth=2, heads=6, layers="attn ff", **flags)
    return TransformerWrapper(num_tokens=71, max_seq_len=29, attn_layers=made, use_abs_pos_emb=False, **around).eval()


def test_a_model_of_ones_own():
    ours, x = small(ff_activation="silu", attn_kv_heads=2, ff_mult=1.5), tokens(2, 23)
    theirs = to_transformers(ours)
    assert theirs.config.model_type == "llama" and theirs.config.intermediate_size == 63
    with torch.no_grad():
        assert (theirs(x).logits - ours(x)).abs().max() < 1e-4
    assert to_transformers(ours.train()).training


def test_what_has_no_config_is_refused():
    with pytest.raises(ValueError, match="nearest is 'llama', but layer 0: block gate_values is True"):
        to_transformers(small(ff_activation="silu", attn_gate_values=True))
    with pytest.raises(ValueError, match=r"this config says another model: .* layer 0: block dim_head is 10, not 12"):
        to_transformers(small(ff_activation="silu"), causal("llama", head_dim=12).config)
    with pytest.raises(ValueError, match="no config of transformers that is known here has these flags"):
        to_transformers(small(Encoder))


REFUSED = {
    "to_transformers takes a TransformerWrapper, not a Linear": torch.nn.Linear(2, 2),
    "to_transformers takes a TransformerWrapper, not a Decoder": Decoder(dim=8, depth=1),
    "to_transformers takes a TransformerWrapper, not a ViTransformerWrapper": ViTransformerWrapper(
        image_size=4, patch_size=2, attn_layers=Encoder(dim=8, depth=1)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_other_classes_are_refused(message):
    with pytest.raises(TypeError, match=message):
        to_transformers(REFUSED[message])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"average_pool_embed": True}, "nearest is 'llama', but average_pool_embed is True, not None"),
        ({"logits_dim": 13}, "nearest is 'llama', but logits_dim is 13, not None"),
        ({"num_memory_tokens": 3}, "nearest is 'llama', but .*num_memory_tokens is 3, not None"),
        ({"emb_dim": 20}, "nearest is 'llama', but emb_dim is 20, not 42"),
        ({"layer_dropout": 0.1}, r"nearest is 'llama', but layer_dropout is 0\.1, not 0\.0"),
    ],
)
def test_flags_that_no_config_has_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        to_transformers(small(ff_activation="silu", **flags))


def test_what_is_no_config_is_refused():
    ours = small(ff_activation="silu")
    with pytest.raises(TypeError, match="config must be one of transformers, or a dictionary of its settings, not 3"):
        to_transformers(ours, 3)
    with pytest.raises(ValueError, match=r"there are no flags here for the model_type 'lama'.*did you mean 'llama'"):
        to_transformers(ours, {"model_type": "lama"})
    with pytest.raises(ValueError, match="the 'llama' config has no hidden_size"):
        to_transformers(ours, {"model_type": "llama"})


def test_a_model_that_was_changed_by_hand_is_refused():
    ours = small(ff_activation="silu")
    ours.attn_layers.branches[1].block.to_out = torch.nn.Sequential(ours.attn_layers.branches[1].block.to_out)
    with pytest.raises(ValueError, match=r"this TransformerWrapper is not what its config builds: .*to_out"):
        to_transformers(ours)


def test_a_config_of_images_is_refused():
    ours = small()
    config = {"model_type": "vit", "hidden_size": 42, "num_attention_heads": 6, "num_hidden_layers": 2}
    with pytest.raises(ValueError, match="another model: it is a TransformerWrapper, not a ViTransformerWrapper"):
        to_transformers(ours, {**config, "intermediate_size": 168, "layer_norm_eps": 1e-6})
