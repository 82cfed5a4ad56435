"""The relative positions of x-transformers as xflash's flags and weights."""

from collections.abc import Collection
from typing import Any

import einx
import torch
from torch import nn

from ..base.shapes import Float, Tensor
from ..layers.positions.alibi import alibi_slopes
from ..layers.positions.angles import inverse_frequencies
from .x_transformers_parts import Reader, feature, kind, read_gain

__all__ = ["read_positions"]

Weights = dict[str, Tensor]


def read_positions(peer: Any, orders: Collection[tuple], reader: Reader, weights: Weights) -> dict[str, Any]:
    """The flags of the relative positions; the T5 bias is added to `weights`. `orders`: the head orders there are."""
    flags: dict[str, Any] = {}
    pos = []
    if peer.rotary_pos_emb is not None:
        pos.append("rotary")
        flags |= read_rotary(peer.rotary_pos_emb, reader) | read_turned(peer)
    if peer.polar_pos_emb is not None:
        pos.append("polar")
        polar = read_polar(peer.polar_pos_emb, reader)
        weights[f"positions.polar.offsets.{peer.attn_heads}x{polar.shape[-1]}"] = polar
    if peer.rel_pos is not None:
        own = tuple(range(peer.attn_heads))
        if kind(peer.rel_pos) == "AlibiPositionalBias":
            pos.append("alibi")
            if set(orders) - {own}:
                raise feature("alibi_pos_bias", "with grouped key/value heads: xflash orders heads by group")
            flags |= read_alibi(peer.rel_pos, reader)
        else:
            name = "dynamic" if kind(peer.rel_pos) == "DynamicPositionBias" else "rel_pos"
            pos.append(name)
            if len(orders) > 1:
                raise feature(f"{name}_bias", "shared by layers that group their heads differently")
            order = next(iter(orders), own)
            read = read_dynamic if name == "dynamic" else read_rel_pos
            found, own_weights = read(peer.rel_pos, order, reader)
            flags |= found
            weights |= {f"positions.{name}.{k}": t for k, t in own_weights.items()}
    return {"pos": " ".join(pos) or None, **flags}


def read_rel_pos(bias: Any, order: tuple[int, ...], reader: Reader) -> tuple[dict[str, Any], Weights]:
    """T5's bias, of heads in our order."""
    table = reader.take(bias.relative_attention_bias.weight) * bias.scale
    table = einx.get_at("buckets [h], j -> j buckets", table, torch.tensor(order, device=table.device))
    flags = {"rel_pos_num_buckets": bias.num_buckets, "rel_pos_max_distance": bias.max_distance}
    return flags, {f"tables.{len(order)}.weight": table}


def read_dynamic(bias: Any, order: tuple[int, ...], reader: Reader) -> tuple[dict[str, Any], Weights]:
    """The network of a bias by distance, of heads in our order."""
    *layers, last = bias.mlp
    weights: Weights = {}
    norms = False
    for i, layer in enumerate(layers):
        for part in layer:
            if isinstance(part, nn.Linear):
                weights |= {f"maps.{i}.{name}": reader.take(t) for name, t in part.named_parameters()}
            elif isinstance(part, nn.LayerNorm):
                weights |= {f"norms.{i}.{name}": reader.take(t) for name, t in part.named_parameters()}
            elif kind(part) == "LayerNorm":
                # Theirs has no offset.
                gain = read_gain(part, reader)
                weights |= {f"norms.{i}.weight": gain, f"norms.{i}.bias": torch.zeros_like(gain)}
            norms = norms or kind(part) == "LayerNorm"
    index = torch.tensor(order, device=last.weight.device)
    weights |= {
        f"outs.{len(order)}.{name}": reader.take(t).index_select(0, index) for name, t in last.named_parameters()
    }
    return {
        "dynamic_width": last.in_features,
        "dynamic_mlp_depth": len(layers),
        "dynamic_log_distance": bias.log_distance,
        "dynamic_norm": norms,
    }, weights


def read_polar(polar: Any, reader: Reader) -> Float[Tensor, "h 1 k"]:
    """The offsets of keys, which are there for each head of queries."""
    width = polar.learned_bias.shape[-1]
    own = 1.0 / (10000.0 ** (torch.arange(width).float() / width))
    if not torch.equal(reader.take(polar.inv_freq).float().cpu(), own):
        raise feature("polar_pos_emb", "with frequencies that were rounded")
    return reader.take(polar.learned_bias)


def read_turned(peer: Any) -> dict[str, Any]:
    """How many heads rotary positions turn; those of a context are all turned there, where it is told its places."""
    kinds = zip(peer.layer_types, peer.layers, strict=True)
    turned = {unwrapped(block).rotate_num_heads for name, (_, block, _) in kinds if name == "a"}
    if not turned or turned == {peer.attn_heads}:
        return {}
    if len(turned) > 1:
        raise feature("rotate_num_heads", f"{sorted(turned)}, not one number for all layers")
    if "c" in peer.layer_types:
        raise feature("rotate_num_heads", f"{turned.pop()} beside cross attention, all of whose heads are turned")
    return {"rotary_num_heads": turned.pop()}


def unwrapped(layer: Any) -> Any:
    """A block out of what it is wrapped in."""
    while not hasattr(layer, "rotate_num_heads"):
        layer = layer.fn
    return layer


def read_alibi(alibi: Any, reader: Reader) -> dict[str, Any]:
    if not torch.equal(reader.take(alibi.slopes).flatten().float().cpu(), torch.tensor(alibi_slopes(alibi.heads))):
        raise feature("rel_pos_kwargs", "ALiBi slopes other than the paper's")
    if alibi.bias is not None:
        reader.take(alibi.bias)
    return {"alibi_num_heads": None if alibi.heads == alibi.total_heads else alibi.heads}


def read_rotary(rotary: Any, reader: Reader) -> dict[str, Any]:
    """The flags of a rotary embedding, from its frequencies."""
    frequency = reader.take(rotary.inv_freq).float()
    width = 2 * len(frequency)
    flags = {"rotary_emb_dim": width, "rotary_interleaved": True}
    base = rotary_base(frequency, width)
    if base != 10000.0:
        flags["rotary_base"] = base
    if rotary.interpolation_factor != 1:
        flags["rotary_interpolation_factor"] = rotary.interpolation_factor
    if rotary.scale is not None:
        own = (torch.arange(0, width, 2, device=frequency.device) + 0.4 * width) / (1.4 * width)
        if not torch.equal(reader.take(rotary.scale).float(), own):
            raise feature("rotary_emb_dim", f"{rotary.scale} with rotary_xpos")
        flags |= {"rotary_xpos": True, "rotary_xpos_scale_base": rotary.scale_base}
    return flags


def rotary_base(frequency: Tensor, width: int) -> float:
    """The base that gives these very frequencies: near the one they point to, for float32 has few."""
    if torch.equal(inverse_frequencies(width, 10000.0, frequency.device), frequency):
        return 10000.0
    guess = frequency[-1].double().pow(-width / max(width - 2, 1)).float().cpu()
    for towards in (torch.inf, 0.0):
        base = guess
        for _ in range(2000):
            if torch.equal(inverse_frequencies(width, base.item(), frequency.device), frequency):
                return base.item()
            base = torch.nextafter(base, torch.tensor(towards))
    raise feature("rotary_pos_emb", "with frequencies that follow no base (an odd rotary_emb_dim, or a rounded buffer)")
