"""x-transformers' ViTransformerWrapper as the arguments and weights of xflash's."""

import math
from typing import Any

import einx

from ..base.shapes import Tensor
from .x_transformers_parts import Reader, feature, kind, read_gain

__all__ = ["read_vit"]


def read_vit(module: Any, reader: Reader, weights: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of the vision transformer; its weights are added to `weights`."""
    if module.attn_layers.causal:
        raise feature("attn_layers", f"a causal {kind(module.attn_layers)} in a ViTransformerWrapper")
    before, project, after = module.patch_to_embedding
    side = math.isqrt(module.pos_embedding.shape[1])
    size = module.patch_size
    weights["embedding.patch_emb.before.gain"] = read_gain(before, reader)
    weights["embedding.patch_emb.project.weight"] = reader.take(project.weight)
    weights["embedding.patch_emb.project.bias"] = reader.take(project.bias)
    weights["embedding.patch_emb.after.gain"] = read_gain(after, reader)
    weights["embedding.pos_emb.weight"] = einx.id("1 (y x) d -> y x d", reader.take(module.pos_embedding), y=side)
    arguments = {
        "image_size": side * size,
        "patch_size": size,
        "channels": project.in_features // size**2,
        "emb_dropout": module.dropout.p,
    }
    if kind(module.post_emb_norm) == "LayerNorm":
        arguments["post_emb_norm"] = True
        weights["embedding.post_emb_norm.gain"] = read_gain(module.post_emb_norm, reader)
    if module.has_register_tokens:
        weights["embedding.register_tokens"] = reader.take(module.register_tokens)
        arguments["num_register_tokens"] = len(module.register_tokens)
    if kind(module.mlp_head) == "Linear":
        weights["to_logits.weight"] = reader.take(module.mlp_head.weight)
        weights["to_logits.bias"] = reader.take(module.mlp_head.bias)
        arguments["num_classes"] = module.mlp_head.out_features
    elif kind(module.mlp_head) != "Identity":
        raise feature("mlp_head", kind(module.mlp_head))
    return arguments
