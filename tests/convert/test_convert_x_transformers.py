"""`from_x_transformers` against x-transformers itself: the same weights, the same outputs, in float64."""

import laws
import pytest
import torch
from quick import quick
from x_transformers_cases import (
    BIDIRECTIONAL_WRAPPERS,
    CAUSAL_STACKS,
    CAUSAL_WRAPPERS,
    SMALL,
    STACKS,
    VITS,
    VOCABULARY,
    WRAPPERS,
    exact,
    make_stack,
    make_vit,
    make_wrapper,
    peers,
)

from xflash import AttentionLayers, Decoder, Encoder, TransformerWrapper, ViTransformerWrapper, from_config, load
from xflash.base.state import tensors
from xflash.convert.x_transformers import from_x_transformers
from xflash.layers.positions.alibi import Alibi

CLOSE = 1e-8
LENGTH = 23
LENGTHS = torch.tensor([LENGTH, 14, 1])


def directions(both, causal, bidirectional=()):
    cases = [(name, direction) for name in both for direction in (True, False)]
    cases += [(name, True) for name in causal] + [(name, False) for name in bidirectional]
    named = [pytest.param(n, c, id=f"{n}-{'causal' if c else 'bidirectional'}") for n, c in cases]
    return pytest.mark.parametrize(("name", "causal"), quick(named, lambda _, number: number % 4 == 0))


def close(ours, theirs, what):
    gap = (ours - theirs).abs().max().item()
    assert gap < CLOSE, f"{what}: off by {gap:.2e}"


def padding(causal, flags):
    """Right padding, but none where x-transformers lets a padding token shift into the last real one."""
    if flags.get("shift_tokens") and not causal:
        return None
    return torch.arange(LENGTH) < LENGTHS[:, None]


def compare(ours, peer, x, mask):
    """Whole sequences, padded ones, and (causal) pieces with a state."""
    beside = {**laws.embed_ids_for(ours, x), **laws.condition_for(ours, x)}
    with torch.no_grad():
        theirs = laws.joined(peer(x, **beside))
        close(laws.joined(ours(x, **beside)), theirs, "whole")
        if mask is not None:
            # What a pooled model gives is of the whole row.
            real = ... if getattr(ours, "pooled", None) is not None else mask
            padded, right = (laws.joined(model(x, mask=mask, **beside)) for model in (ours, peer))
            close(padded[real], right[real], "padded")
        if ours.causal:
            close(laws.steps(ours, x, [1] * LENGTH)[0], theirs, "token by token")
            pieces, state = laws.steps(ours, x, [5, 1, 1, LENGTH - 7])
            close(pieces, theirs, "in pieces")
            assert all(t.dtype != torch.float32 for t in tensors(state))


@directions(STACKS, CAUSAL_STACKS)
def test_stacks_give_the_same(name, causal):
    flags = {**STACKS, **CAUSAL_STACKS}[name]
    peer = exact(make_stack(flags, causal))
    ours = from_x_transformers(peer)
    assert type(ours) is (Decoder if causal else Encoder)
    x = torch.randn(3, LENGTH, SMALL["dim"], dtype=torch.float64)
    compare(ours, peer, x, padding(causal, flags))


@pytest.mark.parametrize("place", ["pre", "sandwich"])
def test_hiddens_are_what_theirs_has_of_each_layer(place):
    """Their `layer_hiddens` are what layers read and what the last one leaves; ours end in what the stack gives too."""
    flags = {"depth": 2, "heads": 2, "attn_dim_head": 6, "rotary_pos_emb": True, "sandwich_norm": place == "sandwich"}
    peer = exact(make_stack(flags, True))
    x = torch.randn(3, LENGTH, SMALL["dim"], dtype=torch.float64)
    with torch.no_grad():
        last, theirs = peer(x, return_hiddens=True)
        y, hiddens = from_x_transformers(peer)(x, return_hiddens=True)
    close(y, last, "what the stack gives")
    for ours, other in zip(hiddens, [*theirs.layer_hiddens, last], strict=True):
        close(ours, other, "a layer")


@directions(WRAPPERS, CAUSAL_WRAPPERS, BIDIRECTIONAL_WRAPPERS)
def test_wrappers_give_the_same(name, causal):
    flags, arguments = {**WRAPPERS, **CAUSAL_WRAPPERS, **BIDIRECTIONAL_WRAPPERS}[name]
    peer = exact(make_wrapper(flags, arguments, causal))
    ours = from_x_transformers(peer)
    assert type(ours) is TransformerWrapper
    x = torch.randint(0, VOCABULARY, (3, LENGTH))
    compare(ours, peer, x, padding(causal, flags))
    beside = {**laws.embed_ids_for(ours, x), **laws.condition_for(ours, x)}
    with torch.no_grad():
        if not arguments.get("mixture_of_softmax"):  # Theirs then has no call for them.
            close(ours(x, return_embeddings=True, **beside), peer(x, return_embeddings=True, **beside), "embeddings")


