"""Vision transformers of transformers are these flags: the same logits and embeddings, at other sizes of images too."""

import pytest
import torch
from peers import live, nothing_is_shared, same
from transformers import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    ViTForImageClassification,
    ViTModel,
)

from xflash.convert import from_pretrained, from_transformers

SIZES = {"hidden_size": 42, "num_hidden_layers": 3, "num_attention_heads": 6, "patch_size": 5, "num_channels": 2}
VIT = {**SIZES, "intermediate_size": 53, "image_size": 35}
DINO = {**SIZES, "image_size": 35, "mlp_ratio": 3}
CASES = {
    "vit": (ViTForImageClassification, {**VIT, "num_labels": 11}),
    "vit of two classes": (ViTForImageClassification, {**VIT, "layer_norm_eps": 1e-3}),
    "vit of other shapes": (
        ViTForImageClassification,
        {**VIT, "image_size": [35, 22], "patch_size": [5, 2], "qkv_bias": False, "hidden_act": "gelu_new"},
    ),
    "vit without a head": (ViTModel, VIT),
    "deit": (DeiTForImageClassification, {**VIT, "num_labels": 11}),
    "deit without a head": (DeiTModel, VIT),
    "deit of two heads": (DeiTForImageClassificationWithTeacher, {**VIT, "num_labels": 11}),
    "dinov2": (Dinov2ForImageClassification, {**DINO, "num_labels": 11}),
    "dinov2 gated": (Dinov2ForImageClassification, {**DINO, "use_swiglu_ffn": True, "num_labels": 7}),
    "dinov2 without a head": (Dinov2Model, {**DINO, "layerscale_value": 0.3, "use_mask_token": False}),
    "dinov2 with registers": (Dinov2WithRegistersForImageClassification, {**DINO, "num_register_tokens": 3}),
    "dinov2 with registers, gated": (Dinov2WithRegistersModel, {**DINO, "use_swiglu_ffn": True, "qkv_bias": False}),
}
# These interpolate positions by themselves; that of transformers' DeiT is asked for, as ViT's is.
ASKED = {"vit": {"interpolate_pos_encoding": True}, "deit": {"interpolate_pos_encoding": True}}


def peer(case, dtype=torch.float32):
    cls, settings = CASES[case]
    return live(cls(cls.config_class(**settings)), dtype)


def images(theirs, size=None, dtype=torch.float32):
    size = size or theirs.config.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    return torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def outputs(theirs, img, **given):
    """Logits or the class token's embedding."""
    out = theirs(img, **given)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state[:, 0]


@pytest.mark.parametrize("case", CASES)
def test_outputs(case):
    for dtype, most in ((torch.float32, 1e-4), (torch.float64, 1e-8)):
        theirs = peer(case, dtype)
        ours, img = from_transformers(theirs), images(theirs, dtype=dtype)
        with torch.no_grad():
            expected = outputs(theirs, img)
            assert expected.std() > 0.1
            assert (ours(img) - expected).abs().max() < most
            if ours.num_classes is None:
                found = ours(img, return_embeddings=True)
                assert (found - theirs(img).last_hidden_state[:, -found.shape[1] :]).abs().max() < most


@pytest.mark.parametrize("size", [(20, 50), (70, 45), (25, 25)])
@pytest.mark.parametrize("case", [case for case in CASES if "shapes" not in case])
def test_other_sizes(case, size):
    """Positions are interpolated as they are there, which is in float32."""
    for dtype, most in ((torch.float32, 1e-4), (torch.float64, 1e-5)):
        theirs = peer(case, dtype)
        img = images(theirs, size, dtype)
        with torch.no_grad():
            expected = outputs(theirs, img, **ASKED.get(theirs.config.model_type, {}))
            assert (from_transformers(theirs)(img) - expected).abs().max() < most


@pytest.mark.parametrize("case", CASES)
def test_folders(case, tmp_path):
    """Names in files are those of older versions."""
    theirs = peer(case)
    theirs.save_pretrained(tmp_path)
    ours, expected = from_pretrained(tmp_path), from_transformers(theirs)
    same(ours, expected)
    assert ours.to_config() == expected.to_config()


def test_nothing_is_shared():
    nothing_is_shared(peer("vit"), from_transformers)


@pytest.mark.parametrize(
    ("case", "settings", "said"),
    [
        ("vit", {"hidden_act": "sigmoid"}, "hidden_act='sigmoid' of a 'vit' config has no counterpart"),
        ("vit", {"rotated": 3}, "rotated=3 of a 'vit' config is not known here"),
        ("dinov2", {"image_size": [35, 40]}, r"image_size=\(35, 40\) of a 'dinov2' config has no counterpart"),
        ("vit", {"image_size": 40}, r"'embeddings.position_embeddings' is of shape \(1, 50, 42\), not \(1, 65, 42\)"),
        ("vit", {"patch_size": 7}, r"projection.weight' is of shape \(42, 2, 5, 5\), not \(42, 2, 7, 7\)"),
        ("dinov2 with registers", {"num_register_tokens": 4}, "the weights of learned tokens are .* not 5 of 42"),
    ],
)
def test_what_is_refused(case, settings, said):
    theirs = peer(case)
    for name, value in settings.items():
        object.__setattr__(theirs.config, name, value)
    with pytest.raises(ValueError, match=said):
        from_transformers(theirs)


@pytest.mark.parametrize("name", ["cls_token", "position_embeddings", "patch_embeddings.projection.weight"])
def test_missing_weights(name, tmp_path):
    from safetensors.torch import load_file, save_file

    peer("vit").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[f"vit.embeddings.{name}"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"embeddings.{name}"):
        from_pretrained(tmp_path)
