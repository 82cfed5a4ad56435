import itertools
import json

import laws
import model_laws
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import xflash
from xflash.layers.positions.rotary import Rotary
from xflash.wrappers.flash_transformer import FLASH, GAU, FLASHTransformer

DIM = 14
SMALL = {"group_size": 5, "query_key_dim": 6}


def model(**kwargs):
    torch.manual_seed(0)
    return FLASHTransformer(**{"num_tokens": 23, "dim": DIM, "depth": 2, **SMALL, **kwargs})


def tokens(n, dim=DIM):
    return torch.randn(3, n, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_calls_of_flash_pytorchs_readme():
    gau = GAU(dim=512, query_key_dim=128, causal=True, expansion_factor=2)
    assert gau(torch.randn(1, 1024, 512)).shape == (1, 1024, 512)
    flash = FLASH(dim=512, group_size=256, causal=True, query_key_dim=128, expansion_factor=2.0)
    assert flash(torch.randn(1, 1111, 512)).shape == (1, 1111, 512)
    whole = FLASHTransformer(
        num_tokens=20000,
        dim=512,
        depth=12,
        causal=True,
        group_size=256,
        query_key_dim=128,
        expansion_factor=2.0,
        norm_type="scalenorm",
        shift_tokens=True,
    )
    assert whole(torch.randint(0, 20000, (1, 300))).shape == (1, 300, 20000)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("flags", [{}, {"norm_type": "layernorm", "shift_tokens": False, "laplace_attn_fn": True}])
def test_laws_of_a_model(flags, causal, tmp_path):
    model_laws.model_laws(model(causal=causal, **flags), tmp_path)


@pytest.mark.parametrize(
    "layer",
    [
        lambda causal: GAU(DIM, 6, causal=causal),
        lambda causal: GAU(DIM, 6, 1.5, add_residual=False, causal=causal, rel_pos_bias=True, norm_klass="scalenorm"),
        lambda causal: FLASH(DIM, 5, 6, causal=causal),
        lambda causal: FLASH(DIM, 5, 6, causal=causal, rotary_pos_emb=True, shift_tokens=True, laplace_attn_fn=True),
    ],
    ids=["GAU", "GAU without residual", "FLASH", "FLASH with everything"],
)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_whole_layers(layer, causal, tmp_path):
    built = laws.live(layer(causal))
    x = tokens(13)
    y = built(x)
    for row, n in enumerate((13, 6, 2)):
        mask = torch.arange(13) < torch.tensor([[13], [6], [2]])
        torch.testing.assert_close(built(x, mask)[row, :n], built(x[row : row + 1, :n])[0], rtol=0, atol=1e-12)
    if causal:
        outputs, state = [], None
        for part in x.split([4, 1, 1, 7], 1):
            out, state = built.step(part, state)
            outputs.append(out)
        torch.testing.assert_close(torch.cat(outputs, 1), y, rtol=0, atol=1e-12)
    else:
        with pytest.raises(ValueError, match="bidirectional"):
            built.step(x)
    again = xflash.from_config(json.loads(json.dumps(built.to_config())))
    assert again.to_config() == built.to_config() and (again.dim, again.causal) == (DIM, causal)
    built.save(tmp_path)
    assert torch.equal(xflash.load(tmp_path).eval()(x), y)


def test_a_layer_is_norm_block_and_residual():
    torch.manual_seed(0)
    with_residual = laws.live(GAU(DIM, 6))
    torch.manual_seed(0)
    without = laws.live(GAU(DIM, 6, add_residual=False))
    x = tokens(9)
    torch.testing.assert_close(with_residual(x) - x, without(x), rtol=0, atol=1e-12)
    (branch,) = without.stack.branches
    gate, v, z = F.silu(branch.before(x) @ branch.block.to_hidden.weight.mT).split((2 * DIM, 2 * DIM, 6), -1)
    q, k = (z * gamma + beta for gamma, beta in zip(branch.block.gamma, branch.block.beta, strict=True))
    weights = (q @ k.mT / 6**0.5).relu() ** 2 / 9
    torch.testing.assert_close(without(x), (gate * (weights @ v)) @ branch.block.to_out.weight.mT, rtol=0, atol=1e-12)


def test_the_three_positions_of_a_flash_transformer():
    built = model(query_key_dim=48)
    rotary = built.attn_layers.positions["rotary"]
    assert isinstance(rotary, Rotary) and rotary.config.emb_dim is None and rotary.config.interleaved
    biases = {b.block.rel_pos_bias for b in built.attn_layers.branches}
    assert len(biases) == 2 and all(b.weight.shape[0] == 1 for b in biases)
    assert built.embedding.pos_emb.scale.item() == pytest.approx(DIM**-0.5 / 8)
    assert built.length_limit is None


def test_arguments_reach_the_stack():
    built = model(causal=True, attn_dropout=0.25, laplace_attn_fn=True, expansion_factor=3, flash_gamma_init="normal")
    config = built.attn_layers.branches[0].block.config
    assert (config.dropout, config.attn_fn, config.expansion_factor) == (0.25, "laplace", 3.0)
    assert (config.gamma_init, config.global_normaliser, config.global_scope) == ("normal", "mean", "sequence")
    assert built.attn_layers.branches[0].shift.style == "first_half"
    assert model(shift_tokens=False).attn_layers.branches[0].shift is None
    assert model(reduce_group_non_causal_attn=False).attn_layers.branches[0].block.config.global_scope == "group"
    assert type(model(norm_type="layernorm").attn_layers.branches[0].before).__name__ == "LayerNorm"
    assert GAU(DIM, rel_pos_bias="toeplitz").stack.branches[0].block.config.rel_pos_bias == "toeplitz"
    assert GAU(DIM, rel_pos_bias=False).stack.branches[0].block.rel_pos_bias is None
    assert GAU(DIM, norm_klass=nn.LayerNorm).to_config()["norm_klass"] == "layernorm"


def test_it_generates():
    built = xflash.AutoregressiveWrapper(model(causal=True))
    out = built.generate(torch.zeros(1, 3, dtype=torch.long), 9)
    assert out.shape == (1, 9)


def test_starts_sane_with_twelve_layers():
    for causal, shift in itertools.product((True, False), repeat=2):
        built = model(causal=causal, shift_tokens=shift, depth=12, dim=32)
        laws.sane_start(built.attn_layers, n=37)
        logits = built.float()(torch.randint(0, 23, (2, 37)))
        loss = F.cross_entropy(logits.mT, torch.randint(0, 23, (2, 37)))
        assert loss.item() == pytest.approx(torch.tensor(23.0).log().item(), abs=0.2)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: model(causal=1), TypeError, "causal must be True or False, not 1"),
        (lambda: model(laplace_attn_fn="yes"), TypeError, "laplace_attn_fn must be True or False, not 'yes'"),
        (lambda: model(reduce_group_non_causal_attn=None), TypeError, "reduce_group_non_causal_attn must be True or"),
        (lambda: model(causal=True, reduce_group_non_causal_attn=False), ValueError, "no meaning with causal=True"),
        (lambda: model(norm_type="scalnorm"), ValueError, "unknown norm 'scalnorm'; did you mean 'scalenorm'"),
        (lambda: model(group_sise=3), TypeError, "unknown flag 'group_sise'; did you mean 'group_size'"),
        (lambda: model(group_size=0), ValueError, "group_size must be at least 1, not 0"),
        (lambda: model(depth=0), ValueError, "depth must be at least 1, not 0"),
        (lambda: model(num_tokens=0), ValueError, "num_tokens must be at least 1, not 0"),
        (lambda: model(attn_dropout=1.5), ValueError, "attn_dropout must be below 1, not 1.5"),
        (
            lambda: model(norm="rmsnorm"),
            ValueError,
            "norm='rmsnorm' is set, but FLASHTransformer has it as 'norm_type'",
        ),
        (lambda: GAU(DIM, norm="rmsnorm"), ValueError, "norm='rmsnorm' is set, but GAU has it as 'norm_klass'"),
        (lambda: FLASH(DIM, layers="gau"), ValueError, "layers='gau' is set, but FLASH decides that itself"),
        (lambda: FLASH(DIM, norm_klass="adaptive_rmsnorm"), ValueError, "need condition, but a FLASH is given x alone"),
        (lambda: GAU(), TypeError, "GAU: missing a required argument: 'dim'"),
        (lambda: GAU(4.5), TypeError, "dim must be a whole number, not 4.5"),
        (lambda: GAU(DIM, add_residual=2), TypeError, "add_residual must be True or False, not 2"),
        (lambda: GAU(DIM, norm_klass=nn.Dropout), TypeError, "norm_klass must be the name of a norm, or one of"),
        (
            lambda: FLASH(DIM, rotary_pos_emb=nn.Identity()),
            TypeError,
            "rotary_pos_emb must be True or False or None, not Identity",
        ),
    ],
)
def test_bad_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()
