"""Wrappers are built from Configs: each argument has a meaning, is checked, shown and written, defaults too."""

import inspect
import json
from dataclasses import dataclass

import pytest
import torch
from argument_calls import CONSTRUCTORS, model, stack
from torch import nn

import xflash
from xflash import __main__ as command
from xflash.flags.flag import flag, flag_table, flags_of
from xflash.saving.classes import CLASSES, is_ours
from xflash.wrappers.model import Model

WRAPPERS = {name: cls for name, cls in command.public().items() if not issubclass(cls, xflash.AttentionLayers)}
EXAMPLES = dict(reversed(CONSTRUCTORS))


@pytest.mark.parametrize("name", [name for name, cls in CLASSES.items() if is_ours(cls.__module__)])
def test_every_argument_has_a_meaning(name):
    """Those of the stacks too, and of whatever is registered as a class of ours."""
    cls = CLASSES[name]
    specs = flags_of(cls.Config)
    taken = [p for p in inspect.signature(cls.__init__).parameters.values() if p.kind is not p.VAR_KEYWORD][1:]
    assert {p.name for p in taken if p.kind is not p.VAR_POSITIONAL} == set(specs)
    assert all(spec.doc and not spec.doc.endswith(".") for spec in specs.values()), name
    assert all(spec.paper.startswith("https://") for spec in specs.values() if spec.paper)


def test_no_row_of_the_page_is_empty():
    rows = [line for line in command.markdown().splitlines() if line.startswith("| `")]
    assert len(rows) > 300 and not [row for row in rows if row.split(" | ")[-1].strip(" |") == ""]


@pytest.mark.parametrize("name", WRAPPERS)
def test_every_value_is_shown_and_written(name, capsys):
    torch.manual_seed(0)
    built = WRAPPERS[name](**EXAMPLES[name]())
    config = built.to_config()
    assert json.loads(json.dumps(config)) == config
    specs = flags_of(built.Config)
    assert set(specs) <= set(config) and list(config)[:2] == ["format", "class"]
    assert WRAPPERS[name].from_config(config).to_config() == config
    shown = {line.split()[0]: line for line in built.flag_table().splitlines()[1:]}
    assert set(specs) <= set(shown) and all(spec.meaning() in shown[name] for name, spec in specs.items())
    assert len(shown) == len(built.flag_rows()) > len(specs)
    command.main(["flags", name])
    printed = capsys.readouterr().out
    assert all(spec.meaning() in printed for spec in specs.values())


@pytest.mark.parametrize("name", ["BlockRecurrentTransformer", "FLASH", "FLASHTransformer", "GAU", "XTransformer"])
def test_flags_that_are_handed_on_are_written_with_their_defaults(name):
    """A version whose stacks have other defaults loads the same model; what arguments say is said once."""
    built = WRAPPERS[name](**EXAMPLES[name]())
    written = built.to_config()
    flag = {"XTransformer": "dec_attn_dropout", "GAU": "gau_bias"}.get(name, "norm_eps")
    assert flag in written
    changed = {**written, flag: {"norm_eps": 0.25, "gau_bias": True, "dec_attn_dropout": 0.25}[flag]}
    again = xflash.from_config(changed)
    assert again.to_config() == changed
    assert f"{flag}=" in repr(again) and f"{flag}=" not in repr(built)
    with pytest.raises(TypeError, match="unknown flag 'norm_esp'; did you mean"):
        WRAPPERS[name](**EXAMPLES[name](), norm_esp=1)


def test_a_switch_in_a_config_still_says_what_follows_from_it():
    written = xflash.FLASHTransformer(**EXAMPLES["FLASHTransformer"]()).to_config()
    other = xflash.from_config({**written, "laplace_attn_fn": True, "shift_tokens": False})
    assert other.attn_layers.blocks()[0].config.attn_fn == "laplace"
    wide = xflash.BlockRecurrentTransformer(**EXAMPLES["BlockRecurrentTransformer"]()).to_config()
    assert xflash.from_config({**wide, "dim_head": 6}).attn_layers.blocks()[0].config.dim_head == 6
    kept = xflash.FLASHTransformer(**EXAMPLES["FLASHTransformer"](), flash_attn_fn="softmax").to_config()
    assert kept["flash_attn_fn"] == "softmax" and "flash_attn_fn" not in written


def test_models_are_inputs_a_stack_pooling_and_a_head():
    names = ("TransformerWrapper", "ViTransformerWrapper", "FLASHTransformer", "BlockRecurrentTransformer")
    made = [WRAPPERS[name](**EXAMPLES[name]()) for name in names]
    both = xflash.XTransformer(**EXAMPLES["XTransformer"]())
    for one in (*made, both.encoder, both.decoder.net):
        assert isinstance(one, Model) and isinstance(one.embedding, nn.Module) and callable(one.logits)
        assert one.dim == one.attn_layers.dim and hasattr(one, "pooled")
        assert {Model.through.__qualname__} == {type(one).through.__qualname__}


def test_a_subclass_has_the_arguments_it_says():
    class Scaled(xflash.TransformerWrapper):
        @dataclass(frozen=True, kw_only=True)
        class Config(xflash.TransformerWrapper.Config):
            logit_scale: float = flag(2.0, "what logits are multiplied by", above=0)

        def assemble(self, config):
            super().assemble(config)
            self.logit_scale = config.logit_scale

        def logits(self, y):
            return super().logits(y) * self.logit_scale

    try:
        given = {"num_tokens": 5, "max_seq_len": 4, "attn_layers": stack()}
        scaled = Scaled(**given, logit_scale=3)
        assert scaled.to_config()["logit_scale"] == 3.0 and "logit_scale" in scaled.flag_table()
        assert list(inspect.signature(Scaled).parameters)[-1] == "logit_scale"
        ids = torch.tensor([[1, 2]])
        plain = xflash.TransformerWrapper.logits(scaled, scaled.eval()(ids, return_embeddings=True))
        assert torch.equal(scaled(ids), plain * 3)
        with pytest.raises(ValueError, match="logit_scale must be above 0, not 0"):
            Scaled(**given, logit_scale=0)
        with pytest.raises(TypeError, match="Scaled has no argument 'logit_scal'; did you mean 'logit_scale'"):
            Scaled(**given, logit_scal=1)
    finally:
        del CLASSES["Scaled"]


def test_the_table_shows_what_differs():
    net = model(emb_dropout=0.25)
    rows = net.flag_table(changed_only=True).splitlines()
    assert any(row.startswith("emb_dropout") and "0.25 *" in row for row in rows)
    assert not any(row.startswith("tie_embedding") for row in rows)
    assert "Decoder" in next(row for row in rows if row.startswith("attn_layers"))
    assert flag_table(net.flag_rows()) == net.flag_table()
