"""x-transformers' TransformerWrapper as the arguments and weights of xflash's."""

from typing import Any

import einx
import torch
from torch import nn

from ..base.shapes import Tensor
from ..layers.positions.angles import inverse_frequencies
from .x_transformers_parts import Reader, feature, kind, read_gain

__all__ = ["read_around", "read_head", "read_projection", "read_wrapper"]

Weights = dict[str, Tensor]


def read_wrapper(module: Any, reader: Reader, weights: Weights, tied: Tensor | None = None) -> dict[str, Any]:
    """The arguments of the wrapper; its weights are added to `weights`."""
    if kind(module.token_emb) != "TokenEmbedding":
        raise feature("token_emb", kind(module.token_emb))
    if module.token_emb.l2norm_embed != module.l2norm_embed:
        raise feature("l2norm_embed", "of the tokens differs from that of the positions")
    arguments = {
        "num_tokens": module.num_tokens,
        "l2norm_embed": module.l2norm_embed,
        **read_around(module, reader, weights),
        **read_projection(module, reader, weights),
        **read_embeds(module.embeds, reader, weights),
        **read_pooling(module, reader, weights),
        **read_mixture(module, reader, weights),
        **read_recycling(module, reader, weights),
    }
    taken = reader.take(module.token_emb.emb.weight) if tied is None else tied
    weights["embedding.token_emb.weight"] = taken
    return {**arguments, **read_head(module, module.num_tokens, reader, weights)}


def read_projection(module: Any, reader: Reader, weights: Weights) -> dict[str, Any]:
    """The argument that says how wide embeddings are, and the map from there to the stream."""
    if isinstance(module.project_emb, nn.Linear):
        weights["embedding.project_emb.weight"] = reader.take(module.project_emb.weight)
        weights["embedding.project_emb.bias"] = reader.take(module.project_emb.bias)
    return {"emb_dim": module.emb_dim if module.emb_dim != module.attn_layers.dim else None}


def read_around(module: Any, reader: Reader, weights: Weights) -> dict[str, Any]:
    """The arguments that models have whatever a token is: positions, norm, dropout and memory tokens."""
    memory = module.memory_tokens if hasattr(module, "memory_tokens") else None
    if memory is not None:
        if module.attn_layers.need_condition:
            # Theirs are normed with a row's condition, ours with none.
            raise feature("num_memory_tokens", f"{len(memory)}, with a condition")
        weights["attn_layers.memory_tokens.tokens"] = reader.take(memory)
    norm = kind(getattr(module, "post_emb_norm", None)) == "LayerNorm"
    if norm:
        weights["embedding.post_emb_norm.gain"] = read_gain(module.post_emb_norm, reader)
    return {
        "max_seq_len": module.max_seq_len or None,
        "emb_dropout": module.emb_dropout.p,
        "post_emb_norm": norm,
        "num_memory_tokens": None if memory is None else len(memory),
        **read_absolute(module.pos_emb, reader, weights),
    }


def read_absolute(pos_emb: Any, reader: Reader, weights: Weights) -> dict[str, Any]:
    """The arguments that say which absolute positions there are."""
    if kind(pos_emb) == "always":
        return {"use_abs_pos_emb": False}
    if kind(pos_emb) == "ScaledSinusoidalEmbedding":
        own = inverse_frequencies(2 * len(pos_emb.inv_freq), 10000.0, pos_emb.inv_freq.device)
        if not torch.allclose(reader.take(pos_emb.inv_freq).float(), own, rtol=1e-6):
            raise feature("scaled_sinu_pos_emb", "with a base other than 10000, or with frequencies that were rounded")
        weights["embedding.pos_emb.scale"] = reader.take(pos_emb.scale).reshape(())
        return {"scaled_sinu_pos_emb": True}
    if kind(pos_emb) != "AbsolutePositionalEmbedding":
        raise feature("pos_emb", kind(pos_emb))
    weights["embedding.pos_emb.weight"] = reader.take(pos_emb.emb.weight) * pos_emb.scale
    return {"use_abs_pos_emb": True}


def read_embeds(embeds: Any, reader: Reader, weights: Weights) -> dict[str, Any]:
    """The argument that says which further embeddings there are."""
    counts = {}
    for key, table in ({} if embeds is None else embeds).items():
        if type(table) is not nn.Embedding or table.max_norm is not None:
            raise feature("embed_num_tokens", f"with {key} a {kind(table)}")
        counts[key.removesuffix("_embed")] = table.num_embeddings
        weights[f"embedding.embeds.{key}.weight"] = reader.take(table.weight)
    return {"embed_num_tokens": counts} if counts else {}


