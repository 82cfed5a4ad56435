"""Flags that are unknown, contradict each other or have no use: each is refused when the stack is built, by name."""

import pytest

from xflash import FLASH, GAU, Decoder, Encoder, FLASHTransformer

BASE = {"dim": 24, "depth": 2, "heads": 4}


@pytest.mark.parametrize(
    ("spelling", "match"),
    [
        (
            {"use_scalenorm": True, "use_rmsnorm": True},
            "use_scalenorm=True means norm='scalenorm', but use_rmsnorm=True means",
        ),
        ({"norm": "rmsnorm", "norm_type": "scalenorm"}, "norm='rmsnorm', but norm_type='scalenorm' means"),
        ({"norm": "rmsnorm", "use_rmsnorm": False}, "use_rmsnorm=False contradicts norm='rmsnorm'"),
        ({"pre_norm": False, "sandwich_norm": True}, "pre_norm=False means norm_place='post', but sandwich_norm=True"),
        ({"pre_norm": True, "norm_place": "post"}, "pre_norm=True contradicts norm_place='post'"),
        ({"pos": "rotary alibi", "alibi_pos_bias": False}, r"alibi_pos_bias=False contradicts pos='rotary alibi'"),
        ({"join": "add", "scale_residual": True}, "join='add', but scale_residual=True means"),
        ({"scale": "rezero", "use_rezero": False}, "use_rezero=False contradicts scale='rezero'"),
        (
            {"attn_one_kv_head": True, "attn_kv_heads": 2},
            "attn_one_kv_head=True means attn_kv_heads=1, but attn_kv_heads=2",
        ),
        (
            {"attn_max_attend_past": 3, "attn_window": 3},
            "attn_max_attend_past=3 means attn_window=4, but attn_window=3",
        ),
        (
            {"ff_swish": True, "ff_relu_squared": True},
            "ff_swish=True means ff_activation='silu', but ff_relu_squared=True",
        ),
        (
            {"final_norm": True, "pre_norm_has_final_norm": False},
            "final_norm=True, but pre_norm_has_final_norm=False means",
        ),
        (
            {"custom_layers": ("a", "f")},
            "custom_layers is the whole column of layers, so depth cannot be given beside it",
        ),
        ({"attn_qk_norm_scale": 8}, "attn_qk_norm_scale=8.0 is set, but attn_qk_norm is False"),
        (
            {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True, "attn_qk_norm_scale": 8},
            "attn_qk_norm_scale=8.0 is set, but attn_qk_norm_dim_scale=True learns scales in its stead",
        ),
        ({"pos": "alibi", "rotary_emb_dim": 4}, "rotary_emb_dim is set but pos='alibi' has no 'rotary'"),
    ],
    ids=str,
)
def test_what_contradicts_is_refused(spelling, match):
    for order in (spelling, dict(reversed(spelling.items()))):
        with pytest.raises(ValueError, match=match if order is spelling else "means|cannot|contradicts|is set"):
            Decoder(**BASE, **order)


