"""xflash: GAU, FLASH, softmax attention and others, composed from keyword flags."""

from .configurable import from_config, load, save
from .layers.attention import Attention
from .layers.block import Block, Site
from .layers.feedforward import FeedForward
from .registry import activations, blocks, norms, positions, residuals
from .stack import AttentionLayers, Decoder, Encoder
from .wrappers.transformer import TransformerWrapper

__version__ = "0.1.0"
