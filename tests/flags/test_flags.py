"""Flags: their spellings, where they go, how they are checked, shown and saved."""

import json
import re
from dataclasses import dataclass
from typing import Literal

import pytest
import torch.nn.functional as F

from xflash import AttentionLayers, Decoder, Encoder, TransformerWrapper, from_config
from xflash import __main__ as command
from xflash.base.registry import blocks, joins, positions, reads, scales, scores, weight_fns
from xflash.flags.aliases import ALIASES
from xflash.flags.flag import Owner, build, flag, flag_table, flags_of, route
from xflash.stack.config import known_flags

BASE = {"dim": 24, "depth": 2, "heads": 4}

# What a spelling of x-transformers or FLASH-pytorch says in xflash's own.
SPELLINGS = [
    ({"use_scalenorm": True}, {"norm": "scalenorm"}),
    ({"use_rmsnorm": True}, {"norm": "rmsnorm"}),
    ({"use_simple_rmsnorm": True}, {"norm": "simple_rmsnorm"}),
    ({"use_scalenorm": False}, {}),
    ({"norm_type": "scalenorm"}, {"norm": "scalenorm"}),
    ({"norm_type": "layernorm"}, {}),
    ({"sandwich_norm": True}, {"norm_place": "sandwich"}),
    ({"sandwich_norm": True, "pre_norm": True}, {"norm_place": "sandwich"}),
    ({"pre_norm": False}, {"norm_place": "post"}),
    ({"pre_norm": True}, {}),
    ({"pre_norm_has_final_norm": False}, {"final_norm": False}),
    ({"rotary_pos_emb": True}, {"pos": "rotary"}),
    ({"rotary_pos_emb": False}, {}),
    ({"rel_pos_bias": True}, {"pos": "rel_pos"}),
    ({"alibi_pos_bias": True, "alibi_num_heads": 2}, {"pos": "alibi", "alibi_num_heads": 2}),
    ({"rotary_xpos": True}, {"pos": "rotary", "rotary_xpos": True}),
    ({"rotary_xpos": True, "rotary_pos_emb": True}, {"pos": "rotary", "rotary_xpos": True}),
    ({"rotary_pos_emb": True, "alibi_pos_bias": True}, {"pos": "rotary alibi"}),
    ({"pos": "rotary", "rel_pos_bias": True}, {"pos": ("rotary", "rel_pos")}),
    ({"use_adaptive_layernorm": True, "dim_condition": 7}, {"norm": "adaptive_layernorm", "dim_condition": 7}),
    ({"use_adaptive_rmsnorm": True}, {"norm": "adaptive_rmsnorm"}),
    ({"use_adaptive_layerscale": True}, {"scale": "adaptive_layerscale"}),
    ({"use_layerscale": True, "layerscale_init_value": 0.5}, {"scale": "layerscale", "layerscale_init": 0.5}),
    ({"use_rezero": True}, {"scale": "rezero"}),
    ({"macaron": True}, {"layers": "ff attn ff", "scale": "macaron"}),
    ({"macaron": True, "layers": "ff gau", "use_rezero": True}, {"layers": "ff gau", "scale": "macaron rezero"}),
    ({"macaron": True, "only_cross": True}, {"layers": "ff cross_attn ff", "only_cross": True, "scale": "macaron"}),
    ({"zero_init_branch_output": True}, {"branch_start": "zero"}),
    ({"depth_scale_residual": True}, {"branch_start": "depth"}),
    ({"depth_scale_residual": 0.25}, {"scale": "constant", "constant_factor": 0.25}),
    ({"orthog_residual": True}, {"join": "orthogonal"}),
    ({"mv_split_residual": True}, {"join": "mv_split"}),
    ({"resi_dual": True, "resi_dual_scale": 0.1}, {"join": "resi_dual", "norm_place": "post", "resi_dual_scale": 0.1}),
    ({"use_dynamic_tanh": True, "dynamic_tanh_init_alpha": 0.5}, {"norm": "dynamic_tanh", "norm_alpha": 0.5}),
    ({"pre_and_post_norm": True}, {"norm_place": "pre_and_post"}),
    (
        {"num_residual_streams": 2, "qkv_receive_diff_residuals": True},
        {"join": "hyper", "hyper_streams": 2, "hyper_views": True},
    ),
    (
        {"reinject_input": True, "learned_reinject_input_gate": True, "unet_skips": True},
        {"reads": "reinject unet", "reinject_gate": True},
    ),
    ({"scale_residual": True}, {"join": "scaled"}),
    ({"use_layerscale": True, "scale_residual": True}, {"scale": ("layerscale",), "join": "scaled"}),
    ({"residual": "layerscale", "residual_init": 0.5}, {"scale": "layerscale", "layerscale_init": 0.5}),
    ({"residual": "rezero"}, {"scale": "rezero"}),
    ({"residual": "scaled"}, {"join": "scaled"}),
    ({"residual": "add"}, {}),
    ({"add_value_residual": True, "learned_value_residual_mix": True}, {"attn_value_residual": True}),
    (
        {"add_value_residual": True, "learned_value_residual_mix": False},
        {"attn_value_residual": True, "attn_value_residual_learned": False},
    ),
    ({"gate_residual": True}, {"join": "gru"}),
    ({"gate_residual": True, "scale_residual": True}, {"join": "gru", "gru_gain": True}),
    ({"num_residual_streams": 3}, {"join": "hyper", "hyper_streams": 3}),
    ({"num_residual_streams": 1}, {}),
    ({"num_residual_streams": 4, "hyper_conn_sinkhorn_iters": 9}, {"join": "hyper", "hyper_rounds": 9}),
    ({"unet_skips": True}, {"reads": "unet"}),
    ({"integrate_layers": True, "layer_integrate_use_softmax": True}, {"reads": "lime", "lime_views": True}),
    (
        {"integrate_layers": True, "layer_integrate_use_softmax": False},
        {"reads": "lime", "lime_views": True, "lime_weights": "relu"},
    ),
    ({"unet_skips": True, "integrate_layers": True}, {"reads": ("unet", "lime"), "lime_views": True}),
    ({"attn_one_kv_head": True}, {"attn_kv_heads": 1}),
    ({"attn_one_kv_head": False, "attn_kv_heads": 2}, {"attn_kv_heads": 2}),
    ({"attn_max_attend_past": 0}, {"attn_window": 1}),
    ({"attn_max_attend_past": 6}, {"attn_window": 7}),
    ({"attn_max_attend_past": None}, {}),
    (
        {"attn_use_latent_q": True, "attn_dim_latent_q": 5, "attn_use_latent_kv": False},
        {"attn_dim_latent_q": 5, "attn_dim_latent_kv": None},
    ),
    ({"ff_glu": True, "ff_swish": True}, {"ff_glu": True, "ff_activation": "silu"}),
    ({"ff_relu_squared": True}, {"ff_activation": "relu2"}),
    ({"ff_custom_activation": F.mish}, {"ff_activation": "mish"}),
    ({"ff_custom_activation": None}, {}),
    ({"layers": "flash", "flash_laplace_attn_fn": True}, {"layers": "flash", "flash_attn_fn": "laplace"}),
    ({"layers": "gau", "gau_laplace_attn_fn": True}, {"layers": "gau", "gau_attn_fn": "laplace"}),
    ({"residual_attn": True}, {"attn_scores": "residual"}),
    ({"layers": "cross_attn", "cross_residual_attn": True}, {"layers": "cross_attn", "cross_attn_scores": "residual"}),
    ({"attn_data_dependent_alibi": True}, {"attn_scores": "forget"}),
    (
        {"attn_sparse_topk": 3, "attn_softclamp_logits": True, "attn_pre_talking_heads": True, "residual_attn": True},
        {"attn_scores": "residual talking_heads softclamp topk", "attn_talking_heads_post": False, "attn_topk_k": 3},
    ),
    ({"attn_softclamp_logits": True, "attn_scores": "topk"}, {"attn_scores": "topk softclamp"}),
    ({"attn_sparse_topk": None, "attn_sparse_topk_straight_through": False}, {}),
    ({"attn_pre_talking_heads": False, "attn_softclamp_logits": False}, {}),
    ({"attn_use_cope": True, "attn_selective": True}, {"attn_scores": "cope selective", "attn_cope_positions": 16}),
    ({"attn_use_rel_proj_pos_bias": True}, {"attn_scores": "rel_proj"}),
    (
        {"attn_data_dependent_alibi": True, "attn_data_dependent_alibi_per_row": True}
        | {"attn_data_dependent_alibi_per_row_dim_head": 4},
        {"attn_scores": "forget_by_query", "attn_forget_by_query_dim_head": 4},
    ),
    ({"attn_use_cope": True, "attn_cope_max_pos": 5}, {"attn_scores": "cope", "attn_cope_positions": 5}),
    ({"rotary_pos_emb": True, "rotate_num_heads": 2}, {"pos": "rotary", "rotary_num_heads": 2}),
    (
        {"dynamic_pos_bias": True, "dynamic_pos_bias_log_distance": True, "dynamic_pos_bias_mlp_depth": 3},
        {"pos": "dynamic", "dynamic_log_distance": True, "dynamic_mlp_depth": 3},
    ),
    ({"polar_pos_emb": True, "polar_bias_uniform_init": True}, {"pos": "polar", "polar_uniform_start": True}),
    (
        {
            "rotate_num_heads": None,
            "polar_bias_uniform_init": False,
            "dynamic_pos_bias_mlp_depth": 2,
            "dynamic_pos_bias_norm": False,
        },
        {},
    ),
]
# What blocks of softmax attention are told alike.
READS = [
    ({"talking_heads": True}, {"scores": "talking_heads"}),
    ({"pre_talking_heads": True, "post_talking_heads": True}, {"scores": "talking_heads"}),
    ({"post_talking_heads": True}, {"scores": "talking_heads", "talking_heads_pre": False}),
    ({"softclamp_logits": True, "logit_softclamp_value": 30}, {"scores": "softclamp", "softclamp_value": 30}),
    (
        {"sparse_topk": 5, "sparse_topk_straight_through": True},
        {"scores": "topk", "topk_k": 5, "topk_straight_through": True},
    ),
    ({"head_learned_sink": True}, {"scores": "learned_sink"}),
    ({"add_zero_kv": True}, {"scores": "zero_key"}),
    ({"sigmoid": True}, {"weight_fn": "sigmoid", "sigmoid_bias": 0}),
    ({"l2_distance": True}, {"scores": "l2_distance"}),
    ({"gumbel_softmax": True, "gumbel_softmax_temp": 0.5}, {"weight_fn": "gumbel", "gumbel_temperature": 0.5}),
    ({"gumbel_softmax": True, "gumbel_softmax_hard": False}, {"weight_fn": "gumbel", "gumbel_hard": False}),
    ({"custom_attn_fn": "hard", "gumbel_softmax_temp": 1.0, "gumbel_softmax_hard": True}, {"weight_fn": "hard"}),
    ({"hard": True}, {"weight_fn": "hard"}),
]
# What 0.1.0 called otherwise.
COSINES = [
    ({"qk_norm": False}, {"cosine": False}),
    ({"qk_norm": True, "qk_norm_scale": 3}, {"cosine": True, "cosine_scale": 3}),
    ({"read_qk_norm": False, "read_qk_norm_scale": 4}, {"read_cosine": False, "read_cosine_scale": 4}),
]
SPELLINGS += [
    tuple({"layers": "recurrent state_read block_attn", **{f"{block}_{n}": v for n, v in f.items()}} for f in pair)
    for block, pairs in (("block_attn", COSINES), ("recurrent", COSINES), ("state_read", COSINES[:2]))
    for pair in pairs
]
SPELLINGS += [
    tuple({"layers": f"{block} ff", **{f"{block}_{name}": value for name, value in flags.items()}} for flags in pair)
    for block in ("attn", "cross_attn")
    for pair in READS
]


