"""`learned_sink`: a key a head that takes weight and gives nothing."""

from typing import Any

import torch
from torch import nn

from ...base.registry import scores
from ...base.shapes import Float, Tensor
from .step import Read, ScoreStep

__all__ = ["LearnedSink"]


@scores.register("learned_sink")
class LearnedSink(ScoreStep):
    """A key with a learned score a head, zero at first, and a value of zero (gpt-oss, https://arxiv.org/abs/2508.10925).

    Not the window's first tokens, which are `attn_sinks`.
    """

    def __init__(self, config: Any, site: Any, heads: int, kind: str):
        super().__init__(config, site, heads, kind)
        self.score = nn.Parameter(torch.zeros(heads))

    def extra_key(self, read: Read) -> Float[Tensor, "1 h 1 1"]:
        return self.score[None, :, None, None]
