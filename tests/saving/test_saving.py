"""A model is saved and loaded as it is: dtypes, tied weights, wrappers around it; files are replaced as a whole."""

import copy
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import xflash
from xflash import Block, Decoder, Encoder, MaskedLMWrapper, TransformerWrapper, XTransformer
from xflash.base import files
from xflash.flags.flag import flag
from xflash.saving import store as saving

FILES = {"config.json", "model.safetensors"}


def net(**flags):
    torch.manual_seed(0)
    stack = Decoder(**{"dim": 14, "depth": 2, "heads": 2, "attn_dim_head": 6, **flags})
    return TransformerWrapper(num_tokens=11, max_seq_len=13, attn_layers=stack)


def tied():
    sides = {f"{side}_{k}": v for side in ("enc", "dec") for k, v in {"num_tokens": 11, "depth": 1, "heads": 2}.items()}
    return XTransformer(dim=14, tie_token_emb=True, enc_max_seq_len=13, dec_max_seq_len=17, **sides)


def assert_same(found, model):
    ours, theirs = found.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and torch.equal(ours[name], value), name
    assert found.to_config() == model.to_config()


def header(folder):
    with safetensors.safe_open(folder / "model.safetensors", framework="pt") as file:
        return json.loads(file.metadata()["xflash"])


def gains(model, dtype):
    for name, value in model.named_parameters():
        if name.endswith("gain"):
            value.data = value.data.to(dtype)
    return model


@pytest.mark.parametrize(
    "model",
    [
        net(),
        net().bfloat16(),
        gains(net().bfloat16(), torch.float32),
        gains(net().half(), torch.float64),
        net(weight_tie_layers=True),
        tied(),
    ],
    ids=["float32", "bfloat16", "norms in float32", "norms in float64", "tied layers", "tied embeddings"],
)
def test_each_weight_keeps_its_dtype_and_its_ties(model, tmp_path):
    model.save(tmp_path)
    found = xflash.load(tmp_path)
    assert_same(found, model)
    assert len(list(found.parameters())) == len(list(model.parameters()))
    assert set(os.listdir(tmp_path)) == FILES


def test_a_head_in_float64_loses_nothing(tmp_path):
    model = net()
    model.to_logits.double().weight.data += 1e-9
    model.save(tmp_path)
    assert_same(xflash.load(tmp_path), model)