@pytest.mark.parametrize(("spelling", "own"), SPELLINGS, ids=lambda flags: re.sub(" at 0x\\w+", "", str(flags)))
def test_a_spelling_means_the_flags(spelling, own):
    assert Decoder(**BASE, **spelling).to_config() == Decoder(**BASE, **own).to_config()


def test_every_spelling_is_tested():
    assert set(ALIASES) <= {name for spelling, _ in SPELLINGS for name in spelling}


def test_what_agrees_may_be_said_twice():
    twice = Decoder(
        **BASE, norm="scalenorm", use_scalenorm=True, norm_type="scalenorm", pos="rotary", rotary_pos_emb=True
    )
    assert twice.to_config() == Decoder(**BASE, norm="scalenorm", pos="rotary").to_config()


def test_a_value_for_each_layer():
    stack = Decoder(**BASE, shift_tokens=(2, 0, 1, 0), layer_dropout=[0.1, 0, 0, 0.25])
    assert [0 if b.shift is None else b.shift.amount for b in stack.branches] == [2, 0, 1, 0]
    assert [b.dropout for b in stack.branches] == [0.1, 0.0, 0.0, 0.25]
    tied = Decoder(**BASE, shift_tokens=(1, 0, 1, 0), weight_tie_layers=True)
    assert [0 if b.shift is None else b.shift.amount for b in tied.branches] == [1, 0]
    assert all(b.shift.amount == 1 for b in Decoder(**BASE, shift_tokens=True).branches)
    assert all(b.shift is None for b in Decoder(**BASE, shift_tokens=False).branches)


