"""Widths: a product of a factor and the model's width is a whole number, or it is refused; never a channel less."""

import math
from contextlib import nullcontext

import pytest
from torch import nn

from xflash import FLASH, GAU, Decoder, Encoder, FLASHTransformer, from_config
from xflash.layers.site import Site
from xflash.wrappers.block_recurrent import BlockRecurrentTransformer


def inner(stack: nn.Module) -> list[int]:
    return [block.to_out.in_features for block in stack.blocks()]


def test_no_pair_of_widths_loses_a_channel():
    """Of all factors between multiples of 64, in floats some times the width fall short of the other."""
    widths = range(64, 8193, 64)
    pairs = [(dim, width) for dim in widths for width in widths if int(width / dim * dim) != width]
    assert len(pairs) > 600
    assert all(Site(dim, 1, True).channels("ff_mult", width / dim) == width for dim, width in pairs)


@pytest.mark.parametrize("flags", [{"ff_mult": 960 / 704}, {"ff_dim": 960}, {"ff_mult": 960 / 704, "ff_dim": 960}])
def test_ff_has_the_width_that_is_asked_for(flags):
    stack = Encoder(dim=704, depth=1, heads=2, layers="ff", **flags)
    assert inner(stack) == [960]
    assert inner(from_config(stack.to_config())) == [960]


def test_ff_dim_takes_what_no_factor_says():
    stack = Encoder(dim=13, depth=1, heads=2, layers="ff ff(dim=17) ff(mult=2)", ff_glu=True)
    assert inner(stack) == [52, 17, 26]
    assert [block.to_inner.out_features for block in stack.blocks()] == [104, 34, 52]


@pytest.mark.parametrize(
    ("layers", "flag"),
    [("gau", "gau_expansion_factor"), ("flash", "flash_expansion_factor"), ("cross_gau", "cross_gau_expansion_factor")],
)
def test_gated_units_have_the_width_that_is_asked_for(layers, flag):
    assert int(15 / 13 * 13) == 14
    assert inner(Decoder(dim=13, depth=1, heads=1, layers=layers, **{flag: 15 / 13})) == [15]
    with pytest.raises(ValueError, match=f"{flag}=1.3 with dim=13 makes 16.9 channels.*: give {flag}=16/13 or"):
        Decoder(dim=13, depth=1, heads=1, layers=layers, **{flag: 1.3})


@pytest.mark.parametrize(
    ("build", "flag"),
    [
        (lambda f: GAU(dim=13, query_key_dim=6, expansion_factor=f).stack, "gau"),
        (lambda f: FLASH(dim=13, group_size=5, query_key_dim=6, expansion_factor=f).stack, "flash"),
        (
            lambda f: (
                FLASHTransformer(
                    dim=13, num_tokens=11, depth=1, group_size=5, query_key_dim=6, expansion_factor=f
                ).attn_layers
            ),
            "flash",
        ),
    ],
)
def test_the_layers_of_flash_pytorch_too(build, flag):
    assert inner(build(15 / 13)) == [15]
    with pytest.raises(ValueError, match=f"{flag}_expansion_factor=1.7 with dim=13 makes 22.1 channels"):
        build(1.7)


@pytest.mark.parametrize(("mult", "width"), [(4, 58), (1.5, 22), (1, 14)])
def test_the_block_recurrent_transformer_rounds_as_its_peer(mult, width):
    """int(dim * mult * 2 / 3) there; 22 * 1.5 * 2 / 3 is 22 whatever floats make of it."""
    model = BlockRecurrentTransformer(num_tokens=11, dim=22, depth=1, block_width=4, max_seq_len=8, ff_mult=mult)
    assert inner(model.attn_layers)[1] == width == math.floor(22 * mult * 2 / 3 + 1e-9)
    assert model.attn_layers.to_config()["ff_dim"] == width


def test_the_block_recurrent_transformer_takes_one_width():
    sizes = {"num_tokens": 11, "dim": 22, "depth": 1, "block_width": 4, "max_seq_len": 8}
    assert inner(BlockRecurrentTransformer(**sizes, ff_dim=17).attn_layers)[1] == 17
    with pytest.raises(ValueError, match=r"ff_mult=3\.0 and ff_dim=17 both say how wide the layers are; give one"):
        BlockRecurrentTransformer(**sizes, ff_dim=17, ff_mult=3)
    with pytest.raises(TypeError, match="ff_mult must be a number, not '4'"):
        BlockRecurrentTransformer(**sizes, ff_mult="4")


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (
            {"ff_mult": 8 / 3},
            r"ff_mult=2\.6\d+ with dim=512 makes 1365\.3.* give ff_dim=1365 or ff_dim=1366$",
        ),
        (
            {"ff_mult": 2, "ff_dim": 1000},
            r"ff_dim=1000 is set, but ff_mult=2\.0 with dim=512 makes 1024",
        ),
        ({"layers": "ff(dim=100)", "ff_mult": 2}, r"ff_dim=100 is set, but ff_mult=2\.0 with dim=512 makes 1024"),
        ({"ff_dim": 0}, "ff_dim must be at least 1, not 0"),
        ({"ff_mult": 1e300}, r"ff_mult must be at most 1000000, not 1e\+300"),
    ],
)
def test_what_is_no_width(flags, match):
    with pytest.raises(ValueError, match=match):
        Encoder(dim=512, **{"depth": 1, "layers": "ff", **flags})


@pytest.mark.parametrize(
    ("flags", "width"),
    [
        ({"layers": "ff", "ff_mult": 2.7}, 35),
        ({"layers": "ff", "ff_mult": 35.5 / 13}, 35),
        ({"layers": "ff", "ff_mult": 15 / 13}, 14),
        ({"layers": "gau", "gau_expansion_factor": 1.3}, 16),
        ({"layers": "ff(mult=2.7)"}, 35),
        ({"custom_layers": [["ff", {"mult": 2.7}]], "depth": None}, 35),
        ({"layers": "flash(expansion_factor=1.3)"}, 16),
    ],
)
def test_configs_of_the_first_format_are_as_wide_as_they_were(flags, width):
    """That one took int(factor * dim), and knew of no other way to say it."""
    plain = {"dim": 13, "depth": 1, "heads": 1, **flags}
    assert inner(from_config({"class": "Encoder", **plain})) == [width]
    with pytest.raises(ValueError, match="no whole number") if 15 / 13 not in flags.values() else nullcontext():
        Encoder(**plain)


def test_so_are_the_wrappers_of_the_first_format():
    flash = {"class": "FLASH", "dim": 13, "group_size": 5, "query_key_dim": 6, "expansion_factor": 1.3}
    assert inner(from_config(flash).stack) == [16]
    sizes = {"num_tokens": 11, "dim": 22, "depth": 1, "block_width": 4, "max_seq_len": 8}
    for mult, width in ((1.9, 27), (17.5 / 22 * 1.5, 17)):
        old = from_config({"class": "BlockRecurrentTransformer", **sizes, "ff_mult": mult})
        assert inner(old.attn_layers)[1] == width == int(mult * 2 / 3 * 22)
