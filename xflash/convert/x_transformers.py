"""Weights from x-transformers (https://github.com/lucidrains/x-transformers, made against 2.31.10)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from ..base.shapes import Tensor
from ..flags.layout import LayerSpec, layout_text
from ..stack.face import AttentionLayers
from ..stack.stacks import CrossAttender, Decoder, Encoder
from ..wrappers.continuous import ContinuousTransformerWrapper
from ..wrappers.multi_input import MultiInputTransformerWrapper
from ..wrappers.transformer import TransformerWrapper
from ..wrappers.vit import ViTransformerWrapper
from ..wrappers.xtransformer import XTransformer
from ..wrappers.xval import XValTransformerWrapper
from .x_transformers_blocks import read_attention
from .x_transformers_ff import read_ff
from .x_transformers_inputs import read_continuous, read_several, read_xval
from .x_transformers_model import read_wrapper
from .x_transformers_parts import Reader, check_parts, feature, kind, memory_length, read_gain, read_norm
from .x_transformers_positions import read_positions
from .x_transformers_residual import TINY, check_skips, factor_of, read_condition, read_join, read_reads, residual_slots
from .x_transformers_vit import read_vit

__all__ = ["from_x_transformers"]

STACKS = {
    "Encoder": Encoder,
    "Decoder": Decoder,
    "CrossAttender": CrossAttender,
    "AttentionLayers": AttentionLayers,
}
# Those that divide by the length of a token, to which nothing is added.
EPS_FREE = ("rmsnorm", "scalenorm", "simple_rmsnorm", "adaptive_rmsnorm")
WRAPPERS: dict[str, type] = {
    "TransformerWrapper": TransformerWrapper,
    "ViTransformerWrapper": ViTransformerWrapper,
    "ContinuousTransformerWrapper": ContinuousTransformerWrapper,
    "MultiInputTransformerWrapper": MultiInputTransformerWrapper,
    "XValTransformerWrapper": XValTransformerWrapper,
}
READERS: dict[str, Callable[..., dict[str, Any]]] = {
    "TransformerWrapper": read_wrapper,
    "ContinuousTransformerWrapper": read_continuous,
    "MultiInputTransformerWrapper": read_several,
    "XValTransformerWrapper": read_xval,
}
NORMS = {"LayerNorm": "layernorm", "RMSNorm": "rmsnorm", "ScaleNorm": "scalenorm", "SimpleRMSNorm": "simple_rmsnorm"}
NORMS |= {
    "DynamicTanh": "dynamic_tanh",
    "AdaptiveLayerNorm": "adaptive_layernorm",
    "AdaptiveRMSNorm": "adaptive_rmsnorm",
}


Weights = dict[str, Tensor]


def from_x_transformers(
    module: nn.Module,
) -> (
    TransformerWrapper
    | ViTransformerWrapper
    | ContinuousTransformerWrapper
    | MultiInputTransformerWrapper
    | XValTransformerWrapper
    | XTransformer
    | AttentionLayers
):
    """The xflash module with the weights and outputs of x-transformers' XTransformer, a wrapper or a stack.

    The new module shares nothing with the old one, and has its dtype, device and mode. TypeError for another class;
    ValueError, with the name of the feature, for what xflash has no counterpart of. Constants (branch scales, the T5
    bias' sqrt(dim_head), the 1/sqrt(dim) of learned positions) are multiplied into the weights beside them, heads are
    put in xflash's order. At masked positions xflash gives zeros where x-transformers gives whatever comes out, and
    `layer_dropout` drops rows instead of whole batches while training.
    """
    if not isinstance(module, nn.Module) or kind(module) not in ("XTransformer", *WRAPPERS, *STACKS):
        raise TypeError(
            f"from_x_transformers takes an XTransformer, a {', a '.join(WRAPPERS)}, an Encoder, a Decoder or a "
            f"CrossAttender of x-transformers, not {type(module).__module__}.{type(module).__qualname__}"
        )
    check_parts(module)
    reader, peer = Reader(module), cast(Any, module)
    arguments: dict[str, Any] = {}
    if kind(module) in STACKS:
        flags, weights = read_stack(peer, reader)
    elif kind(module) == "XTransformer":
        flags, weights = read_both(peer, reader)
    else:
        flags, arguments, weights = read_model(peer, reader)
    reader.finish()
    # On meta nothing is drawn from the generator, and a weight that was forgotten cannot go unnoticed.
    with torch.device("meta"):
        if kind(module) == "XTransformer":
            model: Any = XTransformer(**flags)
        elif kind(module) in STACKS:
            model = STACKS[kind(module)](**flags)
        else:
            model = WRAPPERS[kind(module)](attn_layers=STACKS[kind(peer.attn_layers)](**flags), **arguments)
    weights = {name: t.contiguous() for name, t in weights.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.train(module.training)


def read_both(module: Any, reader: Reader) -> tuple[dict[str, Any], Weights]:
    """The flags and weights of an XTransformer; one embedding for both sides is read once."""
    decoder = module.decoder
    tied = decoder.net.token_emb is module.encoder.token_emb
    flags: dict[str, Any] = {"tie_token_emb": tied, "cross_attn_tokens_dropout": module.cross_attn_tokens_dropout}
    flags |= {"ignore_index": decoder.ignore_index, "pad_value": decoder.pad_value}
    weights: Weights = {}
    for prefix, place, side in (("enc_", "encoder", module.encoder), ("dec_", "decoder.net", decoder.net)):
        held = weights["encoder.embedding.token_emb.weight"] if tied and weights else None
        stack, arguments, own = read_model(side, reader, held)
        flags["dim"] = stack.pop("dim")
        flags |= {prefix + name: value for name, value in {**stack, **arguments}.items()}
        weights |= {f"{place}.{name}": t for name, t in own.items()}
    if not flags.pop("enc_return_only_embed"):
        raise feature("return_only_embed", False)
    del flags["dec_return_only_embed"]
    return flags, weights


def read_model(
    module: Any, reader: Reader, tied: Tensor | None = None
) -> tuple[dict[str, Any], dict[str, Any], Weights]:
    """The flags of the stack, the arguments of the wrapper, and the weights; `tied`: a token embedding already read."""
    if kind(module.attn_layers) not in STACKS:
        raise feature("attn_layers", kind(module.attn_layers))
    flags, found = read_stack(module.attn_layers, reader)
    weights = {f"attn_layers.{name}": t for name, t in found.items()}
    if kind(module) == "ViTransformerWrapper":
        return flags, read_vit(module, reader, weights), weights
    arguments = READERS[kind(module)](module, reader, weights, *(() if tied is None else (tied,)))
    memory = memory_length(module, arguments.get("use_abs_pos_emb") is False, flags)
    if memory is not None:
        arguments |= {"max_mem_len": memory, "shift_mem_down": getattr(module, "shift_mem_down", 0)}
    return flags, arguments, weights


class Layer(NamedTuple):
    """One layer of a peer as read: its block's flags, heads in xflash's order, and its weights by their new names."""

    name: str
    flags: dict[str, Any]
    shift: int
    order: tuple[int, ...]
    weights: Weights


def read_stack(peer: Any, reader: Reader) -> tuple[dict[str, Any], Weights]:
    """The flags and the weights of a stack."""
    norms = {kind(norm) for slots, _, _ in peer.layers for norm in slots if norm is not None}
    if len(norms) != 1 or not norms <= set(NORMS):
        raise feature("norms", ", ".join(sorted(norms)))
    norm = NORMS[norms.pop()]
    slots = residual_slots(peer)
    layers = [read_layer(peer, i, slots, reader) for i in range(len(peer.layers))]
    layout = read_layout(peer, layers)
    if peer.unet_skips:
        check_skips(peer, layout["depth"])
    weights = {f"branches.{i}.{name}": t for i, layer in enumerate(layers) for name, t in layer.weights.items()}
    if peer.cross_attn_tokens_dropout and "c" in peer.layer_types:
        layout["cross_attn_tokens_dropout"] = peer.cross_attn_tokens_dropout
    final = kind(peer.final_norm) in NORMS
    if final:
        place = "final_norm.norm" if peer.softclamp_output else "final_norm"
        weights |= {f"{place}.{name}": t for name, t in read_norm(peer.final_norm, reader).items()}
    if slots["join"] == "hyper":
        weights[f"branches.{peer.layers_execute_order[0]}.join.starts"] = reader.take(peer.stream_emb)
    flags = {
        "dim": peer.dim,
        "heads": peer.attn_heads,
        **({"causal": peer.causal} if kind(peer) == "AttentionLayers" else {}),
        **layout,
        "norm": norm,
        **({"norm_eps": TINY} if norm in EPS_FREE else {}),
        "norm_place": norm_place(peer),
        "final_norm": final,
        **slots,
        **read_clamp(peer),
        **read_condition(peer, norm, slots),
        **read_positions(peer, {layer.order for layer in layers if layer.name == "attn"}, reader, weights),
    }
    return flags, weights


def norm_place(peer: Any) -> str:
    """Where the norms of a peer stand; ValueError where no place here is all of theirs."""
    if peer.pre_and_post_norm and peer.sandwich_norm:
        raise feature("pre_and_post_norm", "with sandwich_norm")
    if peer.pre_and_post_norm:
        return "pre_and_post"
    return "sandwich" if peer.sandwich_norm else "pre" if peer.pre_norm else "post"


def read_clamp(peer: Any) -> dict[str, Any]:
    """The flags of what stands in front of the last norm."""
    if not peer.softclamp_output:
        return {}
    if peer.num_residual_streams > 1:
        raise feature("softclamp_output", "of each of several num_residual_streams")
    return {"softclamp_output": True, "softclamp_output_value": float(peer.softclamp_output_value)}


def read_layout(peer: Any, layers: Sequence[Layer]) -> dict[str, Any]:
    """The flags of the column: layout, depth, tying, and what differs from layer to layer."""
    count, executed = len(layers), tuple(peer.layers_execute_order)
    if left := sorted(set(range(count)).difference(executed)):
        raise feature("layers_execute_order", f"without layer {left[0]}")
    rounds = len(executed) // count
    tied = {"weight_tie_layers": True} if rounds > 1 else {}
    if executed != tuple(range(count)) * rounds:
        rounds, tied = 1, {"layers_execute_order": executed}
    shared = {n: common([layer.flags for layer in layers if layer.name == n]) for n in {layer.name for layer in layers}}
    specs = [
        LayerSpec(layer.name, {k: v for k, v in layer.flags.items() if k not in shared[layer.name]}) for layer in layers
    ]
    period = count if rounds > 1 else next(p for p in range(1, count + 1) if specs == specs[:p] * (count // p))
    each = {"shift_tokens": [layer.shift for layer in layers], "layer_dropout": list(peer.layer_dropouts)}
    return {
        "layers": layout_text(specs[:period]),
        "depth": rounds * count // period,
        **tied,
        **{f"{name}_{k}": v for name, flags in shared.items() for k, v in flags.items()},
        **{k: v[0] if len(set(v)) == 1 else tuple(v) * rounds for k, v in each.items() if any(v)},
    }


def common(flags: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The flags that have the same value in all layers."""
    return {k: v for k, v in flags[0].items() if all(other.get(k) == v for other in flags)}


def read_layer(peer: Any, i: int, slots: dict[str, Any], reader: Reader) -> Layer:
    """Layer i with its norms and slots, out of whatever its block is wrapped in."""
    around, layer, residual = peer.layers[i]
    cross = peer.layer_types[i] == "c"
    factor: Any = 1.0
    gain, shift = None, 0
    adaptive: Weights = {}
    while kind(layer) in ("Scale", "LayerScale", "AdaptiveLayerScale", "ShiftTokens"):
        if kind(layer) == "Scale":
            factor = factor * factor_of(layer, slots)
        elif kind(layer) == "LayerScale":
            gain = read_gain(layer, reader)
        elif kind(layer) == "AdaptiveLayerScale":
            adaptive = {f"to_gain.{name}": reader.take(t) for name, t in layer.to_gamma.named_parameters()}
        else:
            shift = read_shift(layer.shifts, peer.causal)
        layer = layer.fn
    if kind(layer) not in ("Attention", "FeedForward"):
        raise feature("layers", kind(layer))
    attention = kind(layer) == "Attention"
    flags, weights, order = read_attention(layer, peer, cross, reader) if attention else read_ff(layer, reader)
    weights = {f"block.{name}": t for name, t in weights.items()}
    for name, norm in zip(("before", "after", "final"), around, strict=True):
        if norm is not None:
            weights |= {f"{name}.{own}": t for own, t in read_norm(norm, reader).items()}
    weights |= {f"scale.adaptive_layerscale.{name}": t for name, t in adaptive.items()}
    if "layerscale" in (slots["scale"] or "").split():
        ones = weights["block.to_out.weight"].new_ones(peer.dim)
        weights["scale.layerscale.gain"] = ones if gain is None else gain
    else:
        factor = factor if gain is None else factor * gain[:, None]
    joined = read_join(residual, slots, weights["block.to_out.weight"], reader)
    weights |= {f"join.{name}": t for name, t in joined.items()}
    weights |= {f"reads.{name}": t for name, t in read_reads(peer, i, reader).items()}
    weights["block.to_out.weight"] = weights["block.to_out.weight"] * factor
    if "block.to_out.bias" in weights:
        flat = factor[:, 0] if isinstance(factor, torch.Tensor) else factor
        weights["block.to_out.bias"] = weights["block.to_out.bias"] * flat
    name = "cross_attn" if cross else "attn" if attention else "ff"
    return Layer(name, flags, shift, order, weights)


def read_shift(shifts: Sequence[int], causal: bool) -> int:
    """The amount of a token shift."""
    amount = shifts[-1]
    if tuple(shifts) != tuple(range(0 if causal else -amount, amount + 1)):
        raise feature("shift_tokens", shifts)
    return amount
