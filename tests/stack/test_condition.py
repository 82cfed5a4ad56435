"""Adaptive norms and scales: what they compute, what a condition is to rows, pieces, states, memory and models."""

import laws
import pytest
import torch
import torch.nn.functional as F

from xflash import (
    AttentionLayers,
    AutoregressiveWrapper,
    Decoder,
    Encoder,
    SegmentWrapper,
    TransformerWrapper,
    XTransformer,
    norms,
)
from xflash.layers.scales.adaptive_layerscale import AdaptiveLayerScale
from xflash.layers.site import Site

DIM, WIDTH, B, N = 26, 7, 3, 11
SIZES = {"dim": DIM, "depth": 2, "heads": 2, "attn_dim_head": 6, "dim_condition": WIDTH}
STACKS = {
    "layernorm": {"norm": "adaptive_layernorm"},
    "rmsnorm after": {"norm": "adaptive_rmsnorm", "norm_place": "post", "shift_tokens": 1},
    "layerscale": {"scale": "adaptive_layerscale", "num_memory_tokens": 2},
    "adaLN-Zero in blocks": {
        "use_adaptive_layernorm": True,
        "use_adaptive_layerscale": True,
        "layers": "state_read recurrent(block_width=4,num_state_vectors=3,dim_head=6) attn",
        "depth": 1,
        "num_memory_tokens": 3,
    },
    "tied": {"norm": "adaptive_layernorm", "scale": "adaptive_layerscale", "weight_tie_layers": True, "pos": "rotary"},
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(name: str, cls=Decoder, **flags):
    torch.manual_seed(0)
    return laws.live(cls(**{**SIZES, **STACKS[name], **flags}))


X = draw(B, N, DIM)
CONDITIONS = {"rows": draw(B, WIDTH, seed=1), "tokens": draw(B, N, WIDTH, seed=2)}


class Ctx:
    def __init__(self, **beside):
        self.beside = beside


@pytest.mark.parametrize("kind", CONDITIONS)
def test_parts_are_their_definitions(kind):
    condition = CONDITIONS[kind]
    each = condition if kind == "tokens" else condition[:, None].expand(-1, N, -1)
    for name, plain in (
        ("adaptive_layernorm", lambda x: F.layer_norm(x, (DIM,))),
        ("adaptive_rmsnorm", lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()),
    ):
        norm = laws.live(norms[name](norms[name].Config(), Site(DIM, dim_condition=WIDTH)))
        by_hand = plain(X) * (1 + each @ norm.to_gain.weight.T)
        torch.testing.assert_close(norm(X, Ctx(condition=condition)), by_hand, rtol=0, atol=1e-12)
    scale = laws.live(AdaptiveLayerScale(AdaptiveLayerScale.Config(), Site(DIM, dim_condition=WIDTH)))
    by_hand = X * torch.sigmoid(each @ scale.to_gain.weight.T + scale.to_gain.bias)
    torch.testing.assert_close(scale(X, Ctx(condition=condition)), by_hand, rtol=0, atol=1e-12)
    there = torch.arange(N)[None] >= 2
    masked = scale(X, Ctx(condition=condition, condition_mask=there))
    torch.testing.assert_close(masked, torch.where(there[..., None], by_hand, X), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("kind", CONDITIONS)
def test_pieces_rows_and_resets(name, kind):
    """One token at a time equals all at once; a row alone, and one that is reset, is what it is among others."""
    stack, condition = build(name), CONDITIONS[kind]
    whole = stack(X, condition=condition)
    assert not torch.allclose(whole, stack(X, condition=condition + 1))

    def given(start, end):
        if kind == "tokens":
            return {"condition": condition[:, start:end]}
        return {"condition": condition} if start == 0 else {}

    for cuts in ((4, 9), tuple(range(1, N))):
        pieces, state = [], None
        for start, end in zip((0, *cuts), (*cuts, N), strict=True):
            y, state = stack.step(X[:, start:end], state, **given(start, end))
            pieces.append(y)
        laws.close(torch.cat(pieces, 1), whole, f"{name}: cut at {cuts}")
    laws.holds_its_own(stack, state)
    mask = torch.arange(N) < torch.tensor([[N], [4], [0]])
    poisoned = condition if kind == "rows" else condition.masked_fill(~mask[..., None], float("nan"))
    padded = stack(X, mask, condition=poisoned)
    laws.close(
        padded[1, :4], stack(X[1:2, :4], condition=condition[1:2, :4] if kind == "tokens" else condition[1:2])[0], ""
    )
    rows = torch.tensor([True, False, True])
    renewed, after = stack.step(X, state, reset=rows, **({} if kind == "rows" else {"condition": condition}))
    laws.close(renewed[rows], whole[rows], "a reset row keeps its condition")
    order = torch.tensor([2, 0, 1])
    if kind == "rows":
        laws.close(stack.step(X[order], after.reorder(order))[0], stack.step(X, after)[0][order], "reordered")
        other = stack.step(X, after, condition=condition + 1)[1]
        assert torch.equal(dict(other.carried)["condition"], condition + 1)


@pytest.mark.parametrize("name", ["layernorm", "layerscale"])
def test_what_stands_in_front_has_no_condition(name):
    stack = build(name, num_memory_tokens=2)
    plain = build(name, num_memory_tokens=0)
    plain.load_state_dict({k: v for k, v in stack.state_dict().items() if not k.startswith("memory")})
    front = stack.memory_tokens.tokens[None].expand(B, -1, -1)
    there = (torch.arange(N + 2) >= 2)[None].expand(B, -1)
    by_hand = plain(torch.cat((front, X), 1), condition=CONDITIONS["rows"], condition_mask=there)[:, 2:]
    laws.close(stack(X, condition=CONDITIONS["rows"]), by_hand, "memory tokens")
    torch.manual_seed(0)
    model = laws.live(TransformerWrapper(num_tokens=29, attn_layers=plain, use_abs_pos_emb=False))
    ids, ahead = torch.randint(29, (B, N)), draw(B, 2, DIM, seed=4)
    embedded = torch.cat((ahead, model.embedding(ids)[0]), 1)
    for condition in CONDITIONS.values():
        wide = condition if condition.dim() == 2 else F.pad(condition, (0, 0, 2, 0), value=9.0)
        expected = model.logits(plain(embedded, condition=wide, condition_mask=there))
        laws.close(model(ids, prepend_embeds=ahead, condition=condition), expected, "embeddings in front")
        laws.close(model.step(ids, prepend_embeds=ahead, condition=condition)[0], expected, "a step")


def test_models_take_a_condition(tmp_path):
    torch.manual_seed(0)
    model = TransformerWrapper(num_tokens=29, attn_layers=Decoder(**SIZES, norm="adaptive_rmsnorm"), max_seq_len=32)
    laws.live(model)
    ids, trainer = torch.randint(29, (B, N), generator=torch.Generator().manual_seed(3)), AutoregressiveWrapper(model)
    rows, tokens = CONDITIONS["rows"], CONDITIONS["tokens"]
    made = trainer.generate(ids, 3, temperature=0.0, condition=rows)
    assert torch.equal(made, trainer.generate(ids, 3, temperature=0.0, condition=rows, cache_kv=False))
    best = trainer.beam_search(ids[:, :4], 3, beams=2, condition=rows)
    assert torch.equal(best, trainer.beam_search(ids[:, :4], 3, beams=2, condition=rows, cache_kv=False))
    loss = F.cross_entropy(model(ids[:, :-1], condition=tokens[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    laws.close(trainer(ids, condition=tokens), loss, "a loss without the last token")
    segments = SegmentWrapper(model, 3)
    laws.close(segments(ids, condition=tokens), loss, "a loss in segments")
    for wrong in (tokens[:, :-1], torch.cat((tokens, tokens[:, :1]), 1), tokens[:, :3]):
        with pytest.raises(ValueError, match=f"condition is of {wrong.shape[1]} tokens, but the text has {N}"):
            segments(ids, condition=wrong)
    model.save(tmp_path)
    torch.manual_seed(0)
    both = XTransformer(
        dim=DIM, enc_num_tokens=29, enc_depth=1, enc_heads=2, enc_max_seq_len=32, enc_norm="adaptive_layernorm",
        enc_dim_condition=5, dec_num_tokens=29, dec_depth=1, dec_heads=2, dec_max_seq_len=32,
        dec_scale="adaptive_layerscale", dec_dim_condition=WIDTH,
    )  # fmt: skip
    laws.live(both)
    source = draw(B, 5, seed=5)
    context = both.encode(ids, src_condition=source).context
    expected = both.decoder(ids, context=context, condition=rows)
    laws.close(both(ids, ids, condition=rows, src_condition=source), expected, "two sides")
    both.generate(ids, ids[:, :2], 3, condition=rows, src_condition=source)


def test_gradients_and_dtypes():
    stack = build("tied").train()
    condition = CONDITIONS["rows"].clone().requires_grad_()
    stack(X, condition=condition).square().sum().backward()
    assert condition.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in stack.parameters())
    with pytest.raises(TypeError, match=r"the condition is torch\.float32, but the model is torch\.float64"):
        stack(X, condition=condition.float())


REFUSED = [
    ({}, {}, ValueError, r"need condition, and this call has none: give condition=, \(3, 7\) or \(3, 11, 7\)"),
    ({}, {"condition": draw(B, 5)}, ValueError, r"condition must be \(3, 7\) or \(3, 11, 7\), not \(3, 5\)"),
    ({}, {"condition": draw(B, 4, WIDTH)}, ValueError, r"\(3, 11, 7\), not \(3, 4, 7\); dim_condition sets"),
    ({}, {"condition": [1.0]}, TypeError, r"condition must be a floating-point tensor \(3, 7\) or"),
    ({"norm": "layernorm", "dim_condition": None}, {"condition": draw(B, 7)}, ValueError,
     "no part of the stack takes one .parts that do: adaptive_layernorm, adaptive_rmsnorm, adaptive_layerscale"),
    ({}, {"condition": draw(B, WIDTH), "condition_mask": draw(B, N)}, TypeError, "condition_mask must be"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "given", "error", "match"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused(flags, given, error, match):
    with pytest.raises(error, match=match):
        build("layernorm", cls=Encoder, **flags)(X, **given)


def test_what_is_refused_when_built_or_stepped():
    with pytest.raises(
        ValueError, match="dim_condition=7 is the width of the condition, but no part of the stack takes"
    ):
        AttentionLayers(**SIZES)
    with pytest.raises(ValueError, match="AdaptiveRMSNorm has no gain"):
        Encoder(**SIZES, norm="adaptive_rmsnorm", norm_place="sandwich")
    stack = build("layernorm")
    state = stack.step(X, condition=CONDITIONS["tokens"])[1]
    with pytest.raises(ValueError, match="one for each token is given with each call"):
        stack.step(X, state)
