"""A choice of no part is None or 'none' alike, as a flag of the stack and in a layout."""

import pytest

from xflash import Decoder, Encoder, TransformerWrapper, from_config
from xflash.stack.resolve import resolve

SMALL = {"dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 4}
CHOICES = ("norm", "pos", "reads", "scale", "attn_scores", "cross_attn_scores")


def config(**flags):
    return Encoder(**{**SMALL, "layers": "attn cross_attn ff", **flags}).to_config()


@pytest.mark.parametrize("name", CHOICES)
def test_both_spellings_of_none_are_the_same(name):
    other = {"attn_scores": "topk", "attn_topk_k": 2} if name == "cross_attn_scores" else {}
    assert config(**{name: None}, **other) == config(**{name: "none"}, **other)
    assert config(norm_type=None)["norm"] == config(norm=None)["norm"] == "none"


@pytest.mark.parametrize("name", ["norm", "pos", "scale", "scores"])
def test_both_spellings_in_a_layout(name):
    flags = {**SMALL, "pos": "rotary", "scale": "rezero", "attn_scores": "softclamp"}
    said = [f"attn attn({name}={value}) ff" for value in ("none", "None", "'none'")]
    built = [resolve({**flags, "layers": layers}).layers for layers in said]
    assert built[0] == built[1] == built[2] != resolve({**flags, "layers": "attn attn ff"}).layers
    for layers in said:
        stack = Decoder(**flags, layers=layers)
        again = from_config(stack.to_config())
        assert again.to_config() == stack.to_config()


def test_none_beside_a_switch_contradicts_it():
    with pytest.raises(ValueError, match="norm=None means norm='none', but use_rmsnorm=True means norm='rmsnorm'"):
        config(norm=None, use_rmsnorm=True)
    assert config(pos="none", rotary_pos_emb=True) == config(pos=None, rotary_pos_emb=True) == config(pos="rotary")


def test_none_beside_names_is_no_name():
    with pytest.raises(ValueError, match="unknown position 'none'"):
        config(pos="rotary none")


def test_a_model_takes_both():
    stacks = [Decoder(**SMALL, pos=value) for value in (None, "none")]
    first, second = [TransformerWrapper(num_tokens=5, max_seq_len=7, attn_layers=stack) for stack in stacks]
    assert first.to_config() == second.to_config()
