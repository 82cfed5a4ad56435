"""What a layout says of whole layers and cannot be built."""

from dataclasses import make_dataclass

import pytest

from xflash import Block, Decoder, blocks, flag

SMALL = {"dim": 26, "depth": 1, "heads": 2, "attn_dim_head": 6}
REFUSED = [
    ("attn(norm=own) ff", "norm='own' in the layout entry .* is for one of several blocks in parallel"),
    ("attn(join=gru)+ff(join=add)", "join='add' is set in .*, but another block in parallel with it has join='gru'"),
    (
        "attn+ff(norm=own, norm_place=post)",
        "norm='own' in .* is a norm in front of the block, but norm_place='post'",
    ),
    ("attn(norm=none, norm_eps=1e-3)", "norm_eps is set in the layout entry .*, but norm='none' has no such flag"),
    ("attn(norm=rmsnorm, norm_bias=True)", "norm_bias is set in .*, but norm='rmsnorm' has no such flag"),
    ("attn(norm=none, norm_place=post)", "norm_place='post' is set in .*, but norm='none' has nothing to place"),
    ("attn(norm=rmsnrm)", "unknown norm 'rmsnrm'; did you mean 'rmsnorm'"),
    ("attn(norm_place=aftr)", "norm_place='aftr' in the layout entry .* is not one of .*; did you mean 'after'"),
    ("attn(norm_epss=1.0)", "unknown flag 'norm_epss' in the layout entry .*; did you mean 'norm_eps'"),
    ("attn(join=hyper) ff", "join='hyper' has streams of its own from the first layer to the last, but join='add'"),
    ("attn(join=grou)", "unknown join 'grou'; did you mean 'gru'"),
    ("attn(scale=rezro)", "unknown scale 'rezro'; did you mean 'rezero'"),
    ("attn(pos=rotry)", "unknown position 'rotry'; did you mean 'rotary'"),
    ("attn(rotary_base=9.0)", "rotary_base is set in the layout entry .*, but pos=None has no 'rotary'"),
    ("attn(pos=rotary, rotary_base=0.5)", "rotary_base in the layout entry .* must be above 1, not 0.5"),
    ("attn ff(pos=rotary)", r"'rotary' is set in .*, but 'ff' cannot use it \(blocks that can: attn"),
    ("attn ff(pos=none)", r"pos is set in the layout entry .*, but 'ff' uses no positions"),
    ("attn(shift_tokens=-1)", "shift_tokens in the layout entry .* must be at least 0, not -1"),
    ("attn(shift_tokens='a')", "shift_tokens in the layout entry .* must be a whole number or True or False, not 'a'"),
    ("attn(layer_dropout=1.5)", "layer_dropout in the layout entry .* must be below 1, not 1.5"),
    ("attn(norm=simple_rmsnorm, norm_place=after)", "norm_place='after' starts the norm behind each block small"),
    ("attn(pos=rotary, rotary_emb_dim=30)", "rotary_emb_dim=30, but the widest keys, those of 'attn', have 6 channels"),
    ("attn(scal=rezero)", "unknown flag 'scal' in the layout entry .*; did you mean 'scale'"),
]


@pytest.mark.parametrize(("layers", "match"), REFUSED, ids=[layers for layers, _ in REFUSED])
def test_what_is_refused(layers, match):
    with pytest.raises((TypeError, ValueError), match=match) as caught:
        Decoder(**SMALL, layers=layers)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"norm": "none", "norm_eps": 1e-3}, "norm_eps is set but norm='none' has no such flag"),
        ({"norm": "none", "final_norm": True}, "final_norm=True is set, but norm='none'"),
        ({"norm": "none", "norm_place": "post"}, "norm_place='post' is set, but norm='none' has nothing to place"),
        ({"norm": "none", "layers": "attn+ff(norm=own)"}, "norm='own' in .*, but norm='none' is what the stack has"),
        ({"pos": "rotary", "layers": "attn(pos=none) ff"}, "pos has 'rotary', but every layer that could"),
        (
            {"pos": "rotary", "layers": "attn(rotary_base=9.0)"},
            "pos has 'rotary', but every layer that could",
        ),
        ({"layers": "attn ff attn+ff", "shift_tokens": (1, 0, 1, 1)}, "4 entries, but the stack has 3 layers"),
        ({"norm": "own"}, "unknown norm 'own'"),
    ],
)
def test_what_contradicts_the_stack(flags, match):
    with pytest.raises(ValueError, match=match):
        Decoder(**{**SMALL, **flags})


@pytest.mark.parametrize("name", ["norm", "norm_groups", "scale", "pos", "rotary_base"])
def test_a_block_has_no_flags_that_a_layout_keeps_for_itself(name):
    class Odd(Block):
        Config = make_dataclass("Config", [(name, int, flag(1))], frozen=True, kw_only=True)

        def forward(self, x, ctx, state=None):
            return x, None

    with pytest.raises(TypeError, match=f"the block 'odd' has a flag {name!r}, which a layout says of any block"):
        blocks.register("odd")(Odd)
    assert "odd" not in blocks
