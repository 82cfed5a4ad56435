"""What blocks that attend to a context refuse, each in a sentence."""

import pytest
import torch
from cross_stacks import BATCH, CTX, DIM, HEADS, OUTSIDE, C, N, context_masks, every_block, source, stack, tokens

from xflash import AttentionLayers, CrossAttender, Decoder
from xflash.layers.blocks.cross_attention import CrossAttention
from xflash.layers.blocks.cross_gau import CrossGatedAttention
from xflash.layers.site import Site

X, CONTEXT = tokens(), source()
REFUSED = [
    ({}, {}, ValueError, r"the layout '\(cross_attn ff\) x 2' attends to a context: give context=, of width 26"),
    ({}, {"context_mask": torch.ones(BATCH, C).bool()}, ValueError, "context_mask is given without context"),
    ({}, {"context_pos": torch.arange(C)}, ValueError, "context_pos is given without context"),
    (
        {"layers": "ff"}, {"context": CONTEXT}, ValueError,
        r"no block of the layout '\(ff\) x 2' attends to one \(blocks that do: cross_attn, cross_gau; cross_att",
    ),
    ({}, {"context": CONTEXT.long()}, TypeError, "context must be a floating-point tensor .* not torch.int64"),
    ({}, {"context": [1.0]}, TypeError, r"context must be a floating-point tensor \(batch, tokens, width\), not list"),
    ({}, {"context": CONTEXT[0]}, ValueError, r"context must be \(3, at least one token, 26\), not \(7, 26\)"),
    ({}, {"context": CONTEXT[:1]}, ValueError, r"context must be \(3, .* not \(1, 7, 26\)"),
    ({}, {"context": CONTEXT[:, :0]}, ValueError, r"at least one token, 26\), not \(3, 0, 26\)"),
    ({}, {"context": source(OUTSIDE)}, ValueError, r"not \(3, 7, 22\); cross_attn_dim_context sets"),
    (
        {}, {"context": CONTEXT, "context_mask": torch.ones(BATCH, C + 1).bool()}, ValueError,
        r"context_mask has shape \(3, 8\), but the tokens it stands for have \(3, 7\)",
    ),
    ({}, {"context": CONTEXT, "context_mask": torch.ones(BATCH, C)}, TypeError, "context_mask must be boolean"),
    (
        {}, {"context": CONTEXT, "context_pos": torch.arange(C)}, ValueError,
        "context_pos is for rotary positions, and this stack has none",
    ),
    (
        {"pos": "rotary"}, {"context": CONTEXT}, ValueError,
        "pos='rotary' has nothing to turn in the layout .* unless the context's tokens have positions: give context",
    ),
    (
        {"pos": "rotary"}, {"context": CONTEXT, "context_pos": torch.arange(C).double()}, TypeError,
        r"context_pos must be an integer tensor \(7,\) or \(3, 7\), not torch.float64",
    ),
    ({"pos": "rotary"}, {"context": CONTEXT, "context_pos": 3}, TypeError, "context_pos must be .* not int"),
    (
        {"pos": "rotary"}, {"context": CONTEXT, "context_pos": torch.arange(C + 1)}, ValueError,
        r"context_pos must be \(7,\) or \(3, 7\), not \(8,\)",
    ),
    (
        {"pos": "rotary", "rotary_xpos": True, "layers": "attn cross_attn"},
        {"context": CONTEXT, "context_pos": torch.arange(C)}, ValueError,
        "context_pos and rotary_xpos=True exclude each other",
    ),
    (
        {}, {"context": CONTEXT, "attn_mask": torch.ones(N, N).bool()}, ValueError,
        r"attn_mask is given, but in the layout '\(cross_attn ff\) x 2' tokens never attend to each other",
    ),
    (
        {}, {"context": CONTEXT, "doc_ids": torch.zeros(BATCH, N).long()}, ValueError,
        "CrossAttention cannot honour doc_ids; blocks that can: attn, ff, flash, gau",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "given", "error", "match"), REFUSED, ids=[f"{i} {row[3][:30]}" for i, row in enumerate(REFUSED)]
)
def test_what_a_call_is_refused_for(flags, given, error, match):
    flags = {"layers": "cross_attn ff", **flags}
    small = {f"{name}_dim_head": 6 for name in ("attn", "cross_attn") if name in flags["layers"].split()}
    net = Decoder(dim=DIM, depth=2, heads=HEADS, **small, **flags).double()
    with pytest.raises(error, match=match) as caught:
        net(X, **given)
    assert type(caught.value) is error
    if not {"attn_mask", "doc_ids"} & set(given):
        with pytest.raises(error, match=match):
            net.step(X, **given)


@every_block
def test_the_context_is_not_given_twice(block):
    net = stack(block)
    _, state = net.step(X, context=CONTEXT)
    with pytest.raises(ValueError, match="the state holds the context already: give context in the first call only"):
        net.step(X, state, context=CONTEXT)
    with pytest.raises(ValueError, match="context_mask is given without context"):
        net.step(X, state, context_mask=context_masks()["right"])


def test_one_context_has_one_width():
    with pytest.raises(
        ValueError,
        match=r"one context for all layers, but cross_attn one of width 22, cross_gau one of width 26; give them the",
    ):
        Decoder(dim=DIM, depth=1, layers="cross_attn cross_gau", cross_attn_dim_context=OUTSIDE)
    with pytest.raises(ValueError, match="cross_attn one of width 26, cross_attn one of width 22"):
        AttentionLayers(dim=DIM, custom_layers="c cross_attn(dim_context=22)")


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"layers": "attn ff"}, "only_cross=True contradicts the layout 'attn ff'; leave out one of them"),
        ({"layers": "ff"}, "only_cross=True contradicts the layout 'ff'"),
        (
            {"only_cross": False},
            r"only_cross=False contradicts CrossAttender; use AttentionLayers\(only_cross",
        ),
        ({"causal": True}, "causal=True contradicts CrossAttender"),
        ({"cross_attend": False}, "only_cross=True contradicts cross_attend=False"),
    ],
)
def test_a_cross_attender_only_crosses(flags, match):
    with pytest.raises(ValueError, match=match):
        CrossAttender(dim=DIM, depth=1, **flags)


def test_a_block_by_itself_says_that_it_has_no_context():
    for cls in (CrossAttention, CrossGatedAttention):
        block = cls(cls.Config(), Site(DIM, HEADS, True)).double()
        with pytest.raises(ValueError, match="this block attends to a context, but the call has none"):
            block(X, CTX)
