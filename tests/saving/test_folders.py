"""A folder that is not what `save` wrote: what reads it is said; changes of the copy are warned of."""

import json

import pytest
import torch
from safetensors.torch import save_file

import xflash
from xflash import Decoder


def stack():
    return Decoder(dim=6, depth=1, heads=2)


@pytest.fixture
def folder(tmp_path):
    stack().save(tmp_path / "model")
    return tmp_path / "model"


def edited(change, folder):
    """The folder with its config.json changed."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


CHANGES = {
    "attn_dropout is 0.0 there, 0.5 here": lambda config: config.update(attn_dropout=0.5),
    "attn_dropout stands there only": lambda config: config.pop("attn_dropout"),
    "attn_droput stands here only": lambda config: config.update(attn_droput=0.5),
}


@pytest.mark.parametrize("said", CHANGES)
def test_an_edited_config_is_warned_of(said, folder):
    edited(CHANGES[said], folder)
    with pytest.warns(UserWarning, match=rf"config.json is not read: .* counts, and {said}; to change flags, xflash"):
        assert xflash.load(folder).to_config() == stack().to_config()


def test_a_copy_that_cannot_be_read_is_warned_of(folder):
    (folder / "config.json").write_text('{"class": ')
    with pytest.warns(UserWarning, match=r"and this copy cannot be read \(Expecting value"):
        xflash.load(folder)


def test_a_copy_that_is_gone_or_laid_out_anew_is_as_it_was(folder):
    edited(lambda config: None, folder)
    assert repr(xflash.load(folder)) == repr(stack())
    (folder / "config.json").unlink()
    assert repr(xflash.load(folder)) == repr(stack())


def foreign(config, weights):
    """Makes a folder with this config.json, with weights or without."""

    def make(folder):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        if weights:
            save_file({"a": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def file(folder):
    folder.touch()
    return folder


FROM_HF = r"new was written by transformers; xflash.convert.from_pretrained\('.*new'\) reads it"
FROM_TIMM = r"new was written by timm; xflash.convert.from_timm\(timm.create_model\('local-dir:.*new'\)\) reads it"
OTHERS = {
    "transformers": (foreign({"model_type": "llama"}, True), FROM_HF),
    "transformers, in shards": (foreign({"architectures": ["LlamaForCausalLM"]}, False), FROM_HF),
    "timm": (foreign({"architecture": "vit_base_patch16_224"}, True), FROM_TIMM),
    "nothing": (lambda folder: folder, r"there is no folder .*new; give the folder that save\(\) wrote \(xflash.conv"),
    "another file": (file, r"new is a file; give the folder that save\(\) wrote, or weights to load_state_dict"),
    "a list": (foreign([1], False), "new has no model.safetensors; give the folder that save"),
    "the weights": (
        lambda folder: foreign({}, True)(folder) / "model.safetensors",
        "model.safetensors is a file; give the folder it is in, '.*new'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_what_another_made_is_answered_with_what_reads_it(case, tmp_path):
    make, said = OTHERS[case]
    with pytest.raises(ValueError, match=said):
        xflash.load(make(tmp_path / "new"))
