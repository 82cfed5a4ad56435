"""Weights from FLASH-pytorch (https://github.com/lucidrains/FLASH-pytorch, made against 0.1.9)."""

from typing import Any, NamedTuple

import einx
import torch
from torch import nn

from ..base.shapes import Tensor
from ..layers.positions.angles import inverse_frequencies
from ..wrappers.flash_transformer import FLASH, GAU, FLASHTransformer, rotary_flags

__all__ = ["from_flash_pytorch"]

# Their ScaleNorm divides by max(rms, 1e-5), with nothing added under the root.
TINY = 1e-24

ATTN_FNS = {"ReLUSquared": False, "LaplacianAttnFn": True}

Flags = dict[str, Any]
Weights = dict[str, Tensor]


class Read(NamedTuple):
    """What a module says: arguments of ours, and weights under our names."""

    flags: Flags
    weights: Weights


def from_flash_pytorch(module: nn.Module) -> GAU | FLASH | FLASHTransformer:
    """The xflash module with the weights and outputs of a GAU, FLASH or FLASHTransformer of flash_pytorch.

    The new module shares nothing with the old one and has its dtype, device and mode. TypeError for another class or
    a norm that has no counterpart; ValueError for rotary frequencies that have none. What FLASH-pytorch does
    differently is set by flags that exist for it alone: GAU divides inside its square by the length of the call
    (gau_normaliser='padded_length'), causal FLASH never divides its sum over groups (flash_global_normaliser='sum'),
    bidirectional FLASH divides it by the padded length. The first and the last cannot be stepped. The scales of its
    relative bias are multiplied into the weights. At masked positions xflash gives zeros; there is no promise for
    masks with holes or on the left, whose tokens xflash closes up.
    """
    readers = {"GAU": (GAU, read_gau), "FLASH": (FLASH, read_flash), "FLASHTransformer": (FLASHTransformer, read_model)}
    if not isinstance(module, nn.Module) or not theirs(module, *readers):
        raise TypeError(
            "from_flash_pytorch takes a GAU, a FLASH or a FLASHTransformer of flash_pytorch, not "
            f"{type(module).__module__}.{type(module).__qualname__}"
        )
    build, read = readers[type(module).__name__]
    flags, weights = read(module)
    # On meta nothing is drawn from the generator, and a weight that was forgotten cannot go unnoticed.
    with torch.device("meta"):
        model: Any = build(**flags)
    model.load_state_dict(
        {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in weights.items()},
        strict=True,
        assign=True,
    )
    return model.train(module.training)


def theirs(module: nn.Module, *names: str, package: str = "flash_pytorch") -> bool:
    """Whether `module` is of one of these classes of a package."""
    return type(module).__module__.split(".")[0] == package and type(module).__name__ in names


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: t for name, t in weights.items()}


def read_norm(norm: Any) -> Read:
    """Flags and weights of a norm; TypeError for one that xflash has no counterpart of."""
    if theirs(norm, "ScaleNorm"):
        return Read({"norm": "scalenorm", "norm_eps": TINY}, {"gain": norm.g.reshape(())})
    if type(norm) is nn.LayerNorm and len(norm.normalized_shape) == 1:
        gain = ones(norm) if norm.weight is None else norm.weight
        weights: Weights = {"gain": gain} if norm.bias is None else {"gain": gain, "bias": norm.bias}
        return Read({"norm": "layernorm", "norm_eps": norm.eps, "norm_bias": norm.bias is not None}, weights)
    if type(norm) is nn.RMSNorm and len(norm.normalized_shape) == 1:
        gain = ones(norm) if norm.weight is None else norm.weight
        return Read({"norm": "rmsnorm", "norm_eps": norm.eps or torch.finfo(gain.dtype).eps}, {"gain": gain})
    raise TypeError(
        "xflash has a counterpart of the norm_klass ScaleNorm (of flash_pytorch), nn.LayerNorm and nn.RMSNorm, not of "
        f"{type(norm).__module__}.{type(norm).__qualname__}"
    )


def ones(norm: Any) -> Tensor:
    return torch.ones(norm.normalized_shape, dtype=torch.get_default_dtype())


def read_bias(bias: Any) -> Tensor:
    """Their T5 bias, its scale multiplied in; ValueError when its buckets are not the usual ones."""
    if (bias.num_buckets, bias.max_distance) != (32, 128):
        raise ValueError(
            f"the relative bias has {bias.num_buckets} buckets up to {bias.max_distance}; xflash has 32 up to 128"
        )
    return einx.id("buckets h -> h buckets", bias.relative_attention_bias.weight) * bias.scale


def read_projections(module: Any, scales: Any, out: nn.Linear) -> Weights:
    """Their two input projections as one: gate, values and z in this order; the scales and offsets of z; the output."""
    hidden, z = module.to_hidden[0], module.to_qk[0]
    v, gate = einx.id("(v + u) d -> v d, u d", hidden.weight, v=out.in_features)
    v_bias, gate_bias = einx.id("(v + u) -> v, u", hidden.bias, v=out.in_features)
    return {
        "to_hidden.weight": einx.id("u d, v d, z d -> (u + v + z) d", gate, v, z.weight),
        "to_hidden.bias": einx.id("u, v, z -> (u + v + z)", gate_bias, v_bias, z.bias),
        "gamma": scales.gamma,
        "beta": scales.beta,
        "to_out.weight": out.weight,
        "to_out.bias": out.bias,
        "rel_pos_bias.weight": read_bias(module.rel_pos_bias),
    }