def test_letters_name_the_whole_column():
    assert Decoder(dim=24, custom_layers=("a", "f", "f")).to_config()["custom_layers"] == ["a", "f", "f"]
    assert Decoder(dim=24, custom_layers="a f*2").layout == Decoder(dim=24, depth=1, layers="attn ff*2").layout


def test_a_float_takes_an_int():
    config = Decoder(**BASE, ff_mult=2, attn_dropout=0, pos="rotary", rotary_base=500).to_config()
    assert (config["ff_mult"], config["attn_dropout"], config["rotary_base"]) == (2.0, 0.0, 500.0)
    assert all(type(config[name]) is float for name in ("ff_mult", "attn_dropout", "rotary_base"))


# One flag of every type there is: int, float, bool, choice, name, optional, tuples, layouts as text, names and pairs.
SAVED = [
    {},
    {"norm_place": "post", "norm": "rmsnorm", "norm_eps": 1e-7, "final_norm": True},
    {"attn_flash": False, "attn_window": 5, "attn_kv_heads": 2, "attn_qk_norm": True, "attn_qk_norm_scale": 7},
    {"shift_tokens": (1, 0, 2, 0), "layer_dropout": (0, 0.1, 0, 0.2), "scale": "layerscale", "layerscale_init": 1},
    {"pos": ("rotary", "alibi"), "rotary_emb_dim": 8, "alibi_num_heads": 3, "num_memory_tokens": 2},
    {"layers": "attn(window=4) ff(glu=True)"},
    {"layers": ("attn", ("ff", {"mult": 2}), "gau"), "gau_query_key_dim": 6},
    {"layers": "flash*2 ff", "flash_group_size": 5, "flash_rel_pos_bias": None},
]


