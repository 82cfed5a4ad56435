"""What stands between the scores of a softmax read and its values; importing it registers the built-in ones by name."""

from . import (
    cope,
    forget,
    forget_by_query,
    gumbel,
    hard,
    l2_distance,
    learned_sink,
    rel_proj,
    residual,
    selective,
    sigmoid,
    softclamp,
    softmax,
    talking_heads,
    topk,
    zero_key,
)
from .read import SoftmaxRead
from .step import Read, ScoreStep, WeightFn

__all__ = [
    "Read",
    "ScoreStep",
    "SoftmaxRead",
    "WeightFn",
    "cope",
    "forget",
    "forget_by_query",
    "gumbel",
    "hard",
    "l2_distance",
    "learned_sink",
    "rel_proj",
    "residual",
    "selective",
    "sigmoid",
    "softclamp",
    "softmax",
    "talking_heads",
    "topk",
    "zero_key",
]
