"""Contrastive decoding: tokens that a model finds likelier than a weaker one does (https://arxiv.org/abs/2309.09117)."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from ..base.checks import describe, number, shown
from ..base.registry import nearest
from ..base.shapes import Float, Int, Tensor
from .nets import check_causal, check_gives_logits, only_logits
from .sampling import wide

__all__ = ["Contrast", "contrast", "contrasted"]


def contrast(
    expert: Float[Tensor, "*b v"], amateur: Float[Tensor, "*b v"], beta: float = 0.5, alpha: float = 0.1
) -> Float[Tensor, "*b v"]:
    """(1 + beta) expert - beta amateur, -inf for what is less than alpha times as likely as the expert's likeliest."""
    expert, amateur = wide(expert), wide(amateur)
    floor = expert.amax(-1, keepdim=True) + math.log(alpha)
    mixed = (1 + beta) * expert - beta * amateur
    return mixed.masked_fill(expert < floor, -math.inf)


class Several(NamedTuple):
    """The states of several models that read the same tokens."""

    states: tuple[Any, ...]

    def reorder(self, index: Int[Tensor, " b2"]) -> "Several":
        """The rows that `index` names, of each."""
        return Several(tuple(state.reorder(index) for state in self.states))


class Contrast(nn.Module):
    """A causal model, and weaker ones beside it that it is contrasted with, one after the other."""

    causal = True

    def __init__(self, expert: Any, amateurs: list[Any], how: list[dict[str, float]]):
        super().__init__()
        self.models, self.how = nn.ModuleList([expert, *amateurs]), how
        self.num_tokens = getattr(expert, "num_tokens", None)
        limits = [getattr(net, "length_limit", getattr(net, "max_seq_len", None)) for net in self.models]
        self.length_limit = min((limit for limit in limits if limit is not None), default=None)

    def forward(self, x: Int[Tensor, "b n"], **given: Any) -> Float[Tensor, "b n v"]:
        """The contrasted logits of whole rows."""
        return self.mixed([only_logits(net, net(x, **given), x) for net in self.models])

    def step(
        self, x: Int[Tensor, "b n"], state: Several | None = None, **given: Any
    ) -> tuple[Float[Tensor, "b n v"], Several]:
        """The contrasted logits of new tokens, and the states of all models with them."""
        states = (None,) * len(self.models) if state is None else state.states
        models: Any = self.models
        found = [net.step(x, held, **given) for net, held in zip(models, states, strict=True)]
        return self.mixed([logits for logits, _ in found]), Several(tuple(after for _, after in found))

    def mixed(self, logits: list[Float[Tensor, "b n v"]]) -> Float[Tensor, "b n v"]:
        """The expert's logits, contrasted with those of each other model."""
        found, *others = logits
        for other, how in zip(others, self.how, strict=True):
            if other.shape != found.shape:
                raise ValueError(
                    f"amateur_model gives logits of {other.shape[-1]} tokens, but the model it is contrasted with of "
                    f"{found.shape[-1]}"
                )
            found = contrast(found, other, **how)
        return found


def contrasted(expert: Any, amateurs: Any, settings: Any, cached: bool) -> Contrast:
    """`expert` beside one or several weaker models, with one or several settings; TypeError or ValueError for others.

    cached: whether they are stepped.
    """
    many = list(amateurs) if isinstance(amateurs, (list, tuple)) else [amateurs]
    several = isinstance(settings, (list, tuple))
    told = list(settings) if several else [settings] * len(many)
    if not many:
        raise ValueError("amateur_model is an empty list: give a model, several, or None")
    if len(told) != len(many):
        given = f"{len(told)} contrastive_decode_kwargs"
        raise ValueError(f"there are {len(many)} models in amateur_model and {given}: give one for each")
    for net in many:
        check_gives_logits(net)
        check_causal(net)
        if cached and not hasattr(net, "step"):
            raise TypeError(f"{type(net).__name__} has no step(ids, state, mask=): give cache_kv=False to go without")
    return Contrast(expert, many, [read_settings(one) for one in told])


def read_settings(settings: Any) -> dict[str, float]:
    """`beta` and `alpha`; TypeError or ValueError for what is none of them."""
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise TypeError(
            f"contrastive_decode_kwargs must map names to values, such as {{'beta': 0.5}}, not {describe(settings)}"
        )
    for name in settings:
        if name not in ("beta", "alpha"):
            close = nearest(name, ("beta", "alpha"))
            raise TypeError(f"contrastive_decode_kwargs has no {shown(name)}{close} (known: 'beta', 'alpha')")
    found = {name: number(name, value, at_least=0) for name, value in settings.items()}
    if "alpha" in found:
        number("alpha", found["alpha"], above=0, at_most=1)
    return found
