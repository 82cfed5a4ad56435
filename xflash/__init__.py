"""xflash: GAU, FLASH, softmax attention and others, composed from keyword flags."""

import importlib
import sys
from typing import Any

from .base.uncollected import uncollected

with uncollected():
    from . import flops as flops
    from .base.moved import Moved
    from .base.registry import (
        activations,
        blocks,
        joins,
        norms,
        positions,
        reads,
        residuals,
        scales,
        scores,
        side_inputs,
        weight_fns,
    )
    from .base.state import Ctx, may_be_loaded
    from .flags.flag import flag
    from .generation.sampling import min_p, top_a, top_k, top_p
    from .layers.blocks.attention import Attention
    from .layers.blocks.block import Block
    from .layers.blocks.block_attention import BlockAttention
    from .layers.blocks.cross_attention import CrossAttention
    from .layers.blocks.cross_gau import CrossGatedAttention
    from .layers.blocks.feedforward import FeedForward
    from .layers.blocks.flash import MixedChunkAttention
    from .layers.blocks.gau import GatedAttention
    from .layers.blocks.recurrent import Recurrent
    from .layers.joins.join import Join
    from .layers.norms import Norm
    from .layers.positions.position import Bias, Position, Turn
    from .layers.reads.read import Read
    from .layers.scales.scale import Scale
    from .layers.scores.step import ScoreStep, WeightFn
    from .layers.site import Site
    from .saving.configurable import from_config
    from .saving.store import load, save
    from .stack.face import AttentionLayers
    from .stack.inputs.side_input import SideInput
    from .stack.stacks import CrossAttender, Decoder, Encoder, PrefixDecoder
    from .wrappers.attention_pool import AttentionPool
    from .wrappers.autoregressive import AutoregressiveWrapper
    from .wrappers.block_recurrent import BlockRecurrentTransformer, RecurrentTrainerWrapper
    from .wrappers.continuous import ContinuousTransformerWrapper
    from .wrappers.continuous_autoregressive import ContinuousAutoregressiveWrapper
    from .wrappers.flash_transformer import FLASH, GAU, FLASHTransformer
    from .wrappers.masked_lm import MaskedLMWrapper
    from .wrappers.multi_input import MultiInputTransformerWrapper
    from .wrappers.nonautoregressive import NonAutoregressiveWrapper
    from .wrappers.rebuild import rebuild
    from .wrappers.recipes import create, recipes
    from .wrappers.recurrent_memory import RecurrentMemoryWrapper
    from .wrappers.segments import SegmentWrapper
    from .wrappers.transformer import TransformerWrapper
    from .wrappers.vit import ViTransformerWrapper
    from .wrappers.xl_autoregressive import XLAutoregressiveWrapper
    from .wrappers.xtransformer import XTransformer
    from .wrappers.xval import XValTransformerWrapper
    from .wrappers.xval_autoregressive import XValAutoregressiveWrapper

__all__ = [
    "FLASH",
    "GAU",
    "Attention",
    "AttentionLayers",
    "AttentionPool",
    "AutoregressiveWrapper",
    "Bias",
    "Block",
    "BlockAttention",
    "BlockRecurrentTransformer",
    "ContinuousAutoregressiveWrapper",
    "ContinuousTransformerWrapper",
    "CrossAttender",
    "CrossAttention",
    "CrossGatedAttention",
    "Ctx",
    "Decoder",
    "Encoder",
    "FLASHTransformer",
    "FeedForward",
    "GatedAttention",
    "Join",
    "MaskedLMWrapper",
    "MixedChunkAttention",
    "MultiInputTransformerWrapper",
    "NonAutoregressiveWrapper",
    "Norm",
    "Position",
    "PrefixDecoder",
    "Read",
    "Recurrent",
    "RecurrentMemoryWrapper",
    "RecurrentTrainerWrapper",
    "Scale",
    "ScoreStep",
    "SegmentWrapper",
    "SideInput",
    "Site",
    "TransformerWrapper",
    "Turn",
    "ViTransformerWrapper",
    "WeightFn",
    "XLAutoregressiveWrapper",
    "XTransformer",
    "XValAutoregressiveWrapper",
    "XValTransformerWrapper",
    "activations",
    "blocks",
    "create",
    "flag",
    "from_config",
    "joins",
    "load",
    "min_p",
    "norms",
    "positions",
    "reads",
    "rebuild",
    "recipes",
    "residuals",
    "save",
    "scales",
    "scores",
    "side_inputs",
    "top_a",
    "top_k",
    "top_p",
    "weight_fns",
]

__version__ = "0.2.0.dev0"


# What is imported when it is first asked for: building and training do without.
LATER = {
    "convert": "convert",
    "diff": "saving.differences",
    "capture": "look.capture",
    "compare": "experiments.comparing",
    "plot_attention": "look.attention",
    "plot_loss": "look.losses",
    "plot_receptive_field": "look.reach",
    "plot_state": "look.states",
    "probes": "probes",
    "receptive_field": "look.reach",
    "summary": "look.summary",
}


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{LATER[name]}")
    return module if name == LATER[name] else getattr(module, name)


sys.meta_path.append(Moved(__name__))
may_be_loaded()


def __dir__() -> list[str]:
    """What users may rely on, without what this file needs."""
    return [*__all__, *LATER, "__version__", "flops"]
