"""DINOv2 (https://arxiv.org/abs/2304.07193), with registers too (https://arxiv.org/abs/2309.16588)."""

from .family import Flags, families
from .settings import Settings
from .vit import ATTENTION, images, vit

__all__ = ["dinov2", "dinov2_with_registers"]

TOKENS = "embeddings.register_tokens"
WEIGHTS = (
    ATTENTION.replace("{layers}", "encoder.layer")
    + """
    encoder.layer.{i}.norm1.weight            attn.before.gain
    encoder.layer.{i}.norm1.bias              attn.before.bias
    encoder.layer.{i}.layer_scale1.lambda1    attn.scale.layerscale.gain
    encoder.layer.{i}.norm2.weight            ff.before.gain
    encoder.layer.{i}.norm2.bias              ff.before.bias
    encoder.layer.{i}.layer_scale2.lambda1    ff.scale.layerscale.gain
"""
)
WEIGHTS += """
    encoder.layer.{i}.mlp.gate_proj.weight    ff.block.to_inner.weight[gate]
    encoder.layer.{i}.mlp.gate_proj.bias      ff.block.to_inner.bias[gate]
    encoder.layer.{i}.mlp.up_proj.weight      ff.block.to_inner.weight[up]
    encoder.layer.{i}.mlp.up_proj.bias        ff.block.to_inner.bias[up]
    encoder.layer.{i}.mlp.down_proj.weight    ff.block.to_out.weight
    encoder.layer.{i}.mlp.down_proj.bias      ff.block.to_out.bias
    encoder.layer.{i}.mlp.weights_in.weight   ff.block.to_inner.weight[gate up]
    encoder.layer.{i}.mlp.weights_in.bias     ff.block.to_inner.bias[gate up]
    encoder.layer.{i}.mlp.weights_out.weight  ff.block.to_out.weight
    encoder.layer.{i}.mlp.weights_out.bias    ff.block.to_out.bias
"""


def dinov2(settings: Settings) -> Flags:
    """ViT with a layerscale, whose head reads the class token and the mean of the patches."""
    stack, model = vit(settings)
    if not isinstance(model["image_size"], int) and len(set(model["image_size"])) > 1:
        # There each position is taken for another one.
        raise settings.error("image_size", model["image_size"], "only that of a square has")
    inner = int(stack["dim"] * settings("mlp_ratio", 4))
    if settings("use_swiglu_ffn", False):
        settings.without_effect("hidden_act")
        inner = (int(inner * 2 / 3) + 7) // 8 * 8
        stack |= {"ff_glu": True, "ff_activation": "silu"}
    stack |= {"ff_dim": inner, "scale": "layerscale"}
    # What its gains began with, training, and what a backbone gives out.
    settings.without_effect("layerscale_value", "drop_path_rate", "use_mask_token")
    settings.without_effect(*BACKBONE)
    return Flags(stack, {**model, "pool": "cls_mean"})


def dinov2_with_registers(settings: Settings) -> Flags:
    flags = dinov2(settings)
    flags.model.update(num_register_tokens=settings("num_register_tokens", 4), pos_emb_antialias=True)
    return flags


BACKBONE = ("out_features", "out_indices", "stage_names", "apply_layernorm", "reshape_hidden_states")
families["dinov2"] = images("dinov2", dinov2, WEIGHTS)
families["dinov2_with_registers"] = images(
    "dinov2_with_registers", dinov2_with_registers, f"{TOKENS} embedding.register_tokens\n{WEIGHTS}", TOKENS, placed=1
)
