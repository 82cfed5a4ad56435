"""The arguments of block-recurrent-transformer-pytorch as the flags of a stack."""

import math
from collections.abc import Mapping
from typing import Any

from ..base.checks import check_bounds, shown
from ..base.frozen import frozen
from ..flags.flag import flag, like
from ..flags.layout import MOST_LAYERS
from ..layers.blocks.block_attention import BlockAttention
from ..layers.site import MOST, SLACK
from ..stack.stack_config import StackConfig
from .input_embedding import InputEmbedding
from .losses import Labels

__all__ = ["IMPLIED", "PRESETS", "BlockRecurrentConfig", "check_fits", "stack_flags"]

FF_MULT = 4.0
PRESETS = {"pos": ("rotary",), "rotary_xpos": True, "ff_glu": True, "ff_no_bias": True}
# What the arguments set of the stack, whatever the column is.
SHARED = ("block_width", "dim_head", "kv_heads", "flash", "compress", "compress_factor", "compress_blocks")
IMPLIED = ("ff_dim", "recurrent_num_state_vectors", *(f"{b}_{f}" for b in ("block_attn", "recurrent") for f in SHARED))
PAPER = "https://arxiv.org/abs/2203.07852"


@frozen
class BlockRecurrentConfig:
    """What block-recurrent-transformer-pytorch's model can be given."""

    num_tokens: int = like(InputEmbedding.Config, "num_tokens")
    dim: int = like(StackConfig, "dim")
    depth: int = flag(doc="layers of attention, each with a feed-forward layer", at_least=1, at_most=MOST_LAYERS)
    dim_head: int = like(BlockAttention.Config, "dim_head")
    heads: int = like(StackConfig, "heads")
    all_layers_qk_rmsnorm: bool = flag(
        False,
        "cosine attention in all layers, not in the recurrent ones only",
        paper="https://arxiv.org/abs/2302.05442",
    )
    ff_mult: float = flag(FF_MULT, "2/3 of this times dim is the feed-forward layers' width", above=0)
    max_seq_len: int = flag(1024, "tokens that the trainer reads at a time", at_least=1)
    block_width: int = like(BlockAttention.Config, "block_width")
    recurrent_layers: tuple[int, ...] | None = flag(
        None, "layers with state vectors, counted from 1 (None: the one in the middle)", paper=PAPER
    )
    read_recurrent_layers: tuple[int, ...] | None = flag(
        None, "for each of them the layer at or above it that reads its vectors (None: itself)"
    )
    num_state_vectors: int | None = flag(None, "state vectors of such a layer (None: block_width)", at_least=1)
    ignore_index: int = like(Labels, "ignore_index")
    use_flash_attn: bool | None = flag(None, "the fused softmax kernel (None: yes)")
    use_compressed_mem: bool = flag(
        False, "blocks that fall out of the window are kept, compressed", paper="https://arxiv.org/abs/1911.05507"
    )
    compressed_mem_factor: int = flag(4, "tokens that become one entry of it", at_least=1)


def check_fits(config: BlockRecurrentConfig, flags: Mapping[str, Any]) -> None:
    """ValueError for arguments that contradict each other."""
    if config.compressed_mem_factor != 4 and not config.use_compressed_mem:
        raise ValueError(
            f"compressed_mem_factor={config.compressed_mem_factor} is set, but use_compressed_mem is False"
        )
    for name in ("layers", "custom_layers"):
        if name in flags:
            raise ValueError(f"{name} cannot be set: depth and recurrent_layers say what the layers are")
    if config.max_seq_len % config.block_width:
        raise ValueError(f"block_width={config.block_width} does not divide max_seq_len={config.max_seq_len}")


def columns(config: BlockRecurrentConfig) -> tuple[Any, ...]:
    """The column of attention and feed-forward layers; layers are counted from 1. ValueError for what cannot be."""
    depth = config.depth
    writers = layer_numbers("recurrent_layers", config.recurrent_layers, (depth // 2 or 1,), depth)
    readers = layer_numbers("read_recurrent_layers", config.read_recurrent_layers, writers, depth)
    if len(set(writers)) != len(writers):
        raise ValueError(f"recurrent_layers names a layer twice: {writers}")
    if len(readers) != len(writers):
        raise ValueError(f"read_recurrent_layers has {len(readers)} entries, but recurrent_layers {len(writers)}")
    pairs = list(zip(readers, writers, strict=True))
    for reader, writer in pairs:
        if reader > writer:
            raise ValueError(
                f"read_recurrent_layers={readers}: layer {writer} cannot be read above itself, at {reader}"
            )
    numbers = {writer: number for number, writer in enumerate(sorted(writers), 1)}
    column: list[Any] = []
    for layer in range(1, depth + 1):
        others = tuple(numbers[w] for r, w in pairs if r == layer != w)
        flags: dict[str, Any] = {"read_from": others} if others else {}
        if layer in writers:
            column.append(("recurrent", flags if (layer, layer) in pairs else {"reads": False, **flags}))
        else:
            column.append(("block_attn", {"cosine": True, **flags} if config.all_layers_qk_rmsnorm else flags))
        column.append(("ff", {}))
    return tuple(column)


def layer_numbers(name: str, given: tuple[int, ...] | None, default: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Layers counted from 1; ValueError for others."""
    layers = default if given is None else given
    for layer in layers:
        if not 1 <= layer <= depth:
            raise ValueError(f"{name} are counted from 1 to the depth {depth}, not {shown(layer)}")
    return layers


def gated_width(config: BlockRecurrentConfig, flags: Mapping[str, Any]) -> int:
    """The inner width of the feed-forward layers; ValueError when ff_mult and ff_dim are both given."""
    if flags.get("ff_dim") is None:
        check_bounds("ff_mult", config.ff_mult, {"at_most": MOST})
        return math.floor(config.dim * config.ff_mult * 2 / 3 + SLACK)
    if config.ff_mult != FF_MULT:
        said = f"ff_mult={config.ff_mult} and ff_dim={flags['ff_dim']}"
        raise ValueError(f"{said} both say how wide the layers are; give one")
    return flags["ff_dim"]


def stack_flags(config: BlockRecurrentConfig, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of the stack; further ones go before them."""
    column = columns(config)
    fused = True if config.use_flash_attn is None else config.use_flash_attn
    shared: dict[str, Any] = {"block_width": config.block_width, "dim_head": config.dim_head, "kv_heads": 1}
    shared["flash"] = fused
    if config.use_compressed_mem:
        factor = config.compressed_mem_factor
        shared |= {"compress": "conv", "compress_factor": factor, "compress_blocks": max(factor // 2, 1)}
    used = {name for name, _ in column} - {"ff"}
    own = {f"{block}_{name}": value for block in used for name, value in shared.items()}
    if "recurrent" in used:
        vectors = config.num_state_vectors
        own["recurrent_num_state_vectors"] = config.block_width if vectors is None else vectors
    sizes = {"dim": config.dim, "heads": config.heads, "ff_dim": gated_width(config, flags)}
    return {"custom_layers": column, **sizes, **PRESETS, **own}
