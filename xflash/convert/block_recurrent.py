"""Weights from block-recurrent-transformer-pytorch (made against 0.4.4)."""

from typing import Any

import einx
import torch
from torch import nn

from ..base.shapes import Tensor
from ..wrappers.block_recurrent import BlockRecurrentTransformer
from .flash_pytorch import theirs

__all__ = ["from_block_recurrent"]

Weights = dict[str, Tensor]


def from_block_recurrent(module: nn.Module) -> BlockRecurrentTransformer:
    """The BlockRecurrentTransformer with the weights and outputs of one of block_recurrent_transformer_pytorch.

    Outputs are equal over whole blocks, memories and states carried. It shares nothing with the old module and has its
    dtype, device and mode. Their cosine attention is scaled by 1 / sqrt(dim_head), and so it stays
    (recurrent_cosine_scale); our own models start with 10, without which state vectors grow alike. TypeError for
    another class, ValueError for a compression that does not fill half a block.
    """
    if not isinstance(module, nn.Module) or not theirs(
        module, "BlockRecurrentTransformer", package="block_recurrent_transformer_pytorch"
    ):
        raise TypeError(
            "from_block_recurrent takes a BlockRecurrentTransformer of block_recurrent_transformer_pytorch, not "
            f"{type(module).__module__}.{type(module).__qualname__}"
        )
    arguments = read_arguments(module)
    with torch.device("meta"):
        model = BlockRecurrentTransformer(**arguments)
    weights = read_weights(module, model)
    model.load_state_dict(
        {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in weights.items()},
        strict=True,
        assign=True,
    )
    return model.train(module.training)


def read_arguments(module: Any) -> dict[str, Any]:
    """What it was built with, as far as it can be seen, and the scale of its cosines."""
    first, ff = module.layers[0]
    depth = len(module.layers)
    dim, heads = module.token_emb.weight.shape[1], first.heads
    dim_head = first.to_q.weight.shape[0] // heads
    everywhere = all(attn.attn.qk_rmsnorm for attn, _ in module.layers)
    stages = module.mem_manager.compress_factors
    compressed = len(stages) > 1
    factor = stages[-1] if compressed else 4
    if compressed and (factor % 2 or module.block_width % factor):
        raise ValueError(
            f"compressed_mem_factor={factor} does not fill half a block of {module.block_width} with whole blocks"
        )
    recurrent = tuple(module.recurrent_layers)
    states = [module.layers[layer - 1][0].state_container.init_state.shape[0] for layer in recurrent]
    inner = ff[3].weight.shape[1]
    arguments = {
        "num_tokens": module.token_emb.weight.shape[0],
        "dim": dim,
        "depth": depth,
        "dim_head": dim_head,
        "heads": heads,
        "all_layers_qk_rmsnorm": everywhere,
        "ff_dim": inner,
        "max_seq_len": module.max_seq_len,
        "block_width": module.block_width,
        "recurrent_layers": recurrent,
        "read_recurrent_layers": tuple(module.read_recurrent_layers),
        "ignore_index": module.ignore_index,
        "use_compressed_mem": compressed,
        "compressed_mem_factor": factor,
    }
    if recurrent:
        arguments["num_state_vectors"] = states[0]
    for block in ("recurrent",) * bool(recurrent) + ("block_attn",) * (len(recurrent) < depth):
        arguments |= {f"{block}_cosine_scale": dim_head**-0.5, f"{block}_read_cosine_scale": dim_head**-0.5}
    return arguments


def read_weights(module: Any, model: BlockRecurrentTransformer) -> Weights:
    """Weights under our names."""
    found: Weights = {
        "embedding.token_emb.weight": module.token_emb.weight,
        "attn_layers.final_norm.gain": module.to_logits[0].gamma,
        "to_logits.weight": module.to_logits[1].weight,
    }
    for layer, (attn, ff) in enumerate(module.layers, 1):
        at = f"attn_layers.branches.{2 * layer - 2}."
        found[at + "before.gain"] = attn.norm.gamma
        here = read_attention(module, attn, layer)
        if len(module.mem_manager.compress_factors) > 1:
            conv = module.mem_manager.layers[layer - 1][1][1]
            here |= {"compressor.conv.weight": conv.weight, "compressor.conv.bias": conv.bias}
        found |= {f"{at}block.{name}": t for name, t in here.items()}
        at = f"attn_layers.branches.{2 * layer - 1}."
        found |= {
            at + "before.gain": ff[0].gamma,
            at + "block.to_inner.weight": ff[1].weight,
            at + "block.to_out.weight": ff[3].weight,
        }
    return found


def read_attention(module: Any, attn: Any, layer: int) -> Weights:
    """One attention layer: window, state vectors, and what it reads of other layers' vectors."""
    found = {
        "to_q.weight": attn.to_q.weight,
        "key_value.weight": attn.to_kv.weight,
        "to_out.weight": attn.to_out.weight,
    }
    if attn.attn.qk_rmsnorm:
        found |= gains("cosine", attn.attn)
    writers = sorted(w for w, r in module.write_to_read_map.items() if r == layer != w)
    for i, writer in enumerate(writers):
        container = module.layers[writer - 1][0].state_container
        found[f"readers.{i}.to_q.weight"] = container.q_to_state.weight
        found[f"readers.{i}.key_value.weight"] = container.state_to_kv.weight
        found |= gains(f"readers.{i}.cosine", container.to_state_cross_attn)
    if attn.is_recurrent_layer:
        found |= read_container(attn.state_container, own=module.write_to_read_map[layer] == layer)
    return found


def gains(name: str, attention: Any) -> Weights:
    return {f"{name}.q_gain": attention.q_scale, f"{name}.k_gain": attention.k_scale}


def read_container(container: Any, own: bool) -> Weights:
    """The state vectors and their update; the two linear maps of the update become one."""
    # There the outputs of both attentions stand side by side in each head; here all heads of the one come first.
    mixed = einx.id("d (h both k) -> d (both h k)", container.to_state_out.weight, h=container.heads, both=2)
    found = {
        "state_norm.gain": container.state_norm.gamma,
        "names": container.state_pos_ids,
        "start": container.init_state,
        "state_to_q.weight": einx.id(
            "a d, w d -> (a + w) d", container.state_to_q.weight, container.q_from_state.weight
        ),
        "state_key_value.weight": container.state_to_kv.weight,
        "gate.to_update.weight": container.state_out_to_gate.weight @ mixed,
        "gate.to_update.bias": container.state_out_to_gate.bias,
        # Their gate is the share of the new, ours that of the old.
        "gate.decay": -container.learned_ema_beta,
        **gains("state_cosines.among", container.state_self_attn),
        **gains("state_cosines.write", container.from_state_cross_attn),
    }
    if own:
        found["to_state_q.weight"] = container.q_to_state.weight
        found |= gains("state_cosines.read", container.to_state_cross_attn)
    return found
