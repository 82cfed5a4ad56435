"""`diff`: the flags that two models or configs have otherwise, across layouts too; HTML of models in notebooks."""

from html.parser import HTMLParser

import pytest

import xflash
from xflash import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper, XTransformer
from xflash.saving.differences import ABSENT

SMALL = {"dim": 20, "heads": 2, "depth": 1}


def rows(one, other):
    return [(row.flag, row.one, row.other) for row in xflash.diff(one, other)]


def model(**flags):
    return TransformerWrapper(num_tokens=31, max_seq_len=11, attn_layers=Decoder(**{**SMALL, **flags}))


def test_flags_of_one_layout():
    one = Decoder(**SMALL, attn_window=5, norm="rmsnorm", pos="rotary")
    other = Decoder(**SMALL, attn_window=7, norm="rmsnorm", attn_gate_values=True, shift_tokens=1)
    assert rows(one, other) == [
        ("pos", ("rotary",), None),
        ("shift_tokens", 0, 1),
        ("attn_gate_values", False, True),
        ("attn_window", 5, 7),
    ]
    assert [(flag, b, a) for flag, a, b in rows(other, one)] == rows(one, other)
    assert not one.diff(one) and str(one.diff(one)) == "no flag differs" == repr(one.diff(one.to_config()))


def test_flags_of_other_layouts():
    """Of what one of them has not, those that the other sets, what a layer says of itself among them."""
    one = Decoder(**SMALL, layers="flash attn(window=5)", flash_group_size=3)
    other = Encoder(**SMALL, layers="attn ff", attn_dim_head=6, ff_glu=True)
    assert rows(one, other) == [
        ("class", "Decoder", "Encoder"),
        ("causal", True, False),
        ("layers", "flash attn(window=5)", "attn ff"),
        ("attn_dim_head", 64, 6),
        ("flash_group_size", 3, ABSENT),
        ("1: attn(window)", 5, ABSENT),
        ("ff_glu", ABSENT, True),
    ]


def test_models_trainers_and_configs():
    one, other = model(layers="attn ff"), model(layers="attn ff", ff_mult=2.0)
    expected = [("ff_mult", None, 2.0)]
    assert rows(one, other) == rows(one, other.to_config()) == rows(one.to_config(), other.to_config()) == expected
    assert rows(AutoregressiveWrapper(one), AutoregressiveWrapper(other)) == expected
    assert rows(one, AutoregressiveWrapper(other, loss_chunk=7)) == [
        ("class", "TransformerWrapper", "AutoregressiveWrapper"),
        *expected,
        ("loss_chunk", ABSENT, 7),
    ]
    sizes = {f"{side}_{name}": 4 for side in ("enc", "dec") for name in ("num_tokens", "max_seq_len", "depth")}
    pair = [XTransformer(dim=20, **sizes, **more) for more in ({}, {"enc_ff_glu": True})]
    assert rows(*pair) == [("enc_ff_glu", False, True)]


def test_a_short_config_has_the_defaults():
    assert rows(Decoder(**SMALL, layers="gau"), {"class": "Decoder", "dim": 20, "depth": 3, "layers": "gau"}) == [
        ("depth", 1, 3),
        ("heads", 2, 8),
    ]


def test_it_is_a_table():
    found = Decoder(**SMALL, layers="ff").diff(Decoder(**SMALL, layers="ff", ff_glu=True))
    assert str(found).splitlines() == [
        "flag    one    other  meaning",
        "ff_glu  False  True   gate one half of the inner projection with the activation of the other "
        "(https://arxiv.org/abs/2002.05202)",
    ]
    assert '<td style="text-align:left">ff_glu</td>' in found._repr_html_()
    assert Decoder(**SMALL).diff(Decoder(**SMALL))._repr_html_() == "<p>no flag differs</p>"


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="diff compares models and configs as to_config"):
        Decoder(**SMALL).diff(3)
    with pytest.raises(ValueError, match="the config names an unknown class 'Decodr'; did you mean 'Decoder'"):
        xflash.diff({"class": "Decodr"}, Decoder(**SMALL))


class Cells(HTMLParser):
    """The cells of every row of a page, and the titles of what can be unfolded; that tags are closed."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.titles, self.open, self.text = [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.text = []
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        self.text.append(data)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.rows[-1].append("".join(self.text))
        elif tag == "summary":
            self.titles.append("".join(self.text))


def test_a_notebook_shows_layers_and_flags():
    net = model(layers="attn(window=5)+ff flash", depth=2, weight_tie_layers=True, norm="rmsnorm")
    page = Cells(net._repr_html_())
    branches = net.attn_layers.branches
    attn, flash = (f"{sum(p.numel() for p in branch.parameters()):,}" for branch in branches)
    assert page.rows[:5] == [
        ["layer", "block", "parameters"],
        ["1", "attn + ff", attn],
        ["2", "flash", flash],
        ["3", "attn + ff", "those of layer 1"],
        ["4", "flash", "those of layer 2"],
    ]
    assert page.titles[0] == "layers of attn_layers" and page.titles[2] == f"all {len(net.flag_rows())} flags"
    shown = {row[0]: row[1:3] for row in page.rows[5:]}
    assert shown["norm"] == ["'rmsnorm'", "'layernorm'"] and shown["num_tokens"] == ["31", "(required)"]
    assert shown["attn_layers"][0] == "Decoder" and "layers=&#x27;attn(window=5)+ff flash&#x27;" in net._repr_html_()
    assert Decoder.__new__(Decoder)._repr_html_().startswith("<pre>&lt;xflash.stack.stacks.Decoder object")
