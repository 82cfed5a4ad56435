"""What scripts written for 0.1.0 import is found where it is now."""

import importlib

import pytest

import xflash
from xflash.base.moved import MOVED

NAMES = {
    "layers.positions": "Rotary RelPos Alibi Bias Position",
    "layers.residuals": "Add LayerScale ReZero Residual ScaledResidual",
    "layers.norms": "LayerNorm Norm",
    "layers.attention": "Attention",
    "layers.block": "Block Site",
    "flags": "flag flag_table",
    "stack": "AttentionLayers CrossAttender Decoder Encoder PrefixDecoder",
    "registry": "blocks norms positions residuals activations",
    "sampling": "top_k top_p",
    "data": "text splits",
}


@pytest.mark.parametrize("module", MOVED)
def test_a_module_is_found_under_the_name_it_had(module):
    assert importlib.import_module(f"xflash.{module}") is importlib.import_module(f"xflash.{MOVED[module]}")


@pytest.mark.parametrize(("module", "names"), NAMES.items())
def test_a_name_is_found_in_the_module_it_was_in(module, names):
    found = importlib.import_module(f"xflash.{module}")
    assert all(hasattr(found, name) for name in names.split())
    assert not hasattr(found, "Nothing")


def test_convert_is_there_when_it_is_asked_for():
    assert xflash.__getattr__("convert") is importlib.import_module("xflash.convert")
    with pytest.raises(AttributeError, match="module 'xflash' has no attribute 'Decodr'"):
        xflash.Decodr  # noqa: B018


def test_no_import_of_an_old_name_hides_what_is_public():
    """Python binds a submodule that is imported to its package, over what is there: `side_inputs` is a registry now."""
    assert not set(MOVED) & set(xflash.__all__)
