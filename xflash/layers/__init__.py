"""The parts of a stack; importing them registers the built-in ones by name."""

from . import activations, adaptive_layernorm, adaptive_rmsnorm, dynamic_tanh, embeddings, norms, scores
from .blocks import attention, feedforward, flash, gau, moe
from .joins import gru, hyper, join, mv_split, orthogonal, resi_dual, scaled
from .positions import alibi, dynamic, polar, rel_pos, relative, rotary, rotary2d
from .reads import lime, read, reinject, unet
from .scales import adaptive_layerscale, constant, macaron, scale

__all__ = [
    "activations",
    "adaptive_layernorm",
    "adaptive_layerscale",
    "adaptive_rmsnorm",
    "alibi",
    "attention",
    "constant",
    "dynamic",
    "dynamic_tanh",
    "embeddings",
    "feedforward",
    "flash",
    "gau",
    "gru",
    "hyper",
    "join",
    "lime",
    "macaron",
    "moe",
    "mv_split",
    "norms",
    "orthogonal",
    "polar",
    "read",
    "reinject",
    "rel_pos",
    "relative",
    "resi_dual",
    "rotary",
    "rotary2d",
    "scale",
    "scaled",
    "scores",
    "unet",
]
