"""`to_transformers`: what came from there goes back, models of ours become theirs, others are refused."""

import pytest
import torch
from peers import causal, same, tokens
from test_decoders import CASES

from xflash import Decoder, Encoder, TransformerWrapper
from xflash.convert import from_transformers, to_transformers


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case):
    kind, settings = CASES[case]
    theirs = causal(kind, **settings)
    back = to_transformers(from_transformers(theirs), theirs.config)
    assert type(back) is type(theirs) and not back.training
    same(back, theirs)


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


def small(stack=Decoder, **flags):
    flags = {"norm": "rmsnorm", "pos": "rotary", "attn_dim_head": 10, "ff_glu": True, "ff_no_bias": True, **flags}
    made = stack(dim=42, depth=2, heads=6, layers="attn ff", **flags)
    return TransformerWrapper(num_tokens=71, max_seq_len=29, attn_layers=made, use_abs_pos_emb=False).eval()


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
    with pytest.raises(TypeError, match="to_transformers takes a TransformerWrapper, not a Linear"):
        to_transformers(torch.nn.Linear(2, 2))


def test_a_config_of_images_is_refused():
    ours = small()
    config = {"model_type": "vit", "hidden_size": 42, "num_attention_heads": 6, "num_hidden_layers": 2}
    with pytest.raises(ValueError, match="another model: it is a TransformerWrapper, not a ViTransformerWrapper"):
        to_transformers(ours, {**config, "intermediate_size": 168, "layer_norm_eps": 1e-6})
