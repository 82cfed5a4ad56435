"""What stands between the scores of a softmax read and its values; importing it registers the built-in ones by name."""

from . import cope, forget, hard, learned_sink, residual, sigmoid, softclamp, softmax, talking_heads, topk, zero_key
from .read import SoftmaxRead
from .step import Read, ScoreStep, WeightFn

__all__ = [
    "Read",
    "ScoreStep",
    "SoftmaxRead",
    "WeightFn",
    "cope",
    "forget",
    "hard",
    "learned_sink",
    "residual",
    "sigmoid",
    "softclamp",
    "softmax",
    "talking_heads",
    "topk",
    "zero_key",
]