@pytest.mark.parametrize("name", VITS)
def test_vision_transformers_give_the_same(name):
    flags, arguments = VITS[name]
    peer = exact(make_vit(flags, arguments))
    ours = from_x_transformers(peer)
    assert type(ours) is ViTransformerWrapper
    img = torch.randn(3, arguments.get("channels", 3), 35, 35, dtype=torch.float64)
    with torch.no_grad():
        close(ours(img), peer(img), "pooled")
        close(ours(img, return_embeddings=True), peer(img, return_embeddings=True), "embeddings")
        both, theirs = (f(img, return_logits_and_embeddings=True) for f in (ours, peer))
        close(both[0], theirs[0], "logits beside embeddings")
        close(both[1], theirs[1], "embeddings beside logits")
    assert ours.embedding.emb_dropout == arguments.get("emb_dropout", 0)


@pytest.mark.parametrize("heads", [4, 7, 12, 16])
def test_alibi_is_exact_in_float64(heads):
    """A bias rounded to float32 on the way would hide behind the softmax, which forgets far keys."""
    peer = make_stack({"alibi_pos_bias": True, "heads": heads}, causal=False).double().rel_pos
    distance = torch.arange(LENGTH)
    ours = Alibi(Alibi.Config(), causal=False, heads=(heads,)).by_distance(distance, heads, torch.float64)
    assert torch.equal(ours, peer(LENGTH, LENGTH)[:, 0])


def test_the_new_module_is_one_of_its_own(tmp_path):
    """Nothing shared, nothing drawn from the generator; dtype and mode kept; saved and trained like any other."""
    peer = make_wrapper(
        {"rotary_pos_emb": True, "attn_kv_heads": 2}, {"tie_embedding": True, "emb_dropout": 0.1}, causal=True
    )
    before = torch.get_rng_state()
    ours = from_x_transformers(peer)
    assert torch.equal(torch.get_rng_state(), before)
    assert ours.training
    assert not from_x_transformers(peer.eval()).training
    assert {p.dtype for p in from_x_transformers(make_stack({}, causal=True).half()).parameters()} == {torch.half}
    base = peers.x_transformers.AttentionLayers(**SMALL, causal=True)
    assert type(from_x_transformers(base)) is AttentionLayers
    held = {p.data_ptr() for p in ours.parameters()}
    assert not held & {p.data_ptr() for p in peer.parameters()}
    assert all(p.requires_grad and p.is_contiguous() for p in ours.parameters())
    ours = ours.eval()
    x = torch.randint(0, VOCABULARY, (2, LENGTH))
    ours.save(tmp_path)
    assert torch.equal(load(tmp_path).eval()(x), ours(x))
    assert from_config(ours.to_config()).to_config() == ours.to_config()
    assert "tie_embedding_scale" in ours.to_config()
    ours(x).logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


def test_flags_are_those_a_person_would_write():
    peer = make_stack(
        {"rotary_pos_emb": True, "attn_kv_heads": (2, None), "ff_glu": True, "use_rmsnorm": True}, causal=True
    )
    given = {k: v for k, v, spec in from_x_transformers(peer).rows if v != spec.default}
    assert given == {
        "dim": 34, "heads": 4, "causal": True, "layers": "attn(kv_heads=2) ff attn ff", "depth": 1, "norm": "rmsnorm",
        "norm_eps": 1e-24, "final_norm": True, "pos": ("rotary",), "rotary_emb_dim": 6, "rotary_interleaved": True,
        "attn_dim_head": 12, "ff_glu": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    "flags", [{"use_scalenorm": True}, {"use_rmsnorm": True}, {"use_simple_rmsnorm": True}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_norms_without_an_eps_stay_finite(flags, dtype):
    """At a stream of zeros, where all that keeps a norm finite is its eps."""
    ours = from_x_transformers(make_stack(flags, causal=True)).to(dtype)
    x = torch.zeros(2, 5, 34, dtype=dtype, requires_grad=True)
    y = ours(x)
    assert y.isfinite().all()
    if dtype is torch.float16:
        # A gradient of 1e12 has no place there (and x-transformers' own output is NaN).
        return
    y.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in ours.parameters())


@pytest.mark.parametrize(
    ("pos", "down"), [("rotary_pos_emb", 0), ("rel_pos_bias", 0), ("alibi_pos_bias", 1), ("rotary_pos_emb", 2)]
)
def test_segments_with_memory_are_the_same(pos, down):
    memory = {"use_abs_pos_emb": False, "max_mem_len": 7, "shift_mem_down": down}
    theirs = make_wrapper({pos: True, "depth": 3, "attn_kv_heads": 2 if down == 2 else None}, memory, causal=True)
    theirs = exact(theirs)
    ours = from_x_transformers(theirs)
    assert ours.max_mem_len == 7
    ids = torch.randint(1, VOCABULARY, (3, 23), generator=torch.Generator().manual_seed(4))
    mems, remembered = None, None
    for piece in ids.split(5, 1):
        logits, mems = theirs(piece, mems=mems, return_mems=True)
        found, remembered = ours(piece, mems=remembered, return_mems=True)
        assert (found - logits).abs().max() < CLOSE
