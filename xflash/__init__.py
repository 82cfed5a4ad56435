"""xflash: GAU, FLASH, softmax attention and others, composed from keyword flags."""

from . import flops as flops
from .configurable import from_config, load, save
from .layers.attention import Attention
from .layers.block import Block, Site
from .layers.block_attention import BlockAttention
from .layers.cross_attention import CrossAttention
from .layers.cross_gau import CrossGatedAttention
from .layers.feedforward import FeedForward
from .layers.flash import MixedChunkAttention
from .layers.gau import GatedAttention
from .layers.recurrent import Recurrent
from .registry import activations, blocks, norms, positions, residuals
from .sampling import min_p, top_a, top_k, top_p
from .stack import AttentionLayers, CrossAttender, Decoder, Encoder, PrefixDecoder
from .state import may_be_loaded
from .wrappers.autoregressive import AutoregressiveWrapper
from .wrappers.block_recurrent import BlockRecurrentTransformer, RecurrentTrainerWrapper
from .wrappers.flash_transformer import FLASH, GAU, FLASHTransformer
from .wrappers.masked_lm import MaskedLMWrapper
from .wrappers.nonautoregressive import NonAutoregressiveWrapper
from .wrappers.recurrent_memory import RecurrentMemoryWrapper
from .wrappers.segments import SegmentWrapper
from .wrappers.transformer import TransformerWrapper
from .wrappers.vit import ViTransformerWrapper
from .wrappers.xl_autoregressive import XLAutoregressiveWrapper
from .wrappers.xtransformer import XTransformer

__all__ = [
    "FLASH",
    "GAU",
    "Attention",
    "AttentionLayers",
    "AutoregressiveWrapper",
    "Block",
    "BlockAttention",
    "BlockRecurrentTransformer",
    "CrossAttender",
    "CrossAttention",
    "CrossGatedAttention",
    "Decoder",
    "Encoder",
    "FLASHTransformer",
    "FeedForward",
    "GatedAttention",
    "MaskedLMWrapper",
    "MixedChunkAttention",
    "NonAutoregressiveWrapper",
    "PrefixDecoder",
    "Recurrent",
    "RecurrentMemoryWrapper",
    "RecurrentTrainerWrapper",
    "SegmentWrapper",
    "Site",
    "TransformerWrapper",
    "ViTransformerWrapper",
    "XLAutoregressiveWrapper",
    "XTransformer",
    "activations",
    "blocks",
    "from_config",
    "load",
    "min_p",
    "norms",
    "positions",
    "residuals",
    "save",
    "top_a",
    "top_k",
    "top_p",
]

__version__ = "0.2.0.dev0"

may_be_loaded()
