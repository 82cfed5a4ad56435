"""What x-transformers' layers read of the stream, and how they join it, as xflash's slots and their weights."""

from typing import Any

import torch
from torch import nn

from ..base.shapes import Tensor
from .x_transformers_parts import Reader, feature, kind, read_gain

__all__ = ["TINY", "check_skips", "factor_of", "read_condition", "read_join", "read_reads", "residual_slots"]

# Their RMS norms divide by max(norm, 1e-12), with nothing added under the root.
TINY = 1e-24
JOINS = {"Residual": "add", "GRUGating": "gru", "HyperConnection": "hyper"}

Weights = dict[str, Tensor]


def residual_slots(peer: Any) -> dict[str, Any]:
    """The flags of the slots, alike in the whole stack."""
    first = peer.layers[0][2]
    gains = any(r.residual_scale is not None for _, _, r in peer.layers if hasattr(r, "residual_scale"))
    constants = any(getattr(r, "scale_residual_constant", 1) != 1 for _, _, r in peer.layers)
    # With a norm between the gain and the sum, the gain belongs to the block.
    scaled = any(kind(part) == "LayerScale" for _, layer, _ in peer.layers for part in layer.modules())
    constant = 1.0 if peer.residual_scale is None else peer.residual_scale
    chosen = {"constant": constant != 1, "macaron": is_macaron(peer, constant != 1), "layerscale": scaled}
    names = [name for name, there in chosen.items() if there and not peer.sandwich_norm]
    names += ["adaptive_layerscale"] * peer.post_branch_fn_needs_condition
    flags: dict[str, Any] = {"scale": " ".join(names) or None}
    if "constant" in names:
        flags["constant_factor"] = constant
    flags["join"] = JOINS[kind(first)]
    if flags["join"] == "add" and (gains or constants):
        flags["join"] = "scaled"
    elif flags["join"] == "gru" and gains:
        flags["gru_gain"] = True
    elif flags["join"] == "hyper":
        # Their balancing is over one row of each matrix, whose entries become ones whatever they were.
        flags |= {"hyper_streams": first.num_residual_streams, "hyper_mixing": "sum"}
        if any(r.num_input_views != 1 for _, _, r in peer.layers):
            flags["hyper_views"] = True
    mixers = [mixer for mixer in peer.layer_integrators if mixer is not None]
    listed = {"unet": peer.unet_skips, "lime": mixers, "reinject": peer.reinject_input}
    flags["reads"] = " ".join(name for name, there in listed.items() if there) or None
    if peer.learned_reinject_input_gate is not None:
        if not peer.reinject_input:
            raise feature("learned_reinject_input_gate", "without reinject_input")
        flags["reinject_gate"] = True
    if any(mixer.multiple_views for mixer in mixers):
        flags["lime_views"] = True
    if mixers:
        flags |= {"lime_eps": TINY, "lime_weights": "relu" if kind(mixers[0].to_weights[-1]) == "ReLU" else "softmax"}
    return flags


def is_macaron(peer: Any, constant: bool) -> bool:
    """Whether feed-forward layers are halved, besides the one factor that all layers may have."""
    around = [[part for part in layer.modules() if kind(part) == "Scale"] for _, layer, _ in peer.layers]
    return any(len(scales) > constant for scales, name in zip(around, peer.layer_types, strict=True) if name == "f")


def factor_of(scale: Any, slots: dict[str, Any]) -> float:
    """What a factor around a layer leaves to its weights: 1 where a slot has it."""
    named = (slots["scale"] or "").split()
    inner = kind(scale.fn) == "FeedForward" and "macaron" in named
    return 1.0 if scale.scale is None or inner or "constant" in named else scale.scale


def read_condition(peer: Any, norm: str, slots: dict[str, Any]) -> dict[str, Any]:
    """The width of the condition; ValueError where what is conditioned is not what it is here."""
    if not peer.need_condition:
        return {}
    if peer.sandwich_norm:
        raise feature("sandwich_norm", f"with norm={norm!r} and scale={slots['scale']!r}")
    if kind(peer.adaptive_mlp) != "Identity":
        raise feature("adaptive_condition_mlp", True)
    return {"dim_condition": peer.dim_condition}


def read_join(residual: Any, slots: dict[str, Any], like: Tensor, reader: Reader) -> Weights:
    """The weights of one layer's join; `like`: a weight of the layer."""
    if slots["join"] == "scaled":
        scale, constant = residual.residual_scale, residual.scale_residual_constant
        full = like.new_ones(like.shape[0]) if scale is None else reader.take(scale)
        return {"gain": full * constant}
    if slots["join"] == "gru":
        gain = {} if residual.residual_scale is None else {"gain": reader.take(residual.residual_scale)}
        gates = {"update.weight": "weight_ih", "update.bias": "bias_ih"}
        gates |= {"stream.weight": "weight_hh", "stream.bias": "bias_hh"}
        return gain | {ours: reader.take(getattr(residual.gru, theirs)) for ours, theirs in gates.items()}
    if slots["join"] == "hyper":
        # The other columns are those of the matrices that mix streams.
        views = residual.num_input_views
        chosen = 0 if views == 1 else slice(views)
        found = {"reads": reader.take(residual.static_alpha)[:, chosen].contiguous()}
        found["to_reads"] = reader.take(residual.dynamic_alpha_fn)[:, chosen].contiguous()
        names = {"writes": "static_beta", "to_writes": "dynamic_beta_fn"}
        names |= {"reads_scale": "dynamic_alpha_scale", "writes_scale": "dynamic_beta_scale"}
        found |= {ours: reader.take(getattr(residual, theirs)) for ours, theirs in names.items()}
        return found | {"gain": reader.take(residual.norm.weight)}
    return {}


def read_reads(peer: Any, i: int, reader: Reader) -> Weights:
    """The weights of what layer i reads beside its stream."""
    found: Weights = {}
    if peer.reinject_input and i == peer.layers_execute_order[0]:
        found["reinject.project.weight"] = reader.take(peer.reinject_input_proj.weight)
        if peer.learned_reinject_input_gate is not None:
            found["reinject.to_gate.weight"] = reader.take(peer.learned_reinject_input_gate.weight)
    if (skip := peer.skip_combines[i]) is not None:
        found["unet.combine.weight"] = reader.take(skip.combine.weight)
    views = any(mixer is not None and mixer.multiple_views for mixer in peer.layer_integrators)
    if (mixer := peer.layer_integrators[i]) is not None:
        norm, score = mixer.to_weights[:2]
        if not isinstance(score, nn.Linear):
            raise feature("integrate_layers", kind(score))
        found["lime.gain"] = read_gain(norm, reader)
        # Their first attention reads one mixture, which is then that of queries, of keys and of values.
        times = 3 if peer.layer_types[i] == "a" and views and not mixer.multiple_views else 1
        found |= {f"lime.score.{name}": torch.cat([reader.take(t)] * times) for name, t in score.named_parameters()}
    return found


def check_skips(peer: Any, depth: int) -> None:
    """ValueError unless the skips of a peer with `depth` repetitions of its layout are those that xflash has."""
    period = len(peer.layer_types) // depth
    for i, skip in enumerate(peer.skip_combines):
        mirrored = (depth - 1 - i // period) * period
        wanted = mirrored if i % period == 0 and mirrored < i else None
        if (None if skip is None else skip.prev_layer_ind) != wanted:
            raise feature("unet_skips", f"of layer {i}, in a column that repeats its layout {depth} times")
