"""What cannot be saved as the config says, or loaded as it was saved, is refused in a sentence that names it."""

import copy
import importlib
import json
import os
import sys
import warnings

import pytest
import safetensors.torch
import torch
from test_saving import net, tied
from torch import nn
from torch.nn.utils import parametrize, prune

import xflash
from xflash.saving.classes import CLASSES


def quantised(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


class LowRank(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Packed(torch.Tensor):
    pass


def head(make):
    """The change that gives the head the weight `make(weight)`."""

    def change(model):
        value = make(model.to_logits.weight.detach())
        model.to_logits.weight = nn.Parameter(value, requires_grad=value.is_floating_point())

    return change


def put(owner, name, value):
    return lambda model: setattr(model.get_submodule(owner), name, value)


def tie(model):
    model.to_logits.weight = model.embedding.token_emb.weight


def share(model):
    model.to_logits.weight.data = model.embedding.token_emb.weight.data


CHANGED = "this TransformerWrapper is not what its config builds: "


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (quantised, r"'\S*to_out' is a torch\.ao\.nn\.quantized\S*Linear, not a torch\.nn\.modules\.linear\.Linear;"),
        (
            lambda m: parametrize.register_parametrization(m.to_logits, "weight", nn.Identity()),
            r"'to_logits' is a torch\S*ParametrizedLinear, not a torch\.nn",
        ),
        (
            put("", "to_logits", LowRank(14, 11, bias=False)),
            r"'to_logits' is a test_saving_refused\.LowRank, not a torch",
        ),
        (put("", "attn_layers", net(pos="rotary").attn_layers), "'attn_layers', a Decoder, has other flags"),
        (put("attn_layers", "branches", nn.ModuleList()), "it has no module 'attn_layers.branches.0'"),
        (lambda m: prune.random_unstructured(m.to_logits, "weight", 0.5), "there is no 'to_logits.weight'; torch.save"),
        (put("", "to_logits", nn.Linear(14, 11)), "there is no place for 'to_logits.bias'"),
        (lambda m: m.register_buffer("own", torch.ones(2)), "there is no place for 'own'"),
        (
            put("", "to_logits", nn.Linear(14, 12, bias=False)),
            r"'to_logits.weight' is of shape \(12, 14\), not \(11, 14\)",
        ),
        (
            head(lambda w: w.to(torch.int8)),
            "'to_logits.weight' is torch.int8, which does not take the place of torch.fl",
        ),
        (tie, "'embedding.token_emb.weight' and 'to_logits.weight' are one tensor, not two; torch.save"),
        (share, "'embedding.token_emb.weight' and 'to_logits.weight' are one tensor, not two"),
    ],
    ids=lambda given: "" if callable(given) else given[:30],
)
def test_a_model_that_its_config_does_not_build_is_not_saved(change, match, tmp_path):
    model = net()
    model = change(model) if change is quantised else (change(model), model)[1]
    with pytest.raises(ValueError, match=CHANGED + match):
        model.save(tmp_path / "model")
    assert not os.listdir(tmp_path)


def test_weights_that_the_config_ties_and_the_model_does_not(tmp_path):
    model = tied()
    model.decoder.net.embedding.token_emb = copy.deepcopy(model.decoder.net.embedding.token_emb)
    with pytest.raises(
        ValueError, match=r"'encoder.*weight' and 'decoder.*weight' are two tensors, not one; torch.save"
    ):
        model.save(tmp_path / "model")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (head(lambda w: w.as_subclass(Packed)), "'to_logits.weight' is a Packed, not a plain tensor"),
        (
            head(lambda w: w.to_sparse()),
            "'to_logits.weight' is torch.float32 in torch.sparse_coo, which safetensors does",
        ),
        (lambda m: m.to("meta"), "'attn_layers.* is on the device 'meta' and has no values"),
    ],
    ids=["subclass", "sparse", "meta"],
)
def test_weights_that_a_file_does_not_hold_are_not_saved(change, match, tmp_path):
    model = net()
    change(model)
    with pytest.raises(ValueError, match=f"this TransformerWrapper cannot be saved: {match}"):
        model.save(tmp_path / "model")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Linear(2, 3), "model must be one of xflash's, which have a config, not a Linear; torch.save keeps others"),
        ({}, "not a dict; torch.save keeps others"),
        (nn.DataParallel(net()), "not a DataParallel; give its .module"),
        (torch.compile(nn.Linear(2, 3), backend="eager"), "not a Linear; torch.save"),
    ],
    ids=["Linear", "dict", "DataParallel", "compiled"],
)
def test_only_models_with_a_config_are_saved(model, match, tmp_path):
    with pytest.raises(TypeError, match=match):
        xflash.save(model, tmp_path / "model")
    assert not os.listdir(tmp_path)


