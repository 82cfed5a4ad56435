"""What somebody may have meant by a name that there is not: an answer with what says it, not with a likely spelling."""

import inspect

import pytest

from xflash import Decoder, Encoder, TransformerWrapper, ViTransformerWrapper
from xflash.flags.aliases import ALIASES
from xflash.flags.elsewhere import ABSENT, ELSEWHERE, HINTS
from xflash.stack.config import known_flags

FLAGS = {
    "num_experts_per_tok": "it is called 'moe_top_k' here",
    "num_local_experts": "it is called 'moe_experts' here",
    "partial_rotary_factor": "rotary_emb_dim is the number of a head's channels that are turned",
    "attn_logit_softcapping": "attn_scores='softclamp' bounds the scores, attn_softclamp_value says how far",
    "use_parallel_residual": "layers='attn+ff' has its blocks in parallel",
    "parallel_attn": "layers='attn+ff' has its blocks in parallel",
    "post_norm": "norm_place='pre', 'post', 'pre_and_post', 'sandwich' or 'after' says where norms stand",
    "norm_first": "norm_place='pre', 'post', 'pre_and_post', 'sandwich' or 'after' says where norms stand",
    "use_rope": "pos='rotary' says it",
    "rope": "it is called pos='rotary' here",
    "rotary": "'rotary' is a position: pos='rotary'",
    "alibi": "'alibi' is a position: pos='alibi'",
    "gru": "'gru' is a join: join='gru'",
    "router_aux_loss_coef": "moe_balance_loss and moe_z_loss are the weights of the router's losses",
    "moe_aux_loss": "moe_balance_loss and moe_z_loss are the weights of the router's losses",
    "self_attn": "it is called layers='attn ff' here",
    "local_attn": "it is called layers='attn(window=...) ff' here",
    "mlp": "it is called layers='attn ff' here",
    "attention_bias": "attn_qkv_bias and attn_out_bias give attention biases",
    "use_qk_norm": "attn_qk_rmsnorm='head' norms queries and keys, with learned gains, attn_qk_norm=True to length one",
    "token_shift": "it is called 'shift_tokens' here",
    "rope_local_base_freq": "layers='attn(window=..., rotary_base=...) ff' has a base of one layer's own",
    "query_pre_attn_scalar": "attn_score_scale=query_pre_attn_scalar**-0.5 is what scores are multiplied by",
    "sliding_window_pattern": "layers='(attn(window=...) ff)*5 attn ff' says which layers have a window",
    "ff_hidden": "it is called 'ff_dim' here",
    "par_ratio": "xflash has no counterpart of this flag of x-transformers",
    "use_derf": "xflash has no counterpart of this flag of x-transformers",
}


def message(build, **flags) -> str:
    with pytest.raises((TypeError, ValueError), match=r"unknown flag|unknown position") as caught:
        build(**flags)
    return str(caught.value)


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_answered_with_what_says_it(name):
    assert message(Decoder, dim=64, depth=1, **{name: True}).startswith(f"unknown flag {name!r}; {FLAGS[name]}")


def test_a_flag_of_the_model():
    said = "unknown flag .*: it is called 'logits_softclamp' here, an argument of TransformerWrapper, not of a stack"
    with pytest.raises(TypeError, match=said):
        Decoder(dim=64, depth=1, final_logit_softcapping=30.0)
    with pytest.raises(TypeError, match=r"has no argument .*; it is called 'logits_softclamp' here"):
        TransformerWrapper(num_tokens=5, max_seq_len=5, final_logit_softcapping=30.0)


POSITIONS = {
    "RoPE": "it is called pos='rotary' here",
    "rope2d": "it is called pos='rotary2d' here",
    "axial": "it is called pos='rotary2d' here",
    "xpos": "it is called pos='rotary', rotary_xpos=True here",
    "learned": "it is called use_abs_pos_emb=True of TransformerWrapper here",
    "sinusoidal": "it is called scaled_sinu_pos_emb=True of TransformerWrapper here",
    "ALiBi": "did you mean 'alibi'?",
}


@pytest.mark.parametrize("name", POSITIONS)
def test_a_position_by_another_name(name):
    assert message(Decoder, dim=64, depth=1, pos=name).startswith(f"unknown position {name!r}; {POSITIONS[name]} (")


def test_a_block_by_another_name():
    with pytest.raises(ValueError, match=r"unknown block 'mlp'; it is called layers='attn ff' here \(known: 'attn'"):
        Decoder(dim=64, depth=1, layers="attn mlp")


@pytest.mark.parametrize(("name", "ours"), [("avg", "mean"), ("token", "cls"), ("mena", "mean")])
def test_a_choice_by_another_name(name, ours):
    said = f"did you mean '{ours}'" if name == "mena" else f"it is called '{ours}' here"
    kinds = r"'mean' \| 'cls' \| 'attn' \| 'cls_mean' \| 'cls_pair' \| 'map' \| 'max' \| 'mean_max'"
    with pytest.raises(ValueError, match=rf"pool='{name}' is not one of {kinds}; {said}"):
        ViTransformerWrapper(image_size=16, patch_size=8, attn_layers=Encoder(dim=64, depth=1), pool=name)


# Of these the library itself is the answer, or they say nothing of a model.
UNANSWERED = """
    verbose rel_pos_kwargs residual_fn_kwargs attn_dim attn_dim_context attn_causal attn_custom_attn_fn attn_dim_out
    attn_learned_value_residual_mix attn_project_out attn_onnxable attn_attend_sdp_kwargs attn_flash_pack_seq ff_dim_out
"""


def test_every_flag_of_x_transformers_has_an_answer():
    peer = pytest.importorskip("x_transformers.x_transformers")
    ours = {*known_flags(), *ALIASES}
    assert not ours & set(ABSENT.split()), "these are said to have no counterpart"
    found = []
    for cls, prefix in ((peer.AttentionLayers, ""), (peer.Attention, "attn_"), (peer.FeedForward, "ff_")):
        arguments = list(inspect.signature(cls.__init__).parameters.values())[1:]
        found += [prefix + a.name for a in arguments if a.kind is not a.VAR_KEYWORD]
    assert set(found) - ours - {*ELSEWHERE, *HINTS, *UNANSWERED.split()} == set()