@pytest.mark.parametrize("flags", SAVED, ids=str)
def test_a_config_survives_json(flags):
    for stack in (Decoder(**BASE, **flags), AttentionLayers(**BASE, causal=True, **flags)):
        config = stack.to_config()
        again = from_config(json.loads(json.dumps(config)))
        assert type(again) is type(stack)
        assert again.to_config() == config
        assert [b.config for b in again.blocks()] == [b.config for b in stack.blocks()]
        assert again.rows == stack.rows


def test_a_model_survives_json():
    model = TransformerWrapper(
        num_tokens=7, max_seq_len=9, attn_layers=Encoder(**BASE), tie_embedding=True, num_memory_tokens=2
    )
    config = model.to_config()
    assert from_config(json.loads(json.dumps(config))).to_config() == config
    assert config["attn_layers"]["num_memory_tokens"] == 2
    with pytest.raises(ValueError, match="unknown class 'Decodr'; did you mean 'Decoder'"):
        from_config({**config, "class": "Decodr"})
    with pytest.raises(TypeError, match="a mapping with the entry 'class'"):
        from_config({"dim": 3})
    with pytest.raises(TypeError, match="the config is of a Encoder, not of a Decoder"):
        Decoder.from_config(config["attn_layers"])


READING = {name: block for name, block in blocks.items() if "scores" in block.holds}


def test_the_table_shows_every_flag():
    # Places on a grid are no places in one line, which some blocks count; queries of two coordinates are not for cope.
    alone = ("rotary2d", "polar")
    chosen = {
        "pos": tuple(name for name in positions if name not in alone),
        "reads": tuple(reads),
        "scale": tuple(scales),
    }
    chosen |= {f"{name}_scores": [n for n in scores if not block.refuses(scores[n])] for name, block in READING.items()}
    chosen |= {f"{name}_weight_fn": "sigmoid" for name in READING}
    stack = Decoder(dim=24, depth=2, layers=" ".join(blocks), ff_mult=2, **chosen)
    lines = stack.flag_table().splitlines()
    for pos in alone:
        own = [line for line in Encoder(dim=24, depth=1, pos=pos).flag_table().splitlines() if f"{pos}_" in line]
        assert [line.split()[0] for line in own] == [name for name in known_flags() if name.startswith(f"{pos}_")]
    shown = {line.split()[0]: line for line in lines[1:]}
    drawn = {f"{n}_weight_fn": "gumbel" for n, block in READING.items() if not block.refuses(weight_fns["gumbel"])}
    drawing = Decoder(dim=24, depth=1, layers=" ".join(blocks), **drawn).flag_table().splitlines()
    assert shown.keys() == stack.arguments.keys() | {"causal"}
    shown |= {line.split()[0]: line for line in drawing if "_gumbel_" in line}
    assert lines[0].split() == ["flag", "value", "default", "type", "doc"]
    unchosen = tuple(f"{name}_" for name in ("norm", *alone, *joins))
    assert {name for name in known_flags() if not name.startswith(unchosen)} <= shown.keys()
    assert "2.0 *" in shown["ff_mult"]
    assert "inner width as a multiple of dim" in shown["ff_mult"]
    assert "*" not in shown["attn_dim_head"]
    assert "(required)" in shown["dim"]
    assert "'pre' | 'post' | 'sandwich'" in shown["norm_place"]
    assert all(spec.doc for _, _, spec in stack.rows), "a flag without a word of what it does"


