"""ViT (https://arxiv.org/abs/2010.11929), and what all vision transformers of transformers share."""

from collections.abc import Callable
from typing import Any

from .family import Family, Flags, families, vision
from .front import Front
from .llama import ACTIVATIONS
from .settings import Settings

__all__ = ["ATTENTION", "CLASS", "EMBEDDINGS", "HEADS", "VIT", "images", "vit"]

EMBEDDINGS = """
    embeddings.cls_token                                pooled.cls_tokens.tokens
    embeddings.position_embeddings                      embedding.pos_emb.weight
    embeddings.patch_embeddings.projection.weight       embedding.patch_emb.project.weight
    embeddings.patch_embeddings.projection.bias         embedding.patch_emb.project.bias
    layernorm.weight                                    attn_layers.final_norm.gain
    layernorm.bias                                      attn_layers.final_norm.bias
    classifier.weight                                   to_logits.weight
    classifier.bias                                     to_logits.bias
"""
# Files have the names of older models.
ATTENTION = """
    encoder.layer.{i}.attention.attention.query.weight  attn.block.query_key_value.weight[q]
    encoder.layer.{i}.attention.attention.query.bias    attn.block.query_key_value.bias[q]
    encoder.layer.{i}.attention.attention.key.weight    attn.block.query_key_value.weight[k]
    encoder.layer.{i}.attention.attention.key.bias      attn.block.query_key_value.bias[k]
    encoder.layer.{i}.attention.attention.value.weight  attn.block.query_key_value.weight[v]
    encoder.layer.{i}.attention.attention.value.bias    attn.block.query_key_value.bias[v]
    encoder.layer.{i}.attention.output.dense.weight     attn.block.to_out.weight
    encoder.layer.{i}.attention.output.dense.bias       attn.block.to_out.bias
    {layers}.{i}.attention.q_proj.weight                attn.block.query_key_value.weight[q]
    {layers}.{i}.attention.q_proj.bias                  attn.block.query_key_value.bias[q]
    {layers}.{i}.attention.k_proj.weight                attn.block.query_key_value.weight[k]
    {layers}.{i}.attention.k_proj.bias                  attn.block.query_key_value.bias[k]
    {layers}.{i}.attention.v_proj.weight                attn.block.query_key_value.weight[v]
    {layers}.{i}.attention.v_proj.bias                  attn.block.query_key_value.bias[v]
    {layers}.{i}.attention.o_proj.weight                attn.block.to_out.weight
    {layers}.{i}.attention.o_proj.bias                  attn.block.to_out.bias
    {layers}.{i}.mlp.fc1.weight                         ff.block.to_inner.weight
    {layers}.{i}.mlp.fc1.bias                           ff.block.to_inner.bias
    {layers}.{i}.mlp.fc2.weight                         ff.block.to_out.weight
    {layers}.{i}.mlp.fc2.bias                           ff.block.to_out.bias
"""
VIT = (
    ATTENTION.replace("{layers}", "layers")
    + "".join(
        f"""
    {layers}.{{i}}.layernorm_before.weight   attn.before.gain
    {layers}.{{i}}.layernorm_before.bias     attn.before.bias
    {layers}.{{i}}.layernorm_after.weight    ff.before.gain
    {layers}.{{i}}.layernorm_after.bias      ff.before.bias
    """
        for layers in ("encoder.layer", "layers")
    )
    + """
    encoder.layer.{i}.intermediate.dense.weight  ff.block.to_inner.weight
    encoder.layer.{i}.intermediate.dense.bias    ff.block.to_inner.bias
    encoder.layer.{i}.output.dense.weight        ff.block.to_out.weight
    encoder.layer.{i}.output.dense.bias          ff.block.to_out.bias
"""
)


def vit(settings: Settings) -> Flags:
    """Flags of an encoder of patches with a class token in front, whose position is part of it here."""
    dim, heads = settings.need("hidden_size"), settings.need("num_attention_heads")
    stack: dict[str, Any] = {
        "dim": dim,
        "depth": settings.need("num_hidden_layers"),
        "heads": heads,
        "layers": "attn ff",
        "norm": "layernorm",
        "norm_bias": True,
        "norm_eps": settings.need("layer_norm_eps"),
        "attn_dim_head": settings("head_dim", dim // heads),
        "attn_qkv_bias": settings("qkv_bias", True),
        "attn_out_bias": True,
        "attn_dropout": settings("attention_probs_dropout_prob", 0.0),
        "ff_activation": settings.among("hidden_act", ACTIVATIONS, "gelu"),
    }
    if settings.kind in ("vit", "deit"):
        stack["ff_dim"] = settings.need("intermediate_size")
    # Of the pooler and of the decoder for hidden patches, which are left out.
    settings.without_effect("encoder_stride", "pooler_output_size", "pooler_act")
    model = {
        "image_size": size(settings("image_size", 224)),
        "patch_size": size(settings("patch_size", 16)),
        "channels": settings("num_channels", 3),
        "patch_norm": False,
        # Dropout of the updates is left out; it acts in training alone.
        "emb_dropout": settings("hidden_dropout_prob", 0.0),
        "num_classes": len(settings.config.get("id2label") or range(2)),
        "pool": "cls",
    }
    return Flags(stack, model)


def size(value: Any) -> Any:
    """One number, or height and width."""
    return tuple(value) if isinstance(value, list) else value


HEADS = {"ForImageClassification": {}, "Model": {"num_classes": None, "pool": "cls"}}
BESIDE = r"pooler\..*|embeddings\.mask_token"
POSITIONS, PROJECTION = "embeddings.position_embeddings", "embeddings.patch_embeddings.projection.weight"
CLASS = "embeddings.cls_token"


def images(
    kind: str, flags: Callable[[Settings], Flags], weights: str, *tokens: str, placed: int | None = None
) -> Family:
    """A family of vision transformers with learned tokens, of which `placed` have positions (None: all)."""
    front = Front((CLASS, *tokens), POSITIONS, PROJECTION, placed)
    return Family(flags, EMBEDDINGS + weights, vision, HEADS, f"{kind}.", BESIDE, {}, front.made)


families["vit"] = images("vit", vit, VIT)
