"""The layout: what it reads, what it prints, and what it refuses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xflash import Decoder, from_config
from xflash.base.registry import blocks
from xflash.flags.layout import LETTERS, LayerSpec, layout_text, parallel, parse_layout


def spec(name, **overrides):
    return LayerSpec(name, overrides)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("attn ff", [spec("attn"), spec("ff")]),
        ("  attn\n\tff ", [spec("attn"), spec("ff")]),
        ("flash*3 ff", [spec("flash")] * 3 + [spec("ff")]),
        ("flash * 2ff", [spec("flash")] * 2 + [spec("ff")]),
        ("attn(window=64)*2", [spec("attn", window=64)] * 2),
        ("attn( window = 64, dropout=.1 ) ff()", [spec("attn", window=64, dropout=0.1), spec("ff")]),
        ("attn(flash=None, qk_norm=True) gau(attn_fn='laplace')", [
            spec("attn", flash=None, qk_norm=True), spec("gau", attn_fn="laplace"),
        ]),
        ("attn(x=(1, (2, 3)))", [spec("attn", x=(1, (2, 3)))]),
        ("a f a", [spec("attn"), spec("ff"), spec("attn")]),
        (("a", "f"), [spec("attn"), spec("ff")]),
        (["attn", "ff(mult=2)", ("attn", {"window": 4})], [spec("attn"), spec("ff", mult=2), spec("attn", window=4)]),
        ((["attn", {"window": 4}], "flash*2"), [spec("attn", window=4), spec("flash"), spec("flash")]),
        ((("f", {}),), [spec("ff")]),
        ("(attn ff)*2 flash", [spec("attn"), spec("ff")] * 2 + [spec("flash")]),
        ("((a f)*2 flash (gau))*2", ([spec("attn"), spec("ff")] * 2 + [spec("flash"), spec("gau")]) * 2),
        ("a(window=4)+f", [LayerSpec("attn+ff", ({"window": 4}, {}))]),
        ("(attn + ff(norm=own))*2", [LayerSpec("attn+ff", ({}, {"norm": "own"}))] * 2),
        ("attn+ff*2 attn", [LayerSpec("attn+ff", ({}, {}))] * 2 + [spec("attn")]),
        ((("a+f", [{"window": 4}, {}]), "f"), [LayerSpec("attn+ff", ({"window": 4}, {})), spec("ff")]),
        ("attn(norm=rmsnorm, norm_place=after)", [spec("attn", norm="rmsnorm", norm_place="after")]),
        ("attn(pos=none, window=None)", [spec("attn", pos="none", window=None)]),
    ],
)  # fmt: skip
def test_what_is_read(layers, expected):
    assert parse_layout(layers) == tuple(expected)


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ("flash flash flash attn ff", "flash*3 attn ff"),
        ("attn(window=4) attn(window=4) attn(window=5)", "attn(window=4)*2 attn(window=5)"),
        ((("attn", {"window": 4, "dropout": 0.5}),), "attn(window=4, dropout=0.5)"),
        ("f", "ff"),
        ("a f a f flash", "(attn ff)*2 flash"),
        ("((a f)*2 flash)*3 ff", "((attn ff)*2 flash)*3 ff"),
        ("a+f(norm=own) a+f(norm=own)", "attn+ff(norm='own')*2"),
        ("gau(attn_fn='laplace')", "gau(attn_fn='laplace')"),
    ],
)
def test_what_is_printed(layers, text):
    assert layout_text(parse_layout(layers)) == text


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-99, 99), st.floats(allow_nan=False, allow_infinity=False),
    st.text("ab(),*=' \"\\", max_size=5), st.tuples(st.integers(0, 9), st.booleans()),
)  # fmt: skip
NAMES = st.sampled_from(["window", "mult", "a_b", "x2"])
ALONE = st.builds(LayerSpec, st.sampled_from(sorted(blocks)), st.dictionaries(NAMES, VALUES, max_size=3))
ENTRIES = st.one_of(ALONE, st.lists(ALONE, min_size=2, max_size=3).map(parallel))


@given(st.lists(ENTRIES, min_size=1, max_size=6))
def test_pairs_and_their_json_are_read_back(specs):
    pairs = tuple((s.name, s.overrides) for s in specs)
    assert parse_layout(pairs) == tuple(specs)
    assert [s.name for s in parse_layout(json.loads(json.dumps(pairs)))] == [s.name for s in specs]


@given(st.lists(ENTRIES, min_size=1, max_size=6), st.integers(1, 3))
def test_text_is_read_back(specs, times):
    assert parse_layout(layout_text(specs * times)) == tuple(specs * times)


@pytest.mark.parametrize(
    ("layers", "error", "match"),
    [
        ("", ValueError, "the layout is empty; name at least one block, as in layers='attn ff'"),
        ((), ValueError, "the layout is empty"),
        ("atn ff", ValueError, r"unknown block 'atn'; did you mean 'attn'\? \(known: 'attn', 'ff', "),
        ("attn, ff", ValueError, "cannot read the layout 'attn, ff' at ', ff'; blocks are separated by spaces: 'a"),
        ("(attn ff", ValueError, r"cannot read the layout '\(attn ff' at '\(attn ff'; this group has no '\)'"),
        ("attn ff) gau", ValueError, r"cannot read the layout .* at '\) gau'; no group begins before this '\)'"),
        ("attn (())", ValueError, r"at '\(\)\)'; a group holds at least one block, as in '\(attn ff\)\*2'"),
        ("(attn ff)*0", ValueError, r"'\(attn ff\)\*0' in the layout .* repeats its 2 layers 0 times; give 1 to 5000"),
        ("((attn*9)*9999)*9", ValueError, r"repeats its 9 layers 9999 times; give 1 to 1111"),
        ("attn+(ff)", ValueError, r"cannot read the layout .* at '\(ff\)'; '\+' has no groups beside it"),
        ("(attn ff)+ff", ValueError, r"at '\+ff'; '\+' stands between two blocks, and binds closer than '\*'"),
        ("attn*2 + ff", ValueError, r"at '\+ ff'; '\+' stands between two blocks, and binds closer than '\*'"),
        ("ff attn+", ValueError, r"at its end; '\+' stands between two blocks: 'attn\+ff'"),
        ("+ff", ValueError, r"cannot read the layout '\+ff' at '\+ff'; write"),
        ("attn+fff", ValueError, r"unknown block 'fff'; did you mean 'ff'"),
        ("3*attn", ValueError, r"at '3\*attn'; a number of times stands behind what it repeats: 'attn\*3'"),
        ("[attn ff]*5", ValueError, r"at '\[attn ff\]\*5'; groups are in parentheses: '\(attn ff\)\*2'"),
        ("(attn+ff)(norm=rmsnorm)", ValueError, r"at '=rmsnorm\)'; flags are .* behind a block, .* a group takes none"),
        ("attn(norm=none pos=none)", ValueError, r"; write it as 'attn\(window=64, norm=none\)'"),
        ("attn*0 ff", ValueError, r"'attn\*0' in the layout 'attn\*0 ff' repeats its block 0 times; give 1 to 10000"),
        ("ff attn*-2", ValueError, "repeats its block -2 times"),
        (
            "attn(64)",
            ValueError,
            r"cannot read '\(64\)' in the layout entry 'attn\(64\)'; write it as 'attn\(window=64, norm=none\)'",
        ),
        ("attn(window=)", ValueError, r"cannot read '\(window=\)' in the layout entry"),
        ("attn(window=a b)", ValueError, r"cannot read '\(window=a b\)'.*, several words in quotes: 'a b'"),
        ("attn(window=4, window=5)", ValueError, r"cannot read '\(window=4, window=5\)' .*; it says 'window' twice$"),
        ("attn(**{'window': 4})", ValueError, "cannot read"),
        ("attn(window=4)) + (2)", ValueError, r"cannot read the layout .* at '\) \+ \(2\)'"),
        ("attn(window=4", ValueError, r"cannot read '\(window=4' in the layout entry 'attn\(window=4'"),
        (
            "attn*1000000000",
            ValueError,
            r"'attn\*1000000000' in the layout .* repeats its block 1000000000 times; give 1",
        ),
        ("ff attn*" + "9" * 5000, ValueError, r"repeats its block 9{12}\.\.\. times; give 1 to 10000"),
        ("attn*9999 ff*2", ValueError, "the layout has 10001 layers; a stack has 10000 at most"),
        (("attn", 3), TypeError, r"a layer is a name or a pair \('attn', \{'window': 64\}\), not 3"),
        ((("attn", {}, 3),), TypeError, r"a layer is a name or a pair .* not \('attn', \{\}, 3\)"),
        ((("attn", ("window", 4)),), TypeError, "a layer is a name or a pair"),
        ((("attn", {3: 4}),), TypeError, r"a layer is a name or a pair .* not \('attn', \{3: 4\}\)"),
        (((3, {}),), TypeError, r"a layer is a name or a pair .* not \(3, \{\}\)"),
        (3, TypeError, "a layout is text such as 'flash.*3 attn ff' or a tuple of layers, not 3"),
        ({"attn": {}}, TypeError, "a layout is text .* not {'attn': {}}"),
    ],
)
def test_what_is_refused(layers, error, match):
    with pytest.raises(error, match=match) as caught:
        parse_layout(layers)
    assert len(str(caught.value)) < 300


LONG = "attn " * 700


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        (LONG + "!" + LONG, r"'\.\.\.[atn ]{15,}!attn .*\.\.\.' at '!attn attn .*\.\.\.'; write"),
        (
            "attn(" + "(" * 3000 + ")" * 3000 + ")",
            r"cannot read '\(\(\(+\.\.\.' in the layout entry 'attn\(\(\(+\.\.\.'; write",
        ),
        ("attn(window=" + "-" * 5000 + "1)", r"cannot read '\(window=-+\.\.\.' in the layout"),
        ("attn(window=[" + "1)," * 3000 + "])", r"cannot read '\(window=\[1\)' in the layout entry"),
        ("a" * 5000, r"unknown block 'a+\.\.\.' \(known"),
        (LONG + "(" + LONG, r"cannot read the layout '\.\.\.[atn ]+\(attn .*\.\.\.' at '\(attn .*\.\.\.'; this group"),
        ("(" + LONG + ")*0", r"repeats its 700 layers 0 times; give 1 to 14"),
        (LONG + "attn+!" + LONG, r"at '!attn .*\.\.\.'; '\+' stands between two blocks"),
        (LONG + "attn*0", r"'attn\*0' in the layout '\.\.\.[atn ]+attn\*0' repeats its block 0 times"),
    ],
    ids=range(9),
)
def test_errors_are_short_and_point_at_the_place(layers, match):
    with pytest.raises(ValueError, match=match) as caught:
        parse_layout(layers)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("entry", "size"),
    [((("attn", "x" * 5000),), 200), (["attn", list(range(5000))], 200), ([{"attn": "x" * 5000}], 200)],
)
def test_an_entry_that_is_no_layer_is_not_shown_whole(entry, size):
    with pytest.raises(TypeError, match="a layer is a name or a pair") as caught:
        parse_layout(entry)
    assert len(str(caught.value)) < size


def test_flags_that_contradict_a_long_layout():
    layers = " ".join(f"attn(window={i + 1})" for i in range(700))
    for flags in ({"gau_heads": 2}, {"cross_attend": True}, {"only_cross": True, "pos": "rotary"}, {"pos": "xx"}):
        with pytest.raises(ValueError, match=r"\.\.\.'|unknown position 'xx'") as caught:
            Decoder(dim=8, depth=1, heads=2, layers=layers, **flags)
        assert len(str(caught.value)) < 300


def test_a_stack_has_a_sane_number_of_layers():
    for flags in ({"depth": 10**7}, {"depth": 5001}, {"depth": 5, "layers": "attn*2001"}):
        with pytest.raises(ValueError, match=r"repeats the layout's \d+ layers; a stack has 10000 at most"):
            Decoder(dim=8, heads=2, **flags)


def test_letters_are_names():
    assert LETTERS.keys() == {"a", "f", "c"}
    assert [spec.name for spec in parse_layout("a c f")] == ["attn", "cross_attn", "ff"]
    assert parse_layout(("a", ("c", {"heads": 2})))[1].name == "cross_attn"


def test_overrides_reach_their_layer():
    stack = Decoder(
        dim=18,
        heads=3,
        depth=2,
        attn_dim_head=4,
        attn_window=7,
        layers="attn(window=5) ff(mult=1.5)*2 attn(window=None, heads=2)",
    )
    first, small, _, last, *_ = [block.config for block in stack.blocks()]
    assert (first.window, first.dim_head, first.heads) == (5, 4, None)
    assert (last.window, last.dim_head, last.heads) == (None, 4, 2)
    assert small.mult == 1.5
    assert len(stack.branches) == 8
    assert stack.layout == "(attn(window=5) ff(mult=1.5)*2 attn(window=None, heads=2)) x 2"
    again = from_config(json.loads(json.dumps(stack.to_config())))
    assert [b.config for b in again.blocks()] == [b.config for b in stack.blocks()]


@pytest.mark.parametrize(
    ("layers", "error", "match"),
    [
        (
            "attn(windw=4) ff",
            TypeError,
            r"unknown flag 'windw' in the layout entry 'attn\(windw=4\)'; did you mean 'window'",
        ),
        ("attn(window=0) ff", ValueError, r"window in the layout entry .attn\(window=0\). must be at least 1, not 0"),
        ("attn(window=2.5) ff", TypeError, r"window in the layout entry .* must be a whole number or None, not 2.5"),
        ("attn(kv_heads=3) ff", ValueError, "attn_kv_heads=3 does not divide the 4 heads"),
        ("attn ff(activation='swish')", ValueError, "unknown activation 'swish'"),
        (
            ("attn", ["ff", {"glue": True}]),
            TypeError,
            r"unknown flag 'glue' in the layout entry .*; did you mean 'glu'",
        ),
    ],
)
def test_wrong_overrides_name_the_flag(layers, error, match):
    with pytest.raises(error, match=match):
        Decoder(dim=16, depth=1, heads=4, layers=layers)
