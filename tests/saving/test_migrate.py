"""What 0.1.0 saved (tests/saved) still loads; configs say their format; a table says what has been renamed."""

import io
import json
import pickle
from pathlib import Path

import laws
import pytest
import torch
from safetensors.torch import load_file

import xflash
from xflash import Decoder, TransformerWrapper, migrate

OLD = Path(__file__).parents[1] / "saved" / "0.1.0"
EXPECTED = load_file(OLD / "expected.safetensors")
# The figures are 3.4e-6 away from float64's; another version of torch rounds otherwise by as much again.
ROUNDING = 1e-5


def logits(model):
    with torch.no_grad():
        return model.eval()(EXPECTED["ids"], context=EXPECTED["context"])


def test_a_model_saved_by_the_first_version():
    torch.testing.assert_close(logits(xflash.load(OLD)), EXPECTED["logits"], atol=ROUNDING, rtol=0)


def test_weights_of_the_first_version_load_wherever_they_come_from():
    """Through a file of torch's, with a prefix inside another module, and twice over."""
    weights = load_file(OLD / "model.safetensors")
    model = xflash.from_config(json.loads((OLD / "config.json").read_text()))
    buffer = io.BytesIO()
    torch.save({f"0.{name}": t for name, t in weights.items()}, buffer)
    buffer.seek(0)
    torch.nn.Sequential(model).load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(logits(model), logits(xflash.load(OLD)))
    again = xflash.from_config(model.to_config())
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again), logits(model))
    old_names = {moved.old for moved in migrate.WEIGHTS}
    assert any(old_names & set(name.split(".")) for name in weights)
    assert not any(old_names & set(name.split(".")) for name in model.state_dict())


def test_a_state_of_the_first_version_goes_on():
    state = torch.load(OLD / "state.pt", weights_only=True)
    with torch.no_grad():
        rest, _ = xflash.load(OLD).eval().step(EXPECTED["ids"][:, 7:], state)
    torch.testing.assert_close(rest, EXPECTED["logits"][:, 7:], atol=ROUNDING, rtol=0)


def test_configs_say_their_format_once():
    config = TransformerWrapper(num_tokens=11, max_seq_len=7, attn_layers=Decoder(dim=12, depth=1, heads=2)).to_config()
    assert config["format"] == migrate.FORMAT and "format" not in config["attn_layers"]
    assert xflash.from_config({k: v for k, v in config.items() if k != "format"}).to_config() == config


@pytest.mark.parametrize("given", [migrate.FORMAT + 1, 0, "2", True, None, 1.0])
def test_other_formats_are_refused(given):
    config = {**Decoder(dim=12, depth=1, heads=2).to_config(), "format": given}
    with pytest.raises(ValueError, match=f"is of format {given!r}, but this version of xflash reads 1 to"):
        xflash.from_config(config)


def test_a_renamed_argument(monkeypatch):
    """In a module inside a module too, and in configs older than the change only."""
    table = (migrate.Argument(migrate.FORMAT, "old_width", lambda value: {"ff_mult": value / 12}),)
    monkeypatch.setattr(migrate, "ARGUMENTS", table)
    config = TransformerWrapper(num_tokens=11, max_seq_len=7, attn_layers=Decoder(dim=12, depth=1, heads=2)).to_config()
    inner = {k: v for k, v in config["attn_layers"].items() if k != "ff_mult"} | {"old_width": 24}
    model = xflash.from_config({**config, "format": migrate.FORMAT - 1, "attn_layers": inner})
    assert model.attn_layers.to_config()["ff_mult"] == 2
    with pytest.raises(TypeError, match="unknown flag 'old_width'"):
        xflash.from_config({**config, "attn_layers": inner})


def test_modules_pickled_by_another_version_are_refused():
    stack = Decoder(dim=12, depth=1, heads=2)
    assert isinstance(pickle.loads(pickle.dumps(stack)), Decoder)
    state = {k: v for k, v in stack.__getstate__().items() if k != "format"}
    with pytest.raises(ValueError, match="a Decoder pickled by another version of xflash"):
        Decoder.__new__(Decoder).__setstate__(state)


def test_every_old_name_is_in_what_the_first_version_saved():
    """The table is tried by what was really saved: without an entry, loading it fails."""
    for moved in migrate.WEIGHTS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(migrate, "WEIGHTS", tuple(other for other in migrate.WEIGHTS if other is not moved))
            model = xflash.from_config(json.loads((OLD / "config.json").read_text()))
            with pytest.raises(RuntimeError, match=f"{moved.old}.weight"):
                model.load_state_dict(load_file(OLD / "model.safetensors"))


@pytest.mark.parametrize("factor", [float("inf"), 1e308, float("nan"), 0.01])
def test_factors_of_the_first_format_that_mean_nothing(factor):
    with pytest.raises(ValueError, match="ff_mult"):
        xflash.from_config({"class": "Encoder", "dim": 24, "heads": 2, "depth": 1, "ff_mult": factor})


