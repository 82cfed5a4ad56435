"""What x-transformers does with scores, as steps of xflash: their flags and weights."""

from collections.abc import Callable
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
    name, told = weight_function(attn)
    steps = ["residual"] if (peer.cross_residual_attn if cross else peer.residual_attn) else []
    flags: dict[str, Any] = {}
    weights: dict[str, Tensor] = {}
    for step, (there, read) in STEPS.items():
        if there(attn):
            steps.append(step)
            found, own = read(attn, index, reader)
            flags |= {f"{step}_{flag}": value for flag, value in found.items()}
            weights |= {f"reader.steps.{step}.{weight}": t for weight, t in own.items()}
    if name == "sigmoid":
        flags["sigmoid_bias"] = 0.0
    if name == "gumbel_softmax":
        flags |= {"gumbel_temperature": float(told["tau"]), "gumbel_hard": told["hard"]}
    return {**flags, "scores": tuple(steps) or None, "weight_fn": WEIGHTS.get(name, attn.attend.attn_fn)}, weights


Step = tuple[dict[str, Any], dict[str, Tensor]]


def mixing(conv: Any, index: Int[Tensor, " h"], reader: Reader) -> Float[Tensor, "h2 h"]:
    """How heads are mixed, in our order."""
    return reader.take(conv.weight)[:, :, 0, 0].index_select(0, index).index_select(1, index)


def read_talking(attn: Any, index: Int[Tensor, " h"], reader: Reader) -> Step:
    pre, post = attn.attend.pre_softmax_talking_heads, attn.attend.post_softmax_talking_heads
    weights = {name: mixing(conv, index, reader) for name, conv in (("pre", pre), ("post", post)) if conv is not None}
    if pre is not None:
        # Theirs adds what heads say to what they are.
        weights["pre"] = weights["pre"] + torch.eye(len(index), dtype=pre.weight.dtype, device=index.device)
    return {"pre": pre is not None, "post": post is not None}, weights


def read_forget(attn: Any, index: Int[Tensor, " h"], reader: Reader) -> Step:
    module = attn.data_dependent_alibi
    if not module.causal or module.post_log_scale != 1:
        raise feature("attn_data_dependent_alibi", "in a bidirectional stack or with a scale")
    gate = module.to_forget_gates[0]
    return {}, {f"to_gate.{name}": reader.take(t).index_select(0, index) for name, t in gate.named_parameters()}


def read_by_query(attn: Any, index: Int[Tensor, " h"], reader: Reader) -> Step:
    module = attn.data_dependent_alibi
    if module.post_log_scale != 1:
        raise feature("attn_data_dependent_alibi", "with a scale")
    both = reader.take(module.to_forget_gates[0].weight).unflatten(0, (2, len(index), -1)).index_select(1, index)
    weights = {f"to_{role}.weight": t.flatten(0, 1) for role, t in zip("qk", both, strict=True)}
    return {"dim_head": both.shape[2]}, weights


def read_rel_proj(attn: Any, index: Int[Tensor, " h"], reader: Reader) -> Step:
    module = attn.rel_proj_pos_bias
    weights = {"curves": reader.take(module.distance_bank)}
    for name, t in module.to_distance_weights[0].named_parameters():
        by_head = reader.take(t).unflatten(0, (len(index), -1))
        weights[f"to_weights.{name}"] = by_head.index_select(0, index).flatten(0, 1)
    return {"num_distance_basis": module.num_distance_basis, "max_dist": module.max_dist}, weights


def read_cope(attn: Any, index: Int[Tensor, " h"], reader: Reader) -> Step:
    module = attn.attend.cope
    if attn.num_mem_kv:
        raise feature("attn_use_cope", f"with attn_num_mem_kv={attn.num_mem_kv}, which count as first tokens")
    if module.talking_heads is not None and attn.max_attend_past is not None:
        raise feature("attn_cope_talking_heads", "with attn_max_attend_past: what it hides is mixed in")
    weights = {"e": reader.take(module.pos_emb)}
    if module.talking_heads is not None:
        weights["talk"] = mixing(module.talking_heads, index, reader)
    return {"positions": module.max_pos, "talking_heads": module.talking_heads is not None}, weights


def read_topk(attn: Any, index: Int[Tensor, " h"], reader: Reader) -> Step:
    _, told = weight_function(attn)
    return {"k": told["sparse_topk"], "straight_through": told["straight_through"]}, {}


def read_softclamp(attn: Any, index: Int[Tensor, " h"], reader: Reader) -> Step:
    return {"value": float(attn.attend.logit_softclamp_value)}, {}


def read_sink(attn: Any, index: Int[Tensor, " h"], reader: Reader) -> Step:
    return {}, {"score": reader.take(attn.attend.head_attn_sink).index_select(0, index)}


def read_zero(attn: Any, index: Int[Tensor, " h"], reader: Reader) -> Step:
    if weight_function(attn)[0] == "sparse_topk_attn":
        raise feature("attn_add_zero_kv", "with attn_sparse_topk, where the key of zeros is one of the best too")
    return {}, {}


def read_nothing(attn: Any, index: Int[Tensor, " h"], reader: Reader) -> Step:
    return {}, {}


def talks(attn: Any) -> bool:
    return attn.attend.pre_softmax_talking_heads is not None or attn.attend.post_softmax_talking_heads is not None


# Ours, in the order in which theirs happen: whether it is there, and what it is told.
STEPS: dict[str, tuple[Callable[[Any], bool], Callable[[Any, Tensor, Reader], Step]]] = {
    "talking_heads": (talks, read_talking),
    "forget": (lambda attn: kind(attn.data_dependent_alibi) == "DataDependentAlibi", read_forget),
    "forget_by_query": (lambda attn: kind(attn.data_dependent_alibi) == "PerRowDataDependentAlibi", read_by_query),
    "rel_proj": (lambda attn: attn.rel_proj_pos_bias is not None, read_rel_proj),
    "softclamp": (lambda attn: attn.attend.softclamp_logits, read_softclamp),
    "cope": (lambda attn: attn.attend.cope is not None, read_cope),
    "selective": (lambda attn: attn.attend.selective, read_nothing),
    "topk": (lambda attn: weight_function(attn)[0] == "sparse_topk_attn", read_topk),
    "learned_sink": (lambda attn: attn.attend.head_learned_sink, read_sink),
    "zero_key": (lambda attn: attn.attend.add_zero_kv, read_zero),
    "l2_distance": (lambda attn: attn.attend.l2_distance, read_nothing),
}