@dataclass(frozen=True, kw_only=True)
class Config:
    """A Config of its own, for the pieces of flags.py alone."""

    size: int = flag(doc="how many", at_least=1, at_most=9)
    share: float = flag(0.5, "of it", above=0, below=1)
    kind: Literal["a", "b"] | None = flag(None, "which")
    pair: tuple[int, float] = flag((1, 2.0), "both")


def test_values_are_fitted():
    assert build(Config, {"size": 3, "pair": [4, 5]}) == Config(size=3, pair=(4, 5.0))
    assert build(Config, {"size": 3, "kind": "b"}).kind == "b"
    for given, error, match in (
        ({}, TypeError, r"the flag 'x_size' \(how many\) must be given"),
        ({"size": 10}, ValueError, "x_size must be at most 9, not 10"),
        ({"size": 3, "share": 1}, ValueError, "x_share must be below 1, not 1.0"),
        ({"size": 3, "share": True}, TypeError, "x_share must be a number, not True"),
        ({"size": 3, "kind": "c"}, ValueError, r"x_kind='c' is not one of 'a' \| 'b' \| None"),
        ({"size": 3, "kind": 4}, TypeError, r"x_kind must be 'a' or 'b' or None, not 4"),
        ({"size": 3, "pair": (1,)}, TypeError, r"x_pair must be \(int, float\), not \(1,\)"),
        ({"sise": 3}, TypeError, "unknown flag 'x_sise'; did you mean 'x_size'"),
    ):
        with pytest.raises(error, match=match):
            build(Config, given, "x_")


def test_the_longest_prefix_owns_a_flag():
    @dataclass(frozen=True, kw_only=True)
    class Other:
        b_size: int = flag(1)

    owners = [Owner("a_", Other), Owner("a_b_", Config), Owner("c_", Config, "there is no c")]
    assert route({"a_b_size": 3, "a_b_share": 0.1}, owners) == {"a_": {}, "a_b_": {"size": 3, "share": 0.1}}
    with pytest.raises(ValueError, match="c_size is set but there is no c"):
        route({"c_size": 3}, owners)
    with pytest.raises(TypeError, match="unknown flag 'c_sise'; did you mean 'c_size'"):
        route({"c_sise": 3}, owners)


def test_a_table_of_ones_own():
    text = flag_table([("size", 3, flags_of(Config)["size"]), ("share", 0.1, flags_of(Config)["share"])])
    assert text.splitlines()[1].split() == ["size", "3", "(required)", "int", "how", "many"]
    assert text.splitlines()[2].split() == ["share", "0.1", "*", "0.5", "float", "of", "it"]


def test_a_flag_names_its_paper_and_what_it_is_tried_with():
    @dataclass(frozen=True, kw_only=True)
    class Cited:
        depth: int = flag(
            1, "how deep", paper="https://arxiv.org/abs/1706.03762", tried=(2, {"depth": 3, "wide": True})
        )
        wide: bool = flag(False, "or wide", paper="https://kexue.fm/archives/9019", tried="as depth says")

    depth, wide = flags_of(Cited).values()
    assert depth.tried == (2, {"depth": 3, "wide": True}) and wide.tried == "as depth says"
    assert flags_of(Config)["size"].tried is None and flags_of(Config)["size"].meaning() == "how many"
    assert flag_table([("depth", 1, depth)]).endswith("  how deep (https://arxiv.org/abs/1706.03762)")
    shown = list(command.table([("depth", depth), ("wide", wide)]))[2:]
    assert shown[0].endswith("| how deep ([1706.03762](https://arxiv.org/abs/1706.03762)) |")
    assert shown[1].endswith("| or wide ([kexue.fm](https://kexue.fm/archives/9019)) |")
