"""Vision transformers of timm are these flags: the same logits and embeddings, at other sizes of images too."""

from functools import partial

import pytest
import timm
import torch
from peers import live, nothing_is_shared
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ParallelThingsBlock, ResPostBlock, VisionTransformer
from torch import nn

from xflash.convert import from_timm

SIZES = {"img_size": 35, "patch_size": 5, "in_chans": 2, "embed_dim": 42, "depth": 3, "num_heads": 6, "num_classes": 11}
CASES = {
    "vit": {},
    "vit of other shapes": {"img_size": (35, 22), "patch_size": (5, 2), "mlp_ratio": 1.7, "qkv_bias": False},
    "vit without a head": {"num_classes": 0},
    "vit, mean": {"global_pool": "avg"},
    "vit, mean without a class token": {"global_pool": "avg", "class_token": False, "fc_norm": False},
    "vit, mean with registers": {"global_pool": "avg", "reg_tokens": 3, "no_embed_class": True},
    "vit with registers": {"reg_tokens": 3, "init_values": 0.1},
    "vit without the last norm": {"final_norm": False, "act_layer": "quick_gelu", "proj_bias": False},
    "vit, norm behind the class token": {"fc_norm": True, "act_layer": "gelu_tanh"},
    "deit3": {"init_values": 1e-6, "no_embed_class": True},
    "dinov2 with registers, gated": {
        "reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5, "mlp_ratio": 2, "mlp_layer": SwiGLUPacked,
        "act_layer": nn.SiLU, "num_classes": 0,
    },
    "clip": {"pre_norm": True, "norm_layer": partial(nn.LayerNorm, eps=1e-4), "act_layer": "quick_gelu"},
    "clip with registers, mean": {"pre_norm": True, "reg_tokens": 3, "global_pool": "avg", "no_embed_class": True},
    "siglip": {"global_pool": "map", "class_token": False, "mlp_ratio": 1.5, "act_layer": "gelu_tanh"},
    "vit, map behind a class token": {"global_pool": "map", "reg_tokens": 2, "num_classes": 0},
    "vit, max": {"global_pool": "max", "class_token": False},
    "vit, max and mean": {"global_pool": "avgmax", "fc_norm": False},
    "vit, norms behind": {"block_fn": ResPostBlock},
    "deit of two heads": {},
    "deit of two heads, no class": {"num_classes": 0, "init_values": 0.1},
    "vit, gated apart": {"mlp_layer": SwiGLU, "act_layer": "silu", "pos_embed": "none", "pos_drop_rate": 0.1},
}  # fmt: skip


def peer(case, dtype=torch.float32, **settings):
    cls = VisionTransformerDistilled if "two heads" in case else VisionTransformer
    return live(cls(**{**SIZES, **CASES[case], **settings}), dtype)


def images(size=None, dtype=torch.float32):
    size = (size, size) if isinstance(size, int) else size
    return torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("case", CASES)
def test_outputs(case):
    for dtype, most in ((torch.float32, 1e-4), (torch.float64, 1e-8)):
        theirs = peer(case, dtype)
        ours, img = from_timm(theirs), images(theirs.patch_embed.img_size, dtype)
        with torch.no_grad():
            expected = theirs(img)
            assert expected.std() > 0.1
            assert (ours(img) - expected).abs().max() < most
            found = ours(img, return_embeddings=True)
            assert (found - theirs.forward_features(img)[:, -found.shape[1] :]).abs().max() < most
        assert {p.dtype for p in ours.parameters()} == {dtype} and not ours.training


def test_what_is_beyond_the_last_whole_patch_is_not_looked_at_there():
    """As in SigLIP's patches of 14 of images of 384; here images are given without it."""
    theirs = peer("vit", img_size=37)
    img = images(37)
    with torch.no_grad():
        assert (from_timm(theirs)(img[..., :35, :35]) - theirs(img)).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(20, 50), (70, 45)])
@pytest.mark.parametrize("case", [case for case in CASES if "shapes" not in case])
def test_other_sizes(case, size):
    """Positions are interpolated as they are there, which is in float32."""
    for dtype, most in ((torch.float32, 1e-4), (torch.float64, 1e-5)):
        theirs = peer(case, dtype, dynamic_img_size=True)
        img = images(size, dtype)
        with torch.no_grad():
            assert (from_timm(theirs)(img) - theirs(img)).abs().max() < most


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224", "vit_small_patch14_dinov2",
        "vit_base_patch32_clip_224", "deit_tiny_distilled_patch16_224",
        "vit_small_patch14_reg4_dinov2", "deit_tiny_patch16_224", "deit3_small_patch16_224",
        "vit_base_patch16_siglip_gap_224", "vit_medium_patch16_reg4_gap_256",
    ],
)  # fmt: skip
def test_models_that_have_a_name(name):
    theirs = live(timm.create_model(name, pretrained=False, depth=2, num_classes=5))
    img = torch.randn(1, 3, *theirs.patch_embed.img_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(img)
        assert (from_timm(theirs)(img) - expected).abs().max() < 1e-4 * max(1, expected.abs().max())


def test_nothing_is_shared():
    nothing_is_shared(peer("vit with registers"), from_timm)


REFUSED = [
    ({"global_pool": "prr"}, "global_pool='prr' of a VisionTransformer has no counterpart in xflash; only 'token' or"),
    ({"global_pool": "avg", "pool_include_prefix": True}, "pool_include_prefix=True of a VisionTransformer has no"),
    ({"qk_norm": True}, "blocks.0.attn.q_norm is a LayerNorm, which has no counterpart in xflash"),
    ({"scale_attn_norm": True}, "blocks.0.attn.norm is a LayerNorm, which"),
    ({"scale_mlp_norm": True}, "blocks.0.mlp.norm is a LayerNorm, which"),
    ({"norm_layer": "rmsnorm"}, "blocks.0.norm1 is a RmsNorm, which has no counterpart in xflash; known are LayerNorm"),
    ({"block_fn": ParallelThingsBlock}, "blocks.0 is a ParallelThingsBlock, which has no counterpart in xflash"),
    ({"mlp_layer": GluMlp}, "blocks.0.mlp.gate_last=True of a VisionTransformer has no counterpart"),
    ({"act_layer": nn.Hardswish}, "blocks.0.mlp.act is a Hardswish, which has no counterpart"),
    ({"dynamic_img_size": True, "dynamic_img_pad": True}, "dynamic_img_pad=True of a VisionTransformer has no"),
    ({"embed_norm_layer": partial(nn.LayerNorm, eps=1e-5)}, "patch_embed.norm is a LayerNorm, which has no"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_what_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        from_timm(VisionTransformer(**{**SIZES, **settings}))


def test_blocks_that_differ_are_refused():
    theirs = peer("vit")
    theirs.blocks[2].attn.num_heads = 3
    with pytest.raises(ValueError, match=r"blocks\.2 differs from blocks.0 in heads"):
        from_timm(theirs)
    theirs = peer("vit")
    theirs.norm.eps = 0.1
    with pytest.raises(ValueError, match="norm has another eps or bias than those of the blocks"):
        from_timm(theirs)


@pytest.mark.parametrize("name", ["resnet18", "eva02_tiny_patch14_224"])
def test_other_models_are_refused(name):
    with pytest.raises(TypeError, match="from_timm takes a VisionTransformer of timm, such as"):
        from_timm(timm.create_model(name, pretrained=False))