def test_a_default_of_the_first_format_is_one_today():
    """States name what their stack has set: those of 0.1.0 go on."""
    old = {"class": "Decoder", "dim": 24, "heads": 2, "depth": 1, "ff_mult": 4.0}
    assert xflash.from_config(old).maker == Decoder(dim=24, heads=2, depth=1).maker


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("residual='scaled'", {"join": "scaled"}),
        ("residual='layerscale', residual_init=0.3", {"scale": "layerscale", "layerscale_init": 0.3}),
        ("layers='attn recurrent(qk_norm=False)'", {"layers": "attn recurrent(cosine=False)"}),
        ("layers='recurrent', recurrent_qk_norm_scale=3.0", {"layers": "recurrent", "recurrent_cosine_scale": 3.0}),
    ],
)
def test_states_of_renamed_flags_go_on(old, now):
    """A state that names its maker by what flags were called is that of the same stack, and of no other."""
    stack = laws.live(Decoder(dim=12, depth=1, heads=2, **now))
    x = laws.sample(stack, 5)
    _, state = stack.step(x[:, :3])
    then = state._replace(maker=f"Decoder(dim=12, depth=1, heads=2, causal=True, {old})")
    assert then.maker != stack.maker
    laws.close(stack.step(x[:, 3:], then)[0], stack(x)[:, 3:], "a state of 0.1.0")
    for other in (then.maker.replace("dim=12", "dim=13"), then.maker.replace("Decoder", "PrefixDecoder"), "Decoder("):
        with pytest.raises(ValueError, match="the state was made by another stack"):
            stack.step(x[:, 3:], then._replace(maker=other))


@pytest.mark.parametrize(
    ("residual", "name"), [("layerscale", "scale.layerscale"), ("rezero", "scale.rezero"), ("scaled", "join")]
)
def test_a_residual_of_the_second_format(residual, name):
    """One slot for what scales an update and what joins it to the stream, its flag and its weights named so."""
    old = {"class": "Decoder", "format": 2, "dim": 12, "heads": 2, "depth": 1, "residual": residual}
    old |= {"residual_init": 0.3} if residual == "layerscale" else {}
    stack = laws.live(xflash.from_config(old))
    weights = {key.replace(f"{name}.gain", "residual.gain"): t for key, t in stack.state_dict().items()}
    assert "branches.1.residual.gain" in weights
    again = xflash.from_config(stack.to_config()).double().eval()
    again.load_state_dict(weights)
    x = laws.sample(stack, 5)
    assert torch.equal(again(x), stack(x)) and "residual" not in stack.to_config()
    assert residual != "layerscale" or stack.to_config()["layerscale_init"] == 0.3


def test_before_format_3_attn_lent_cross_attn_nothing():
    sizes = {f"{side}_{name}": 7 for side in ("enc", "dec") for name in ("num_tokens", "max_seq_len")}
    sizes |= {"dim": 12, "enc_depth": 1, "dec_depth": 1, "dec_heads": 2, "enc_heads": 2}
    old = {"class": "XTransformer", **sizes, "dec_attn_dim_head": 5, "dec_attn_gate_values": True}
    for written, width in ((1, 64), (2, 64), (migrate.FORMAT, 5)):
        model = xflash.from_config({**old, "format": written} if written > 1 else old)
        cross = next(b for b in model.decoder.net.attn_layers.blocks() if b.takes_context)
        assert (cross.config.dim_head, cross.config.gate_values) == (width, width == 5)
        again = xflash.from_config(model.to_config())
        assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]
    own = xflash.from_config({**old, "dec_cross_attn_dim_head": 3})
    assert next(b for b in own.decoder.net.attn_layers.blocks() if b.takes_context).config.dim_head == 3
    shared = {**old, "dec_attn_one_kv_head": True}
    assert next(b for b in xflash.from_config(shared).decoder.net.attn_layers.blocks() if b.takes_context).kv_heads == 2
    alone = xflash.from_config({**old, "dec_layers": "attn cross_gau", "dec_cross_gau_query_key_dim": 8})
    assert "cross_attn_dim_head" not in alone.decoder.net.attn_layers.arguments


def test_a_name_of_the_first_version_is_an_alias():
    stack = Decoder(dim=12, depth=1, heads=2, layers="recurrent(qk_norm=False) block_attn", block_attn_qk_norm=True)
    assert [block.config.cosine for block in stack.blocks()] == [False, True]
    assert xflash.from_config(stack.to_config()).to_config() == stack.to_config()


@pytest.mark.parametrize("pool", ["cls", "attn"])
def test_a_vision_transformer_whose_parts_had_no_room_of_their_own(pool):
    stack = xflash.Encoder(dim=8, depth=1, heads=2)
    given = {"image_size": 6, "patch_size": 3, "num_register_tokens": 2, "post_emb_norm": True, "pool": pool}
    model = xflash.ViTransformerWrapper(attn_layers=stack, **given)
    then = {"pooled.cls_tokens.tokens": "cls_token", "pooled.attn_pool.query": "pool.query"}
    old = {then.get(name, name.removeprefix("embedding.")): w + 1 for name, w in model.state_dict().items()}
    names = {"patch_emb.project.weight", "pos_emb.weight", "register_tokens", "post_emb_norm.gain"}
    assert names < set(old) and {"cls_token", "pool.query"} & set(old)
    expected = {name: w + 1 for name, w in model.state_dict().items()}
    model.load_state_dict(old)
    assert all(torch.equal(w, expected[name]) for name, w in model.state_dict().items())
