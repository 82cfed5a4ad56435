"""Numbers against FLASH-pytorch itself, in float64."""

import copy
import itertools
import json
import os

import pytest
import torch
from torch import nn

import xflash
from xflash.convert import from_flash_pytorch
from xflash.wrappers.flash_transformer import FLASH, GAU, FLASHTransformer

try:
    import flash_pytorch
    from flash_pytorch.flash_pytorch import ScaleNorm
    from rotary_embedding_torch import RotaryEmbedding
except ImportError:
    if os.environ.get("XFLASH_REQUIRE_PEERS") == "1":
        raise
    pytest.skip("FLASH-pytorch is not installed", allow_module_level=True)

CLOSE = 1e-8
LENGTHS = (1, 7, 8, 19)
DIM, SIZES = 14, {"query_key_dim": 6, "expansion_factor": 1.5}


def live(peer, seed=0):
    """The peer in float64 with parameters of a size at which every part of it shows."""
    torch.manual_seed(seed)
    peer = peer.double().eval()
    with torch.no_grad():
        for name, p in peer.named_parameters():
            if "freqs" not in name:
                p.add_(0.3 * torch.randn_like(p))
            if name.endswith("gamma"):
                p.add_(1.0)
    return peer


def compare(peer, inputs, **kwargs):
    """Outputs of the converted module and of the peer, with and without padding behind; the converted module."""
    ours = from_flash_pytorch(peer)
    for n in LENGTHS:
        x = inputs(n)
        gap = (ours(x) - peer(x)).abs().max()
        assert gap < CLOSE, f"{n} tokens: {gap:.1e}"
        mask = torch.arange(n) < torch.tensor([n, n // 2, 1])[:, None]
        gap = (ours(x, mask=mask) - peer(x, mask=mask))[mask].abs().max()
        assert gap < CLOSE, f"{n} tokens, masked: {gap:.1e}"
    return ours


def tokens(n):
    return torch.randn(3, n, DIM, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def ids(n):
    return torch.randint(0, 23, (3, n), generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("norm_klass", [nn.LayerNorm, ScaleNorm, nn.RMSNorm])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_gau(causal, norm_klass):
    for add_residual, laplace, bias in itertools.product((True, False), (True, False), (True, False)):
        flags = {"add_residual": add_residual, "laplace_attn_fn": laplace, "rel_pos_bias": bias, "dropout": 0.1}
        peer = live(flash_pytorch.GAU(dim=DIM, causal=causal, norm_klass=norm_klass, **flags, **SIZES))
        ours = compare(peer, tokens)
        assert isinstance(ours, GAU)


@pytest.mark.parametrize("norm_klass", [nn.LayerNorm, ScaleNorm, nn.RMSNorm])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_flash(causal, norm_klass):
    for shift, laplace, reduced, rotary in itertools.product((True, False), repeat=4):
        flags = {"shift_tokens": shift, "laplace_attn_fn": laplace, "reduce_group_non_causal_attn": reduced}
        flags |= {"rotary_pos_emb": RotaryEmbedding(4) if rotary else None, "group_size": 8, "dropout": 0.1}
        peer = live(flash_pytorch.FLASH(dim=DIM, causal=causal, norm_klass=norm_klass, **flags, **SIZES))
        ours = compare(peer, tokens)
        assert isinstance(ours, FLASH)


@pytest.mark.parametrize("norm_type", ["scalenorm", "layernorm"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_flash_transformer(causal, norm_type):
    for shift, laplace, reduced in itertools.product((True, False), repeat=3):
        flags = {"shift_tokens": shift, "laplace_attn_fn": laplace, "reduce_group_non_causal_attn": reduced}
        flags |= {"norm_type": norm_type, "group_size": 8, "attn_dropout": 0.1, "causal": causal}
        peer = live(flash_pytorch.FLASHTransformer(num_tokens=23, dim=DIM, depth=2, **flags, **SIZES))
        ours = compare(peer, ids)
        assert isinstance(ours, FLASHTransformer) and ours.to_config()["depth"] == 2


def test_sizes_as_they_are_used():
    """The defaults: groups of 256, keys of 128 of which 32 channels turn; a length that is no multiple of a group."""
    peer = live(flash_pytorch.FLASHTransformer(num_tokens=23, dim=64, depth=1, causal=True))
    x = ids(600)
    assert (from_flash_pytorch(peer)(x) - peer(x)).abs().max() < CLOSE


@pytest.mark.parametrize("flags", [{"theta": 500}, {"theta": 10000.5}, {"interpolate_factor": 2.5}])
def test_rotary_details(flags):
    peer = flash_pytorch.FLASH(dim=DIM, group_size=8, rotary_pos_emb=RotaryEmbedding(6, **flags), **SIZES)
    compare(live(peer), tokens)


def test_a_causal_model_steps_as_the_peer_would_see_the_whole():
    peer = live(flash_pytorch.FLASHTransformer(num_tokens=23, dim=DIM, depth=2, causal=True, group_size=8, **SIZES))
    ours, x, state, outputs = from_flash_pytorch(peer), ids(29), None, []
    with torch.no_grad():
        for size in (11, *(1,) * 12, 6):
            y, state = ours.step(x[:, :size], state)
            outputs.append(y)
            x = x[:, size:]
        assert (torch.cat(outputs, 1) - peer(ids(29))).abs().max() < CLOSE


def test_gradients_agree():
    peer = live(flash_pytorch.FLASH(dim=DIM, group_size=8, causal=True, shift_tokens=True, **SIZES))
    ours = from_flash_pytorch(peer)
    grads = []
    for module in (peer, ours):
        x = tokens(19).requires_grad_()
        module(x).sin().sum().backward()
        grads.append(x.grad)
    assert (grads[0] - grads[1]).abs().max() < CLOSE
    block = ours.stack.branches[0].block
    torch.testing.assert_close(block.gamma.grad, peer.qk_offset_scale.gamma.grad)
    folded = peer.rel_pos_bias.relative_attention_bias.weight.grad.mT / peer.rel_pos_bias.scale
    torch.testing.assert_close(block.rel_pos_bias.weight.grad, folded)


def test_dropout_stands_in_the_same_places():
    """A GAU drops weights and outputs, FLASH weights only: with nearly everything dropped the rest is the same."""
    p = 1 - 1e-9
    gau = live(flash_pytorch.GAU(dim=DIM, dropout=p, **SIZES)).train()
    flash = live(flash_pytorch.FLASH(dim=DIM, group_size=8, dropout=p, causal=True, **SIZES)).train()
    for peer in (gau, flash):
        ours = from_flash_pytorch(peer)
        assert ours.training
        assert (ours(tokens(19)) - peer(tokens(19))).abs().max() < CLOSE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_is_a_module_of_its_own(dtype, tmp_path):
    peer = live(flash_pytorch.FLASHTransformer(num_tokens=23, dim=DIM, depth=2, causal=True, **SIZES)).to(dtype)
    before = copy.deepcopy(peer.state_dict())
    ours = from_flash_pytorch(peer)
    assert not ours.training and all(p.dtype == dtype and p.requires_grad for p in ours.parameters())
    y = ours(ids(7))
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(1.0)
    assert all(torch.equal(t, before[name]) for name, t in peer.state_dict().items())
    ours = from_flash_pytorch(peer)
    ours.save(tmp_path)
    assert torch.equal(xflash.load(tmp_path).eval()(ids(7)), y)
    json.dumps(ours.to_config())


def test_peer_only_settings_are_named_and_refuse_to_step():
    gau = from_flash_pytorch(flash_pytorch.GAU(dim=DIM, causal=True, **SIZES))
    with pytest.raises(ValueError, match="gau_normaliser='padded_length'"):
        gau.step(tokens(3).float())
    flash = from_flash_pytorch(flash_pytorch.FLASH(dim=DIM, **SIZES))
    assert flash.to_config()["flash_global_normaliser"] == "padded_length"
    with pytest.raises(ValueError, match="bidirectional"):
        flash.step(tokens(3).float())


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"takes a GAU, a FLASH or a FLASHTransformer of flash_pytorch, not torch\.nn"):
        from_flash_pytorch(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"not builtins\.dict"):
        from_flash_pytorch({})
    with pytest.raises(TypeError, match="not xflash"):
        from_flash_pytorch(GAU(dim=DIM))
    with pytest.raises(TypeError, match=r"norm_klass ScaleNorm .* not of torch\.nn\.modules\.linear\.Identity"):
        from_flash_pytorch(flash_pytorch.GAU(dim=DIM, norm_klass=lambda dim: nn.Identity()))
    with pytest.raises(TypeError, match="must be a RotaryEmbedding of rotary_embedding_torch, not Identity"):
        from_flash_pytorch(flash_pytorch.FLASH(dim=DIM, rotary_pos_emb=nn.Identity()))
    for flags in ({"learned_freq": True}, {"use_xpos": True}):
        with pytest.raises(ValueError, match="learned_freq, use_xpos"):
            from_flash_pytorch(flash_pytorch.FLASH(dim=DIM, rotary_pos_emb=RotaryEmbedding(6, **flags)))
    pixels = RotaryEmbedding(6, freqs_for="pixel")
    with pytest.raises(ValueError, match="not powers of a round base"):
        from_flash_pytorch(flash_pytorch.FLASH(dim=DIM, rotary_pos_emb=pixels))
    model = flash_pytorch.FLASHTransformer(num_tokens=23, dim=DIM, depth=2)
    model.layers[1].shift_tokens = False
    with pytest.raises(ValueError, match="layer 1 has other settings than the layers before it"):
        from_flash_pytorch(model)
