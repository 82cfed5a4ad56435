"""What x-transformers does with scores, as steps of xflash: their flags and weights."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from ..base.shapes import Float, Int, Tensor
from .x_transformers_parts import Reader, feature, kind

__all__ = ["read_scores", "weight_function"]

# Their functions from scores to weights, by name.
WEIGHTS = {
    "softmax": "softmax",
    "sigmoid": "sigmoid",
    "one_hot_straight_through": "hard",
    "sparse_topk_attn": "softmax",
    "gumbel_softmax": "gumbel",
}


def weight_function(attn: Any) -> tuple[str, dict[str, Any]]:
    """The name of their function, '' of one that was given, and what it is told; ValueError for another axis."""
    fn = attn.attend.attn_fn
    inner, told = (fn.func, dict(fn.keywords)) if isinstance(fn, partial) else (fn, {})
    name = getattr(inner, "__name__", kind(inner))
    along = told.pop("dim", -1)
    known = inner in (F.softmax, F.sigmoid, F.gumbel_softmax) or inner.__module__.startswith("x_transformers")
    if known and (name not in WEIGHTS or along != -1):
        raise feature(f"attn_{name}", "no weight function of xflash's is the same")
    return name if known else "", told


def read_scores(
    attn: Any, peer: Any, cross: bool, index: Int[Tensor, " h"], reader: Reader
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The flags and weights of what happens between scores and values; index: which of their heads each of ours is."""
    attend = attn.attend
    name, told = weight_function(attn)
    weights: dict[str, Tensor] = {}
    flags: dict[str, Any] = {}
    steps = []
    if peer.cross_residual_attn if cross else peer.residual_attn:
        steps.append("residual")
    pre, post = attend.pre_softmax_talking_heads, attend.post_softmax_talking_heads
    if pre is not None or post is not None:
        steps.append("talking_heads")
        flags |= {"talking_heads_pre": pre is not None, "talking_heads_post": post is not None}
        if pre is not None:
            # Theirs adds what heads say to what they are.
            own = mixing(pre, index, reader)
            weights["pre"] = own + torch.eye(len(index), dtype=own.dtype, device=own.device)
        if post is not None:
            weights["post"] = mixing(post, index, reader)
        weights = {f"talking_heads.{k}": t for k, t in weights.items()}
    if attn.data_dependent_alibi is not None:
        by_query = kind(attn.data_dependent_alibi) == "PerRowDataDependentAlibi"
        steps.append("forget_by_query" if by_query else "forget")
        found, own = (read_by_query if by_query else read_forget)(attn.data_dependent_alibi, index, reader)
        flags, weights = flags | found, weights | own
    if attn.rel_proj_pos_bias is not None:
        steps.append("rel_proj")
        found, own = read_rel_proj(attn.rel_proj_pos_bias, index, reader)
        flags, weights = flags | found, weights | own
    if attend.softclamp_logits:
        steps.append("softclamp")
        flags["softclamp_value"] = float(attend.logit_softclamp_value)
    if attend.cope is not None:
        steps.append("cope")
        found, own = read_cope(attn, index, reader)
        flags, weights = flags | found, weights | own
    if attend.selective:
        steps.append("selective")
    if name == "sparse_topk_attn":
        steps.append("topk")
        flags |= {"topk_k": told["sparse_topk"], "topk_straight_through": told["straight_through"]}
    if attend.head_learned_sink:
        steps.append("learned_sink")
        weights["learned_sink.score"] = reader.take(attend.head_attn_sink).index_select(0, index)
    if attend.l2_distance:
        steps.append("l2_distance")
    if name == "sigmoid":
        flags["sigmoid_bias"] = 0.0
    if name == "gumbel_softmax":
        flags |= {"gumbel_temperature": float(told["tau"]), "gumbel_hard": told["hard"]}
    flags |= {"scores": tuple(steps) or None, "weight_fn": WEIGHTS.get(name, attend.attn_fn)}
    return flags, {f"reader.steps.{k}": t for k, t in weights.items()}


def mixing(conv: Any, index: Int[Tensor, " h"], reader: Reader) -> Float[Tensor, "h2 h"]:
    """How heads are mixed, in our order."""
    return reader.take(conv.weight)[:, :, 0, 0].index_select(0, index).index_select(1, index)


def read_cope(attn: Any, index: Int[Tensor, " h"], reader: Reader) -> tuple[dict[str, Any], dict[str, Tensor]]:
    module = attn.attend.cope
    if attn.num_mem_kv:
        raise feature("attn_use_cope", f"with attn_num_mem_kv={attn.num_mem_kv}, which count as first tokens")
    if module.talking_heads is not None and attn.max_attend_past is not None:
        raise feature("attn_cope_talking_heads", "with attn_max_attend_past: what it hides is mixed in")
    weights = {"cope.e": reader.take(module.pos_emb)}
    if module.talking_heads is not None:
        weights["cope.talk"] = mixing(module.talking_heads, index, reader)
    return {"cope_positions": module.max_pos, "cope_talking_heads": module.talking_heads is not None}, weights


def read_forget(module: Any, index: Int[Tensor, " h"], reader: Reader) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not module.causal or module.post_log_scale != 1:
        raise feature("attn_data_dependent_alibi", "in a bidirectional stack or with a scale")
    gate = module.to_forget_gates[0]
    found = {name: reader.take(t).index_select(0, index) for name, t in gate.named_parameters()}
    return {}, {f"forget.to_gate.{name}": t for name, t in found.items()}


def read_by_query(module: Any, index: Int[Tensor, " h"], reader: Reader) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if module.post_log_scale != 1:
        raise feature("attn_data_dependent_alibi", "with a scale")
    both = reader.take(module.to_forget_gates[0].weight).unflatten(0, (2, len(index), -1)).index_select(1, index)
    weights = {f"forget_by_query.to_{role}.weight": t.flatten(0, 1) for role, t in zip("qk", both, strict=True)}
    return {"forget_by_query_dim_head": both.shape[2]}, weights


def read_rel_proj(module: Any, index: Int[Tensor, " h"], reader: Reader) -> tuple[dict[str, Any], dict[str, Tensor]]:
    weights = {}
    for name, t in module.to_distance_weights[0].named_parameters():
        by_head = reader.take(t).unflatten(0, (len(index), -1))
        weights[f"rel_proj.to_weights.{name}"] = by_head.index_select(0, index).flatten(0, 1)
    weights["rel_proj.curves"] = reader.take(module.distance_bank)
    flags = {"rel_proj_num_distance_basis": module.num_distance_basis, "rel_proj_max_dist": module.max_dist}
    return flags, weights
