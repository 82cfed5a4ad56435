"""What somebody new writes first: a slip of the pen, a flag in the wrong place, a mask of another shape."""

from dataclasses import dataclass, field

import pytest
import torch

import xflash
from xflash import (
    AutoregressiveWrapper,
    BlockRecurrentTransformer,
    Decoder,
    Encoder,
    FLASHTransformer,
    TransformerWrapper,
    XTransformer,
)
from xflash.base.registry import closest
from xflash.flags.flag import flag, flags_of, like

B, N = 2, 5
IDS = torch.arange(B * N).view(B, N)


def model():
    return TransformerWrapper(num_tokens=11, attn_layers=Decoder(dim=8, depth=1, heads=2), use_abs_pos_emb=False)


NEAREST = {
    "flash_grp": "did you mean 'flash_group_size'",
    "attn_head_dim": "did you mean 'attn_dim_head'",
    "qk_dim": "queries and keys are as wide as attn_dim_head, gau_query_key_dim and flash_query_key_dim say",
    "gau_qk_dim": "did you mean 'gau_query_key_dim'",
    "emb_dropot": "did you mean 'emb_dropout', an argument of TransformerWrapper, not of a stack",
    "pad_valu": "did you mean 'pad_value', an argument of AutoregressiveWrapper, not of a stack",
}


@pytest.mark.parametrize("name", NEAREST)
def test_the_nearest_flag(name):
    with pytest.raises(TypeError, match=f"unknown flag '{name}'; {NEAREST[name]}"):
        Decoder(dim=8, depth=1, **{name: 3})


def test_one_word_for_another():
    known = ["flash_dropout", "flash_group_size", "dim_head", "a_bc"]
    assert closest("flash_drpout", known)[1] == "flash_dropout"
    assert closest("flash_grp", known)[1] == "flash_group_size"
    assert closest("head_dim", known) == (1.0, "dim_head")
    assert closest("zebra", known) == (0.0, "")


def test_a_slip_in_a_wrapper_that_takes_flags():
    for cls, flags in ((FLASHTransformer, {}), (BlockRecurrentTransformer, {})):
        with pytest.raises(TypeError, match=rf"{cls.__name__} has no argument 'dpeth'; did you mean 'depth'\?"):
            cls(num_tokens=7, dim=8, dpeth=1, **flags)
    with pytest.raises(TypeError, match="XTransformer has no argument 'enc_dpeth'; did you mean 'enc_depth'"):
        XTransformer(enc_num_tokens=7, enc_dpeth=1)
    with pytest.raises(TypeError, match="did you mean 'attn_dropout', an argument of the stack"):
        TransformerWrapper(num_tokens=7, atn_dropout=0.1)


LAYOUTS = {
    "attn(rotary_bas=3)": "did you mean 'rotary_base'",
    "attn(norm_ep=3)": "did you mean 'norm_eps'",
    "attn(causal=True)": "it is a flag of the whole stack",
    "attn(rotary_pos_emb=True)": "it is a flag of the whole stack",
    "attn(attn_window=3)": "of one layer it is 'window'",
    "attn(flash_group_size=3)": "it is a flag of 'flash'",
    "flash(window=3)": "blocks that have it: attn",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_flag_of_a_layer_that_is_another_s(layout):
    name = layout.partition("(")[2].partition("=")[0]
    with pytest.raises(TypeError, match=f"unknown flag '{name}' in the layout entry .*; {LAYOUTS[layout]}"):
        Decoder(dim=8, depth=1, layers=layout)


NO_MASK = {
    (torch.float32, (B, N)): r"not torch.float32; give mask.bool\(\) of ones and zeros, or mask == 0 of what is added",
    (torch.bool, (1, N)): r"give mask.expand\(2, -1\), one row for each",
    (torch.bool, (N,)): r"give mask.expand\(2, -1\), one row for each",
    (torch.bool, (N, B)): r"mask.T has that shape",
    (torch.bool, (B, 1, 1, N)): r"give mask\[:, 0, 0\]",
    (torch.bool, (N, N)): "which tokens each may attend to is said by attn_mask=mask$",
    (torch.bool, (B, N, N)): r"which tokens each may attend to is said by attn_mask=mask\[:, None\]",
    (torch.bool, (B, 1, N, N)): "which tokens each may attend to is said by attn_mask=mask$",
}


@pytest.mark.parametrize("case", NO_MASK, ids=str)
def test_what_is_no_mask(case):
    """What is given instead is taken."""
    dtype, shape = case
    mask = torch.ones(shape, dtype=dtype)
    with pytest.raises((TypeError, ValueError), match=NO_MASK[case]):
        model()(IDS, mask)
    said = NO_MASK[case].replace("\\", "").rstrip("$")
    if "attn_mask=" in said:
        model()(IDS, attn_mask=eval(said.split("attn_mask=")[1], {"mask": mask}))
    else:
        model()(IDS, eval(said.split("give ")[-1].split(" has")[0].split(" of ")[0].split(", one")[0], {"mask": mask}))


NO_ATTN_MASK = {
    (torch.float32, (N, N)): r"give attn_mask.bool\(\) of ones and zeros, or attn_mask == 0 of what is added to scores",
    (torch.bool, (B, N, N)): r"give attn_mask\[:, None\] for rows, attn_mask\[None\] for heads",
    (torch.bool, (B, N)): "which tokens are real is said by mask$",
    (torch.bool, (B, 1, 1, N)): r"which tokens are real is said by mask=attn_mask\[:, 0, 0\]",
}


@pytest.mark.parametrize("case", NO_ATTN_MASK, ids=str)
def test_what_is_no_attn_mask(case):
    with pytest.raises((TypeError, ValueError), match=NO_ATTN_MASK[case]):
        model()(IDS, attn_mask=torch.ones(case[1], dtype=case[0]))


GENERATES = {"temp": "'temperature'", "stop": "'eos_token'", "length": "'seq_len'", "eos": "'eos_token'"}


@pytest.mark.parametrize("name", GENERATES)
def test_options_of_generating(name):
    with pytest.raises(TypeError, match=f"generate has no option '{name}'; it is called {GENERATES[name]} here"):
        AutoregressiveWrapper(model()).generate(IDS, 2, **{name: 1})
    if name == "length":
        with pytest.raises(TypeError, match="generate has no argument 'length'; it is called 'seq_len' here"):
            AutoregressiveWrapper(model()).generate(IDS, length=2)


def test_the_layers_own_loss_asked_of_a_trainer():
    said = "no option 'return_auxiliary_loss'; a trainer adds it to its loss; model"
    with pytest.raises(TypeError, match=said):
        AutoregressiveWrapper(model())(IDS, return_auxiliary_loss=True)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A Config with a field that is made anew each time."""

    sizes: dict = field(default_factory=lambda: {"a": 1})
    width: int = flag(3, "how wide")


def test_a_field_that_is_made_is_not_required():
    assert flags_of(Made)["sizes"].default == {"a": 1} and flags_of(Made)["width"].default == 3

    @dataclass(frozen=True, kw_only=True)
    class Like:
        sizes: dict = like(Made, "sizes")

    assert xflash.flags.flag.build(Like, {}) == Like(sizes={"a": 1}) and flags_of(Like)["sizes"].default == {"a": 1}


def test_the_signature_of_a_mistake_is_one_of_the_model():
    with pytest.raises(TypeError, match="unknown flag 'nheads'; did you mean 'heads'"):
        Encoder(dim=8, depth=1, nheads=2)
