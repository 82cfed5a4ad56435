"""The parts of a stack; importing them registers the built-in ones by name."""

from . import activations, adaptive_layernorm, adaptive_rmsnorm, embeddings, norms, scores
from .blocks import attention, feedforward, flash, gau, moe
from .joins import gru, hyper, join, orthogonal, scaled
from .positions import alibi, dynamic, polar, rel_pos, relative, rotary, rotary2d
from .reads import lime, read, unet
from .scales import adaptive_layerscale, scale

__all__ = [
    "activations",
    "adaptive_layernorm",
    "adaptive_layerscale",
    "adaptive_rmsnorm",
    "alibi",
    "attention",
    "dynamic",
    "embeddings",
    "feedforward",
    "flash",
    "gau",
    "gru",
    "hyper",
    "join",
    "lime",
    "moe",
    "norms",
    "orthogonal",
    "polar",
    "read",
    "rel_pos",
    "relative",
    "rotary",
    "rotary2d",
    "scale",
    "scaled",
    "scores",
    "unet",
]
