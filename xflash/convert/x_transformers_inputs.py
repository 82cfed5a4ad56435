"""x-transformers' models of vectors and of numbers as the arguments and weights of xflash's."""

from typing import Any

from torch import nn

from ..base.shapes import Tensor
from .x_transformers_model import read_around, read_head, read_projection
from .x_transformers_parts import Reader, feature, kind

__all__ = ["read_continuous", "read_several", "read_xval"]

Weights = dict[str, Tensor]


def read_continuous(module: Any, reader: Reader, weights: Weights) -> dict[str, Any]:
    """The arguments of a ContinuousTransformerWrapper; its weights are added to `weights`."""
    arguments = read_around(module, reader, weights)
    for name, ours in (("project_in", "embedding.project_in"), ("project_out", "project_out")):
        linear = getattr(module, name)
        if type(linear) is nn.Linear and linear.bias is None:
            weights[f"{ours}.weight"] = reader.take(linear.weight)
        elif kind(linear) != "Identity":
            raise feature(name, kind(linear))
    widths = {"dim_in": getattr(module.project_in, "in_features", None)}
    widths["dim_out"] = getattr(module.project_out, "out_features", None)
    return {**arguments, **widths, "average_pool_embed": module.average_pool_embed}


def read_several(module: Any, reader: Reader, weights: Weights) -> dict[str, Any]:
    """The arguments of a MultiInputTransformerWrapper; its weights are added to `weights`."""
    counts = {}
    for key, table in module.embeds.items():
        counts[key.removesuffix("_embed")] = table.num_embeddings
        weights[f"embedding.embeds.{key}.weight"] = reader.take(table.weight)
    for name, head in (module.to_logits or {}).items():
        weights[f"to_logits.{name}_logits.weight"] = reader.take(head.weight)
    return {
        "num_tokens": counts,
        "return_only_embed": module.to_logits is None,
        **read_around(module, reader, weights),
        **read_projection(module, reader, weights),
    }


def read_xval(module: Any, reader: Reader, weights: Weights) -> dict[str, Any]:
    """The arguments of an XValTransformerWrapper; its weights are added to `weights`."""
    number = module.to_numerical_output[0]
    weights["to_number.weight"], weights["to_number.bias"] = reader.take(number.weight), reader.take(number.bias)
    weights["embedding.token_emb.weight"] = reader.take(module.token_emb.emb.weight)
    count = module.token_emb.emb.num_embeddings
    arguments = read_around(module, reader, weights)
    tied = not isinstance(module.to_logits, nn.Module)
    head = {"tie_embedding": True, "tie_embedding_scale": module.attn_layers.dim**-0.5, "logits_bias": False}
    return {
        "num_tokens": count,
        "numerical_token_id": module.numerical_token_id,
        **arguments,
        **(head if tied else read_head(module, count, reader, weights)),
    }