def read_pooling(module: Any, reader: Reader, weights: Weights) -> dict[str, Any]:
    """The arguments that say how the outputs of a row are pooled."""
    if module.average_pool_embed:
        return {"average_pool_embed": True}
    if module.attn_pool is not None:
        return read_pool(module, reader, weights)
    if module.cls_token is None:
        return {}
    if module.attn_layers.causal:
        raise feature("use_cls_token", "in a causal stack, where it sees no other token")
    weights["pooled.cls_tokens.tokens"] = reader.take(module.cls_token)
    return {"use_cls_token": True, "num_cls_tokens": module.num_cls_tokens}


def read_pool(module: Any, reader: Reader, weights: Weights) -> dict[str, Any]:
    """The arguments of pooled tokens, which are what their encoders give in place of logits: the head goes unread."""
    pool, prefix = module.attn_pool, "pooled.attn_pool"
    if module.attn_layers.causal:
        raise feature("attn_pool", "of a Decoder, whose pooled tokens are beside its logits")
    if module.to_logits is None or pool.add_residual or kind(pool.pooler) != "Attention":
        raise feature("attn_pool", "with return_only_embed, which leaves it out, or of more than one layer")
    weights[f"{prefix}.queries"] = reader.take(pool.queries)
    attn, block = pool.pooler, f"{prefix}.reader.branches.0.block"
    q, k, v, out = (reader.take(linear.weight) for linear in (attn.to_q, attn.to_k, attn.to_v, attn.to_out))
    weights |= {f"{block}.to_q.weight": q, f"{block}.to_out.weight": out}
    weights[f"{block}.key_value.weight"] = einx.id("(g k) d, (g k) d -> (g (k + k)) d", k, v, g=attn.heads)
    for parameter in module.to_logits.parameters() if isinstance(module.to_logits, nn.Module) else ():
        reader.take(parameter)
    width = None if len(q[0]) == module.attn_layers.dim else len(q[0])
    sizes = {"num_pooled_tokens": len(pool.queries), "dim_pooled_tokens": width}
    return {"attn_pool": True, "attn_pool_depth": 1, **sizes}


def read_mixture(module: Any, reader: Reader, weights: Weights) -> dict[str, Any]:
    """The arguments of a mixture of softmaxes."""
    if module.to_mixture is None:
        return {}
    weights["mixture.to_mixture.weight"] = reader.take(module.to_mixture[0].weight)
    weights["mixture.to_weights.weight"] = reader.take(module.combine_mixture.weight)
    return {"mixture_of_softmax": True, "mixture_of_softmax_k": module.combine_mixture.out_features}


def read_recycling(module: Any, reader: Reader, weights: Weights) -> dict[str, Any]:
    """The arguments of recycling."""
    if not module.recycling:
        return {}
    if module.num_memory_tokens:
        raise feature("recycling", "with num_memory_tokens, whose outputs are recycled too there")
    weights["passes.project.weight"] = reader.take(module.recycled_proj.weight)
    return {"recycling": True, "train_max_recycle_steps": module.train_max_recycle_steps}


def read_head(module: Any, num_tokens: int, reader: Reader, weights: Weights) -> dict[str, Any]:
    """The arguments of the projection to logits."""
    head = module.to_logits
    if head is None or getattr(module, "attn_pool", None) is not None:
        return {"return_only_embed": True}
    if not isinstance(head, nn.Module) and "tie_embedding_scale" in vars(module):
        scale = module.tie_embedding_scale
        return {"return_only_embed": False, "tie_embedding": True, "tie_embedding_scale": scale}
    if isinstance(head, nn.ModuleList):
        weights |= {f"to_logits.{name}": reader.take(weight) for name, weight in head.named_parameters()}
        width = len(weights["to_logits.0.weight"])
        several = {"num_output_heads": len(head), "logits_dim": width if width != num_tokens else None}
        return {"return_only_embed": False, **several}
    if type(head) is not nn.Linear:
        raise feature("to_logits", kind(head))
    weights["to_logits.weight"] = reader.take(head.weight)
    if head.bias is not None:
        weights["to_logits.bias"] = reader.take(head.bias)
    width = head.out_features if head.out_features != num_tokens else None
    return {"return_only_embed": False, "logits_dim": width, "logits_bias": head.bias is not None}