def read_attn_fn(module: Any) -> bool:
    """Whether the weights are Laplace's; TypeError when they are neither that nor relu^2."""
    name = type(module.attn_fn).__name__
    if name not in ATTN_FNS:
        raise TypeError(f"the attention function {name} has no counterpart; known are {', '.join(ATTN_FNS)}")
    return ATTN_FNS[name]


def read_gau(module: Any) -> Read:
    norm, out = read_norm(module.norm), module.to_out[0]
    if module.dropout.p != module.to_out[1].p:
        raise ValueError(f"the two dropouts of the GAU differ: {module.dropout.p} and {module.to_out[1].p}")
    flags = {
        "dim": out.out_features,
        "query_key_dim": module.to_qk[0].out_features,
        "expansion_factor": out.in_features / out.out_features,
        "add_residual": module.add_residual,
        "causal": module.causal,
        "dropout": module.dropout.p,
        "laplace_attn_fn": read_attn_fn(module),
        "rel_pos_bias": "t5",
        "gau_bias": True,
        "gau_score_scale": "none",
        "gau_normaliser": "padded_length",
        "gau_normaliser_place": "inside",
        "norm_klass": norm.flags.pop("norm"),
        **norm.flags,
    }
    block = prefixed("stack.branches.0.block.", read_projections(module, module.offsetscale, out))
    return Read(flags, block | prefixed("stack.branches.0.before.", norm.weights))


def read_flash(module: Any) -> Read:
    flags, block, norm = read_flash_block(module)
    flags |= {"norm_klass": flags.pop("norm"), "dropout": flags.pop("attn_dropout")}
    flags |= read_rotary(module.rotary_pos_emb)
    return Read(flags, prefixed("stack.branches.0.block.", block) | prefixed("stack.branches.0.before.", norm))


def read_flash_block(module: Any) -> tuple[Flags, Weights, Weights]:
    """Flags of a FLASH layer but for its rotary embedding; weights of its block and of its norm."""
    norm, out = read_norm(module.norm), module.to_out
    flags = {
        "dim": out.out_features,
        "group_size": module.group_size,
        "query_key_dim": module.to_qk[0].out_features,
        "expansion_factor": out.in_features / out.out_features,
        "causal": module.causal,
        "attn_dropout": module.dropout.p,
        "shift_tokens": module.shift_tokens,
        "laplace_attn_fn": read_attn_fn(module),
        # Their causal layers keep the switch without using it.
        "reduce_group_non_causal_attn": module.causal or module.reduce_group_non_causal_attn,
        "flash_bias": True,
        "flash_global_normaliser": "sum" if module.causal else "padded_length",
        **norm.flags,
    }
    return flags, read_projections(module, module.qk_offset_scale, out), norm.weights


def read_rotary(rotary: Any) -> Flags:
    """Flags of a RotaryEmbedding (None: no flags); ValueError when its frequencies are not powers of a round base."""
    if rotary is None:
        return {}
    if not theirs(rotary, "RotaryEmbedding", package="rotary_embedding_torch"):
        given = type(rotary).__qualname__
        raise TypeError(f"rotary_pos_emb must be a RotaryEmbedding of rotary_embedding_torch, not {given}")
    if rotary.learned_freq or rotary.use_xpos or rotary.default_seq_dim != -2:
        raise ValueError("learned_freq, use_xpos and seq_before_head_dim of a RotaryEmbedding have no counterpart here")
    width = 2 * len(rotary.freqs)
    return {
        "pos": "rotary",
        "rotary_emb_dim": width,
        "rotary_interleaved": True,
        "rotary_base": read_base(rotary.freqs.detach().float().cpu()),
        "rotary_interpolation_factor": rotary.interpolate_factor,
    }


def read_base(frequencies: Tensor) -> float:
    """The round base that gives exactly these frequencies."""
    width = 2 * len(frequencies)
    base = 10000.0 if width == 2 else frequencies[1].item() ** (-width / 2)
    for digits in range(1, 9):
        candidate = float(f"{base:.{digits}g}")
        if candidate > 1 and torch.equal(inverse_frequencies(width, candidate), frequencies):
            return candidate
    raise ValueError("the rotary frequencies are not powers of a round base such as 10000; others have no counterpart")


def read_model(module: Any) -> Read:
    """A FLASHTransformer; ValueError when its layers differ in more than their weights."""
    last, head = module.to_logits
    if last.eps != 1e-5:
        raise ValueError(f"the last LayerNorm has eps={last.eps}; xflash's has 1e-5")
    flags: Flags = {}
    weights = {
        "embedding.token_emb.weight": module.token_emb.weight,
        "embedding.pos_emb.scale": module.abs_pos_emb.scale.reshape(()),
        "final_norm.gain": last.weight,
        "final_norm.bias": last.bias,
        "to_logits.weight": head.weight,
        "to_logits.bias": head.bias,
    }
    for i, layer in enumerate(module.layers):
        own, block, norm = read_flash_block(layer)
        rotary = read_rotary(layer.rotary_pos_emb)
        fixed = {name: rotary.get(name) for name in ("pos", "rotary_emb_dim", "rotary_interleaved")}
        if fixed != rotary_flags(own["query_key_dim"]):
            raise ValueError(f"layer {i} has another rotary embedding than a FLASHTransformer is built with: {fixed}")
        own |= rotary
        if flags and flags != own:
            raise ValueError(f"layer {i} has other settings than the layers before it: {own} instead of {flags}")
        flags = own
        weights |= prefixed(f"attn_layers.branches.{i}.block.", block)
        weights |= prefixed(f"attn_layers.branches.{i}.before.", norm)
    flags |= {"num_tokens": head.out_features, "depth": len(module.layers), "norm_type": flags.pop("norm")}
    return Read(flags, weights)
