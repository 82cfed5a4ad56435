"""What stands between the scores of a softmax read and its values; importing it registers the built-in ones by name."""

from . import hard, sigmoid, softmax
from .read import SoftmaxRead
from .step import Read, ScoreStep, WeightFn

__all__ = ["Read", "ScoreStep", "SoftmaxRead", "WeightFn", "hard", "sigmoid", "softmax"]
