"""`NonAutoregressiveWrapper`: x-transformers' names for `MaskedLMWrapper`."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ..base.checks import number
from ..base.shapes import Float, Int, Tensor
from ..flags.flag import flag, flags_of, like
from ..saving.configurable import Configurable
from .losses import Terms
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

    The share of hidden tokens is drawn anew for each row (x-transformers replaces some, or leaves some, in half of the
    calls). The loss is the plain mean over hidden tokens, or with `use_simple_mdlm_loss_weight=True` a bound on the
    negative log-likelihood of a token (x-transformers' weights, its default, are negative). Rows of any length and
    padding are fine. Self-conditioning and critics don't exist here.
    """

    @dataclass(frozen=True)
    class Config(Terms):
        net: nn.Module = flag(doc="a bidirectional model from token ids to logits")
        _: KW_ONLY
        mask_id: int = like(MaskedLMWrapper.Config, "mask_token_id")
        steps: int = flag(18, "calls of the net that generate makes", at_least=1)
        schedule: str = flag("linear", "which share is hidden, as time goes on: 'linear' or 'cosine'")
        no_replace_prob: float = flag(0.15, "share of hidden tokens that stay as they are", at_least=0, at_most=1)
        random_token_prob: float = flag(0.1, "share of them that become another token", at_least=0, at_most=1)
        pad_token_id: int | None = like(MaskedLMWrapper.Config, "pad_token_id")
        ignore_index: int = like(MaskedLMWrapper.Config, "ignore_index")
        use_simple_mdlm_loss_weight: bool = like(MaskedLMWrapper.Config, "mdlm_weights")

    gives = "losses of token ids"

    def assemble(self, config: Config) -> None:
        kept, odd = config.no_replace_prob, config.random_token_prob
        if kept + odd > 1:
            raise ValueError(f"no_replace_prob={kept} and random_token_prob={odd} are more than 1")
        self.masked = MaskedLMWrapper(
            config.net,
            mask_token_id=config.mask_id,
            pad_token_id=config.pad_token_id,
            mask_prob=check_schedule("schedule", config.schedule),
            replace_prob=1 - kept - odd,
            random_token_prob=odd,
            ignore_index=config.ignore_index,
            mdlm_weights=config.use_simple_mdlm_loss_weight,
            **{name: getattr(config, name) for name in flags_of(Terms)},
        )
        self.steps, self.schedule = config.steps, config.schedule

    @property
    def net(self) -> nn.Module:
        """The model that is trained."""
        return self.masked.net

    def forward(
        self,
        x: Int[Tensor, "b n"],
        mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        return_count: bool = False,
        **kwargs,
    ) -> Any:
        """The losses of one batch; arguments as in MaskedLMWrapper, with `return_count` (losses, count)."""
        found = self.masked(x, mask, generator=generator, return_count=return_count, return_outputs=False, **kwargs)
        loss, *count = found if return_count else (found,)
        losses = Losses(loss, loss, None)
        return (losses, *count) if count else losses

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