def cut(folder, size=100):
    os.truncate(folder / "model.safetensors", size)


def rewrite(change, config=True):
    """The weights as another program would write them."""

    def damage(folder):
        with safetensors.safe_open(folder / "model.safetensors", framework="pt") as file:
            weights, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        change(weights)
        safetensors.torch.save_file(weights, folder / "model.safetensors", metadata=header if config else None)

    return damage


def without_config(text):
    """The weights without a header, beside a config.json of this text; None: without one."""

    def damage(folder):
        rewrite(lambda weights: None, config=False)(folder)
        (folder / "config.json").unlink()
        if text is not None:
            (folder / "config.json").write_text(text)

    return damage


FILE, COPY = r"model\.safetensors", r"config\.json"
LACKS = f"{FILE} does not fit the TransformerWrapper that its config builds: "
EMBEDDING = "embedding.token_emb.weight"


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (cut, f"{FILE} cannot be read, .*header"),
        (lambda folder: cut(folder, 0), f"{FILE} cannot be read, "),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            r"model has no model\.safetensors; give the folder that",
        ),
        (rewrite(lambda w: w.pop(EMBEDDING)), f"{LACKS}there is no '{EMBEDDING}'"),
        (rewrite(lambda w: w.update(a=torch.ones(1))), f"{LACKS}there is no place for 'a'"),
        (
            rewrite(lambda w: [w.update({k: torch.ones(1)}) for k in "abcde"]),
            f"{LACKS}there is no place for 'a', 'b', 'c' and 2 more",
        ),
        (
            rewrite(lambda w: w.update({EMBEDDING: torch.ones(11, 13)})),
            rf"{LACKS}'{EMBEDDING}' is of shape \(11, 13\), not \(11, 14\)",
        ),
        (
            rewrite(lambda w: w.update({EMBEDDING: torch.ones(11, 14, dtype=torch.int32)})),
            f"{LACKS}'{EMBEDDING}' is torch.int32, which does not take the place of torch.float32",
        ),
        (
            without_config(None),
            rf"model has no {COPY}, and {FILE} no config in its header; save\(\) writes both",
        ),
        (without_config(""), f"{COPY} cannot be read: Expecting value"),
        (without_config("[]"), f"{COPY}: a config is a mapping"),
        (without_config('{"class": "Decoder", "dimm": 3}'), f"{COPY}: unknown flag 'dimm'; did you mean 'dim'"),
        (without_config('{"class": "Dekoder"}'), f"{COPY}: the config names an unknown class 'Dekoder'; did you"),
    ],
    ids=lambda given: "" if callable(given) else given[-30:],
)
def test_load_names_the_file_and_what_is_wrong_with_it(damage, match, tmp_path):
    net().save(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises((TypeError, ValueError), match=match):
        xflash.load(tmp_path / "model")


def test_two_values_for_one_tensor(tmp_path):
    xtransformer = tied()
    xtransformer.save(tmp_path)
    names = [f"{side}.{EMBEDDING}" for side in ("encoder", "decoder.net")]
    rewrite(lambda w: w.update({names[1]: w[names[0]].clone()}))(tmp_path)
    assert torch.equal(xflash.load(tmp_path).get_parameter(names[1]), xtransformer.get_parameter(names[0]))
    rewrite(lambda w: w.update({names[1]: w[names[0]] + 1}))(tmp_path)
    with pytest.raises(
        ValueError, match=f"'{names[0]}' and '{names[1]}' are two tensors, but the model has one in both"
    ):
        xflash.load(tmp_path)


@pytest.mark.parametrize("device", [None, 1.5, True, ["cpu"]])
def test_what_is_no_device(device, tmp_path):
    net().save(tmp_path)
    with pytest.raises(TypeError, match="device must be one of torch's, such as 'cpu' or 'cuda', not"):
        xflash.load(tmp_path, device=device)


@pytest.mark.parametrize("device", ["meta", "gpu", torch.device("meta"), 2**40])
def test_a_device_without_values(device, tmp_path):
    net().save(tmp_path)
    with pytest.raises(ValueError, match=r"load\(\) cannot put weights on the device .*(meta|gpu|1099511627776)"):
        xflash.load(tmp_path, device=device)


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("something else")
    with pytest.raises(ValueError, match=r"file is a file; save\(\) writes a folder with config.json and"):
        net().save(tmp_path / "file")
    with pytest.raises(OSError, match="file/model"):
        net().save(tmp_path / "file" / "model")


PARTS = """
from dataclasses import dataclass
import xflash
from xflash.flags.flag import flag
from xflash.layers.norms import LayerNorm

@xflash.blocks.register("plus")
class Plus(xflash.Block):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        c: float = flag(1.0, "what is added")

    def forward(self, x, ctx, state=None):
        return x + self.config.c, None

@xflash.norms.register("twice")
class Twice(LayerNorm):
    @dataclass(frozen=True, kw_only=True)
    class Config(LayerNorm.Config):
        times: int = flag(1, "how often")

class Mine(xflash.TransformerWrapper):
    pass
"""


@pytest.fixture
def without():
    """Forgets what was registered since the test began, as another process would not know it."""
    registries = (xflash.blocks, xflash.norms, xflash.activations)
    before = [dict(known) for registry in registries for known in (registry._parts, registry.origins)]
    classes = dict(CLASSES)

    def forget():
        kept = iter(before)
        for registry in registries:
            registry._parts, registry.origins = dict(next(kept)), dict(next(kept))
        CLASSES.clear()
        CLASSES.update(classes)

    yield forget
    forget()
    sys.modules.pop("parts_of_mine", None)


def test_parts_of_ones_own_are_named_with_their_module(tmp_path, monkeypatch, without):
    (tmp_path / "parts_of_mine.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = importlib.import_module("parts_of_mine").Mine
    flags = {"dim": 14, "depth": 1, "heads": 2, "layers": "plus ff", "norm": "twice", "plus_c": 3, "norm_times": 2}
    stack = xflash.Decoder(**flags)
    mine(num_tokens=11, max_seq_len=13, attn_layers=stack).save(tmp_path / "model")
    assert type(xflash.load(tmp_path / "model")) is mine
    without()
    names = " and ".join(f"'{name}' of the module 'parts_of_mine'" for name in ("Mine", "plus", "twice"))
    with pytest.raises(ValueError, match=rf"{FILE} needs {names}; import it before load\(\)"):
        xflash.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"unknown block 'plus' \(known: "):
        xflash.from_config(stack.to_config())
    with pytest.raises(ValueError, match=r"unknown norm 'twice' \(known: "):
        xflash.from_config({**stack.to_config(), "layers": "ff"})


def test_parts_may_have_names_in_any_letters(tmp_path, monkeypatch, without):
    text = "import torch, xflash\nxflash.activations.register('größe')(torch.tanh)\n"
    (tmp_path / "parts_of_mine.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("parts_of_mine")
    xflash.Decoder(dim=14, depth=1, heads=2, layers="ff", ff_activation="größe").save(tmp_path / "model")
    without()
    with pytest.raises(ValueError, match="needs 'größe' of the module 'parts_of_mine'"):
        xflash.load(tmp_path / "model")


def test_a_class_does_not_take_the_name_of_one_of_xflash():
    """Configs name classes: every Decoder that is built from one would be this one."""
    with pytest.raises(
        TypeError, match=r"Decoder needs a name of its own: in configs, 'Decoder' means xflash\.stack\.stacks\.Dec"
    ):
        type("Decoder", (xflash.Decoder,), {})
    assert CLASSES["Decoder"] is xflash.Decoder


def test_the_header_is_json(tmp_path):
    net().save(tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        weights, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert json.loads(header["xflash"])["config"] == net().to_config()
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"xflash": "{"})
    with pytest.raises(ValueError, match=f"{FILE} cannot be read, it is damaged or cut short: Expecting property name"):
        xflash.load(tmp_path)