def test_loading_does_not_depend_on_what_is_set_around_it(tmp_path):
    model = MaskedLMWrapper(
        TransformerWrapper(num_tokens=11, max_seq_len=13, attn_layers=Encoder(dim=14, depth=1)), mask_token_id=3
    )
    model.save(tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = xflash.load(tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(found, model)
    assert (found.words, found.special) == (model.words, model.special)


def test_buffers_that_are_not_saved_keep_their_dtypes(own, tmp_path):
    model = gains(net(layers="halves attn").bfloat16(), torch.float32)
    model.save(tmp_path)
    found = xflash.load(tmp_path)
    assert_same(found, model)
    assert [b.dtype for b in found.buffers()] == [b.dtype for b in model.buffers()] == [torch.bfloat16] * 2


@pytest.fixture
def own():
    """A block that looks at values while it is built, which a model without memory for its weights cannot."""

    class Halves(Block):
        @dataclass(frozen=True, kw_only=True)
        class Config:
            share: float = flag(0.5, "what is added", above=0)

        def __init__(self, config, site):
            super().__init__(config, site)
            half = torch.full((), config.share)
            self.register_buffer("kept", half, persistent=False)
            self.start = half.item()

        def forward(self, x, ctx, state=None):
            return x * self.kept, None

    before = dict(xflash.blocks._parts), dict(xflash.blocks.origins)
    xflash.blocks.register("halves")(Halves)
    yield Halves
    xflash.blocks._parts, xflash.blocks.origins = before


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_inside(model):
    model.attn_layers = torch.compile(model.attn_layers, backend="eager")
    return model


def checkpointed(model):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model.attn_layers.branches[1] = checkpoint_wrapper(model.attn_layers.branches[1])
    return model


def turned(model):
    model.to_logits.weight.data = model.to_logits.weight.data.t().contiguous().t()
    return model


def in_one_buffer(model):
    flat, at = torch.cat([p.detach().flatten() for p in model.parameters()]), 0
    for p in model.parameters():
        p.data, at = flat[at : at + p.numel()].view_as(p), at + p.numel()
    return model


def hooked(model):
    model.register_forward_hook(lambda *given: None)
    model.loss = nn.CrossEntropyLoss()
    return model


@pytest.mark.parametrize("change", [compiled, compiled_inside, checkpointed, turned, in_one_buffer, hooked])
def test_what_leaves_a_model_what_it_is_is_left_out(change, tmp_path):
    model = net()
    before = copy.deepcopy(model)
    xflash.save(change(model), tmp_path)
    assert_same(xflash.load(tmp_path), before)


def test_saving_draws_no_random_number(tmp_path, own):
    model, before = net(layers="halves attn"), torch.get_rng_state()
    model.save(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_config_lies_with_the_weights_and_what_is_beside_them_is_a_copy(tmp_path):
    rotary, alibi = net(pos="rotary"), net(pos="alibi")
    rotary.save(tmp_path / "rotary")
    assert json.loads((tmp_path / "rotary" / "config.json").read_text()) == rotary.to_config()
    alibi.save(tmp_path / "alibi")
    os.replace(tmp_path / "alibi" / "config.json", tmp_path / "rotary" / "config.json")
    assert_same(xflash.load(tmp_path / "alibi"), alibi)
    said = r"config.json is not read: the config in model.safetensors counts, and attn_layers.pos is \['rotary'\] there"
    with pytest.warns(UserWarning, match=said):
        assert_same(xflash.load(tmp_path / "rotary"), rotary)
    first = (tmp_path / "rotary" / "model.safetensors").read_bytes()
    rotary.save(tmp_path / "rotary")
    assert (tmp_path / "rotary" / "model.safetensors").read_bytes() == first


def test_a_folder_without_a_config_in_its_weights_goes_by_the_one_beside(tmp_path):
    model = net(pos="alibi").bfloat16()
    (tmp_path / "config.json").write_text(json.dumps(model.to_config()))
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    assert_same(xflash.load(tmp_path), model)


def test_a_folder_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    """Between its weights and what lies beside them another model is saved, of equal shapes and other flags."""
    old, new = net(pos="alibi"), net(pos="rotary")
    (tmp_path / "config.json").write_text(json.dumps(old.to_config()))
    safetensors.torch.save_model(old, str(tmp_path / "model.safetensors"))
    real = saving.read

    def late(file):
        found = real(file)
        new.save(tmp_path)
        return found

    monkeypatch.setattr(saving, "read", late)
    assert_same(xflash.load(tmp_path), old)
    assert_same(xflash.load(tmp_path), new)


def test_files_are_on_the_disk_before_they_replace_others(tmp_path, monkeypatch):
    did = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(file):
        info = os.fstat(file)
        did.append("folder" if stat.S_ISDIR(info.st_mode) else f"{info.st_ino}")
        real_sync(file)

    def replace(old, new):
        did.append(f"{Path(old).stat().st_ino} -> {Path(new).name}")
        real_replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    net().save(tmp_path / "new" / "model")
    weights, copied = (
        (tmp_path / "new" / "model" / name).stat().st_ino for name in ("model.safetensors", "config.json")
    )
    order = [f"{weights} -> model.safetensors", f"{copied} -> config.json"]
    assert did == ["folder", "folder", f"{weights}", f"{copied}", *order, "folder"]


def test_files_can_be_read_by_those_who_may_read_others_of_the_user(tmp_path):
    net().save(tmp_path / "model")
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in [tmp_path / "plain", *(tmp_path / "model").iterdir()]}
    assert len(modes) == 1


def test_a_folder_behind_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for pos in ("rotary", "alibi"):
        net(pos=pos).save(tmp_path / "link")
        assert xflash.load(tmp_path / "real").to_config() == net(pos=pos).to_config()
    assert set(os.listdir(tmp_path / "real")) == FILES and (tmp_path / "link").is_symlink()


def test_what_others_are_writing_is_left_alone(tmp_path):
    """Folders that a living writer has locked are no leftovers; those of a killed one are."""
    with files.replacing(tmp_path, "a") as half:
        (half / "a").write_text("first")
        (tmp_path / f"{files.HALF}killed").mkdir()
        net().save(tmp_path)
        assert set(os.listdir(tmp_path)) == FILES | {half.name}
    assert set(os.listdir(tmp_path)) == FILES | {"a"}


def test_a_new_folder_that_somebody_clears_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    real, made = files.locked, []

    def late(half):
        made.append(half)
        if len(made) == 1:
            half.rmdir()
        return real(half)

    monkeypatch.setattr(files, "locked", late)
    files.write_whole(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content" and len(made) == 2 and os.listdir(tmp_path) == ["a"]


def test_without_locks_files_are_replaced_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    (tmp_path / f"{files.HALF}another").mkdir()  # nobody can tell whether its writer lives
    net().save(tmp_path)
    assert set(os.listdir(tmp_path)) == FILES | {f"{files.HALF}another"}


def test_an_error_leaves_the_files_as_they_were(tmp_path, monkeypatch):
    net(pos="alibi").save(tmp_path)
    monkeypatch.setattr(safetensors.torch, "save_file", lambda *given, **more: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        net(pos="rotary").save(tmp_path)
    assert set(os.listdir(tmp_path)) == FILES
    assert_same(xflash.load(tmp_path), net(pos="alibi"))