@pytest.mark.parametrize(
    ("flags", "error", "match"),
    [
        ({"flash_group": 3}, TypeError, "unknown flag 'flash_group'; did you mean 'flash_group_size'"),
        ({"attn_flsh": True}, TypeError, "unknown flag 'attn_flsh'; did you mean 'attn_flash'"),
        ({"depth_scale_residual": "a"}, TypeError, "depth_scale_residual must be a number, not"),
        ({"dpeth": 2}, TypeError, "unknown flag 'dpeth'; did you mean 'depth'"),
        ({"rotary_pos_em": True}, TypeError, "unknown flag 'rotary_pos_em'; did you mean 'rotary_"),
        ({"use_scalenrm": True}, TypeError, "unknown flag 'use_scalenrm'; did you mean 'use_scalenorm'"),
        ({"xyzzy": 1}, TypeError, "unknown flag 'xyzzy'$"),
        ({"num_heads": 2}, TypeError, r"unknown flag 'num_heads'; it is called 'heads' here"),
        ({"num_layers": 2}, TypeError, r"unknown flag 'num_layers'; it is called 'depth' here"),
        ({"Norm_Eps": 1}, TypeError, r"unknown flag 'Norm_Eps'; did you mean 'norm_eps'\?"),
        ({"norm": "RMSNorm"}, ValueError, "unknown norm 'RMSNorm'; did you mean 'rmsnorm'"),
        (
            {"flash": True},
            TypeError,
            "unknown flag 'flash': 'flash' is a block, named in the layout, as in layers='flash ff'; attn_flash=True",
        ),
        ({"gau": True}, TypeError, "unknown flag 'gau': 'gau' is a block, named in the layout, as in layers='gau ff'$"),
        (
            {"use_abs_pos_emb": False},
            TypeError,
            "unknown flag 'use_abs_pos_emb': it is an argument of TransformerWrapper, not of a stack",
        ),
        ({"patch_size": 4}, TypeError, "unknown flag 'patch_size': it is an argument of ViTransformerWrapper, not of"),
        (
            {"layers": "attn(scores=softclamp topk)"},
            ValueError,
            r"cannot read '\(scores=softclamp topk\)' in .*, several words in quotes: 'softclamp topk'",
        ),
        (
            {"layers": "attn(window 4)"},
            ValueError,
            r"cannot read '\(window 4\)' .* write it as 'attn\(window=64, norm=none\)'$",
        ),
        ({"layers": {"attn": 1}}, TypeError, "layers must be a text or a tuple or None, not {'attn': 1}"),
        (
            {"gau_expansion_factor": 2.0},
            ValueError,
            "gau_expansion_factor is set but the layout 'attn ff' has no 'gau'",
        ),
        ({"layers": "ff", "attn_dim_head": 4}, ValueError, "attn_dim_head is set but the layout 'ff' has no 'attn'"),
        ({"rotary_base": 5.0}, ValueError, "rotary_base is set but pos=None has no 'rotary'"),
        (
            {"pos": "alibi", "rel_pos_num_buckets": 8},
            ValueError,
            "rel_pos_num_buckets is set but pos='alibi' has no 'rel_pos'",
        ),
        ({"layerscale_init": 0.1}, ValueError, "layerscale_init is set but scale=None has no 'layerscale'"),
        (
            {"scale": "rezero", "residual_init": 0.1},
            ValueError,
            "residual_init=0.1 means layerscale_init=0.1, but scale='rezero' has no",
        ),
        (
            {"layers": "gau ff", "attn_talking_heads": True},
            ValueError,
            "means attn_scores='talking_heads', but the layout",
        ),
        (
            {"layers": "gau ff", "gau_scores": "topk"},
            TypeError,
            "'gau_scores': gau has no score steps .blocks that have: a",
        ),
        ({"layers": "gau(scores='topk')"}, TypeError, "'scores' in the layout entry .*: gau has no score steps"),
        (
            {"layers": "attn(scores='softclamp', softclamp_valu=3)"},
            TypeError,
            "unknown flag 'softclamp_valu' in the layout entry .*; did you mean 'softclamp_value'",
        ),
        (
            {"par_ratio": 3},
            TypeError,
            "unknown flag 'par_ratio'; xflash has no counterpart of this flag of x-transformers",
        ),
        ({"scale": 3}, TypeError, "scale must be names of scales such as 'layerscale rezero' or .*, not 3"),
        ({"scale": "layerscal"}, ValueError, "unknown scale 'layerscal'; did you mean 'layerscale'"),
        ({"scale": "gru"}, ValueError, "unknown scale 'gru'; 'gru' is a join: join='gru' .known: "),
        ({"join": "layerscale"}, ValueError, "unknown join 'layerscale'; 'layerscale' is a scale: scale='layerscale'"),
        ({"attn_scores": "sigmoid"}, ValueError, "'sigmoid' is a weight function: attn_weight_fn='sigmoid'"),
        ({"layers": "rotary ff"}, ValueError, "'rotary' is a position: pos='rotary'"),
        ({"scale": "rezero rezero"}, ValueError, "scale='rezero rezero' names 'rezero' twice"),
        ({"reads": "unets"}, ValueError, "unknown read 'unets'"),
        ({"norm": "rmsnorm", "norm_bias": True}, ValueError, "norm_bias is set but norm='rmsnorm' has no such flag"),
        (
            {"layers": "ff", "pos": "rotary"},
            ValueError,
            "pos has 'rotary', but no block of the layout 'ff' can use it .*attn",
        ),
        (
            {"layers": "flash", "pos": "alibi"},
            ValueError,
            "pos has 'alibi', but no block of the layout 'flash' can use it",
        ),
        ({"pos": "rope"}, ValueError, "unknown position 'rope'; it is called pos='rotary' here"),
        ({"ff_activation": "swiglu"}, ValueError, "'swiglu'; it is called ff_activation='silu', ff_glu=True here"),
        ({"pos": "rotry"}, ValueError, "unknown position 'rotry'; did you mean 'rotary'"),
        ({"pos": 3}, TypeError, "pos must be names of positions such as 'rotary .*, not 3"),
        ({"norm": "layernrom"}, ValueError, "unknown norm 'layernrom'; did you mean 'layernorm'"),
        (
            {"norm_place": "Pre"},
            ValueError,
            "norm_place='Pre' is not one of 'pre' | 'post' | 'sandwich'; did you mean 'pre'",
        ),
        ({"residual": "added"}, ValueError, "residual='added' is no registered join or scale; did you mean 'add'"),
        ({"ff_activation": "sillu"}, ValueError, "unknown activation 'sillu'; did you mean 'silu'"),
        (
            {"use_rmsnorm": (True, False)},
            TypeError,
            r"use_rmsnorm must be True or False for the whole stack, not \(True, False\)",
        ),
        ({"ff_swish": 1}, TypeError, "ff_swish must be True or False for the whole stack, not 1"),
        ({"attn_max_attend_past": -1}, ValueError, "attn_max_attend_past must be at least 0, not -1"),
        ({"attn_max_attend_past": 2.0}, TypeError, r"attn_max_attend_past must be a whole number or None, not 2.0"),
        ({"dim": 0}, ValueError, "dim must be at least 1, not 0"),
        ({"dim": 16.0}, TypeError, "dim must be a whole number, not 16.0"),
        ({"dim": True}, TypeError, "dim must be a whole number, not True"),
        ({"depth": -1}, ValueError, "depth must be at least 1, not -1"),
        ({"depth": None}, TypeError, r"the flag 'depth' \(how often the layout is repeated\) must be given"),
        ({"heads": 0}, ValueError, "heads must be at least 1, not 0"),
        ({"attn_dim_head": 0}, ValueError, "attn_dim_head must be at least 1, not 0"),
        ({"attn_kv_heads": 3}, ValueError, "attn_kv_heads=3 does not divide the 4 heads"),
        ({"attn_kv_heads": 8}, ValueError, "attn_kv_heads=8 does not divide the 4 heads"),
        ({"attn_num_mem_kv": -1}, ValueError, "attn_num_mem_kv must be at least 0, not -1"),
        ({"attn_window": 0}, ValueError, "attn_window must be at least 1, not 0"),
        (
            {"attn_qk_norm": True, "attn_qk_norm_groups": 5},
            ValueError,
            "attn_qk_norm_groups=5 must cut attn_dim_head=64 into",
        ),
        ({"attn_dropout": 1.0}, ValueError, "attn_dropout must be below 1, not 1.0"),
        ({"ff_dropout": float("nan")}, ValueError, "ff_dropout must be finite, not nan"),
        ({"ff_mult": (4, 2)}, TypeError, r"ff_mult must be a number or None, not \(4, 2\)"),
        (
            {"ff_mult": 0.01},
            ValueError,
            r"ff_mult=0.01 with dim=24 makes 0.24 channels, .* give ff_dim=1$",
        ),
        ({"ff_glu": 1}, TypeError, "ff_glu must be True or False, not 1"),
        ({"norm_eps": 0}, ValueError, "norm_eps must be above 0, not 0.0"),
        ({"num_memory_tokens": -1}, ValueError, "num_memory_tokens must be at least 0, not -1"),
        ({"rotary_pos_emb": True, "rotary_emb_dim": 5}, ValueError, "rotary_emb_dim must be even, not 5"),
        ({"pos": ("rotary", "rotary")}, ValueError, r"pos=\('rotary', 'rotary'\) names 'rotary' twice"),
        ({"pos": "alibi rotary alibi"}, ValueError, "pos='alibi rotary alibi' names 'alibi' twice"),
        (
            {"pos": "rotary", "rotary_emb_dim": 66},
            ValueError,
            "rotary_emb_dim=66, but the widest keys, those of 'attn', have 64 channels",
        ),
        (
            {
                "pos": "rotary",
                "rotary_emb_dim": 10,
                "layers": "flash gau",
                "flash_query_key_dim": 8,
                "gau_query_key_dim": 6,
            },
            ValueError,
            "rotary_emb_dim=10, but the widest keys, those of 'flash', have 8 channels",
        ),
        (
            {"pos": "rotary", "layers": "attn gau(query_key_dim=6, heads=6)"},
            ValueError,
            "pos='rotary' turns channels in pairs, but keys of 'gau' have one channel",
        ),
        ({"pos": "alibi", "alibi_num_heads": 5}, ValueError, "alibi_num_heads=5, but no layer has more than 4 heads"),
        ({"weight_tie_layers": True, "depth": 1}, ValueError, "weight_tie_layers=True ties the repetitions .*depth=1"),
        (
            {"shift_tokens": (1, 0)},
            ValueError,
            "shift_tokens has 2 entries, but the stack has 4 layers; give one a layer",
        ),
        ({"layer_dropout": (0.1,) * 5}, ValueError, "layer_dropout has 5 entries, but the stack has 4 layers"),
        ({"shift_tokens": (1, 0, -1, 0)}, ValueError, "shift_tokens must be at least 0, not -1"),
        ({"shift_tokens": 30}, ValueError, "shift_tokens=30 cuts the channels into 31 chunks, but dim is 24"),
        (
            {"shift_tokens": (1, 0, 2, 0), "weight_tie_layers": True},
            ValueError,
            "shift_tokens.* weight_tie_layers=True makes",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(flags, error, match):
    with pytest.raises(error, match=match) as caught:
        Decoder(**{**BASE, **flags})
    assert type(caught.value) is error


def test_an_unknown_flag_is_named_before_a_missing_one():
    with pytest.raises(TypeError, match="unknown flag 'hidden_size'; it is called 'dim' here"):
        Decoder(hidden_size=8)


def test_a_model_is_not_saved_into_a_file(tmp_path):
    (tmp_path / "model").write_text("something else")
    with pytest.raises(ValueError, match=r"model is a file; save\(\) writes a folder with config.json and"):
        Decoder(**BASE).save(tmp_path / "model")


def test_a_direction_that_a_flag_needs():
    with pytest.raises(ValueError, match="rotary_xpos=True needs a causal stack"):
        Encoder(**BASE, rotary_xpos=True)
    with pytest.raises(
        ValueError, match=r"attn_max_attend_past leaves the future open.*attn_window limits a bidirectional one"
    ):
        Encoder(**BASE, attn_max_attend_past=3)


def test_what_fits_one_layer_is_not_refused_for_another():
    narrow = {"layers": "attn gau", "attn_dim_head": 10, "gau_query_key_dim": 6}
    Decoder(**BASE, **narrow, pos="rotary alibi", rotary_emb_dim=10, alibi_num_heads=4)
    Decoder(**BASE, pos="rotary", rotary_pos_emb=True, alibi_pos_bias=False)


@pytest.mark.parametrize(
    ("cls", "arguments", "match"),
    [
        (FLASHTransformer, {"num_tokens": 7, "depth": 1}, "heads=3 is set, but FLASH has one head"),
        (FLASH, {}, "heads=3 is set, but FLASH has one head"),
        (GAU, {}, "heads=3 is set, but a GAU has gau_heads"),
    ],
)
def test_layers_without_heads_are_given_none(cls, arguments, match):
    with pytest.raises(ValueError, match=match):
        cls(dim=24, heads=3, **arguments)
