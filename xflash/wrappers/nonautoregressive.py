"""`NonAutoregressiveWrapper`: x-transformers' names for `MaskedLMWrapper`."""

from typing import Any, NamedTuple

import torch
from torch import nn

from ..base.checks import integer, number
from ..base.shapes import Float, Int, Tensor
from ..saving.configurable import Configurable
from .masked_lm import MaskedLMWrapper, check_schedule
from .options import also_called

__all__ = ["Losses", "NonAutoregressiveWrapper"]


class Losses(NamedTuple):
    """The loss to be minimised, and what it is the sum of; there is no critic."""

    loss: Float[Tensor, ""]
    generator_loss: Float[Tensor, ""]
    critic_loss: Float[Tensor, ""] | None


class NonAutoregressiveWrapper(Configurable):
    """Training and decoding of masked tokens as in https://arxiv.org/abs/2202.04200, called as in x-transformers.

    The share of hidden tokens is drawn anew for each row, by `schedule`. Of them `no_replace_prob` stay and
    `random_token_prob` become another token (x-transformers does either in half of the calls). The loss is the plain
    mean over hidden tokens, x-transformers' with `use_simple_mdlm_loss_weight=False` (its own weight is negative).
    Rows of any length and padding are fine. Self-conditioning and critics don't exist here.
    """

    gives = "losses of token ids"

    def __init__(
        self,
        net: nn.Module,
        *,
        mask_id: int,
        steps: int = 18,
        schedule: str = "linear",
        no_replace_prob: float = 0.15,
        random_token_prob: float = 0.1,
        pad_token_id: int | None = None,
    ):
        integer("mask_id", mask_id, 0)
        kept = number("no_replace_prob", no_replace_prob, at_least=0, at_most=1)
        odd = number("random_token_prob", random_token_prob, at_least=0, at_most=1)
        if kept + odd > 1:
            raise ValueError(f"no_replace_prob={kept} and random_token_prob={odd} are more than 1")
        super().__init__()
        self.masked = MaskedLMWrapper(
            net,
            mask_token_id=mask_id,
            pad_token_id=pad_token_id,
            mask_prob=check_schedule("schedule", schedule),
            replace_prob=1 - kept - odd,
            random_token_prob=odd,
        )
        self.steps, self.schedule = integer("steps", steps, 1), schedule

    @property
    def net(self) -> nn.Module:
        """The model that is trained."""
        return self.masked.net

    def forward(
        self, x: Int[Tensor, "b n"], mask: Tensor | None = None, *, generator: torch.Generator | None = None, **kwargs
    ) -> Losses:
        """The losses of one batch; arguments as in MaskedLMWrapper."""
        loss = self.masked(x, mask, generator=generator, return_outputs=False, **kwargs)
        return Losses(loss, loss, None)

    @also_called(temperature="start_temperature")
    def generate(
        self, batch_size: int | None = None, start_temperature: float = 1.0, filter_thres: float = 0.7, **kwargs
    ) -> Int[Tensor, "*b n"]:
        """New rows (batch_size, n), or one row (n,) without a batch size; `ids=` fills in those instead.

        filter_thres: the share of the vocabulary that is never drawn. start_temperature: MaskedLMWrapper's temperature,
        which is another name of it. kwargs: of MaskedLMWrapper.generate.
        """
        share = 1 - number("filter_thres", filter_thres, at_least=0, at_most=1)
        kept = {"k": 1} if share == 0 else {"frac_num_tokens": share}
        settings: dict[str, Any] = {"filter_logits_fn": "top_k", "filter_kwargs": kept}
        settings |= {"steps": self.steps, "schedule": self.schedule} | kwargs
        made = self.masked.generate(batch_size=batch_size, temperature=start_temperature, **settings)
        return made[0] if batch_size is None and kwargs.get("ids") is None else made
