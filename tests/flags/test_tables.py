"""What tables of flags say beside the values, and what they are asked for."""

import pytest
import torch

import xflash
from xflash import Decoder, Encoder

SMALL = {"dim": 24, "depth": 1, "heads": 2}


def test_what_is_said_of_one_of_several_blocks_in_parallel_is_of_all():
    text = Decoder(**SMALL, layers="attn(norm=rmsnorm, scale=rezero)+ff").flag_table(changed_only=True)
    assert "its norm (of blocks in parallel: of all of them), 'none', or 'own': one beside theirs" in text
    assert "what multiplies its update (of blocks in parallel: their sum), or 'none'" in text


@pytest.mark.parametrize(("name", "width", "turned"), [("rotary", 15, 14), ("rotary2d", 15, 12), ("rotary", 14, 14)])
def test_what_is_turned_of_odd_keys(name, width, turned):
    net = Encoder(**SMALL, layers="attn", pos=name, attn_dim_head=width)
    said = {"rotary": "None: all, but for an odd one", "rotary2d": "a multiple of 4 (None: as many as there are"}
    assert said[name] in net.flag_table()
    where = torch.tensor([[[0, 1], [2, 3], [4, 5]]])
    x = torch.randn(1, 3, 24, generator=torch.Generator().manual_seed(1))
    same = Encoder(**SMALL, layers="attn", pos=name, attn_dim_head=width, **{f"{name}_emb_dim": turned})
    same.load_state_dict(net.state_dict())
    beside = {"grid": where} if name == "rotary2d" else {}
    assert torch.equal(net(x, **beside), same(x, **beside))


def test_changed_only_is_a_switch():
    with pytest.raises(TypeError, match="changed_only must be True or False, not 'layers'"):
        Decoder(**SMALL).flag_table("layers")


def test_a_registry_and_the_package_say_what_they_have():
    assert repr(xflash.joins).startswith("<the joins add, ") and repr(xflash.weight_fns).startswith("<the weight fun")
    assert {*xflash.__all__, "flops"} <= set(dir(xflash))
    assert not {"sys", "Moved", "may_be_loaded"} & set(dir(xflash)) and all(hasattr(xflash, n) for n in dir(xflash))
