"""From logits to tokens: filters that set what may not be drawn to -inf, the repetition penalty, and the draw.

Every function is pure, takes logits `(..., v)` and works in at least float32. Of equal logits the lower id counts as
the larger, so a filter keeps the same tokens on every device. A NaN stays where it
is, for `sample` to notice.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any

import torch
import torch.nn.functional as F

from ..base.checks import check_generator, describe, integer, number, shown
from ..base.frozen import frozen
from ..base.registry import nearest
from ..base.shapes import Bool, Float, Int, Tensor

__all__ = ["FILTERS", "Draw", "min_p", "repetition_penalty", "sample", "seen_tokens", "top_a", "top_k", "top_p"]

# A share of the vocabulary is meant as written: 0.07 * 100 is 7 tokens although in floats it is a little more.
SHARE_SLACK = 1e-6


def wide(logits: Float[Tensor, "*b v"]) -> Float[Tensor, "*b v"]:
    """The logits in float32, or as they are if they have more bits."""
    if not isinstance(logits, torch.Tensor) or not logits.is_floating_point() or logits.ndim == 0:
        raise TypeError(f"logits must be a floating-point tensor (..., v), not {describe(logits)}")
    if logits.shape[-1] == 0:
        raise ValueError(f"logits must be (..., v) with a vocabulary of at least one token, not {tuple(logits.shape)}")
    return logits if logits.dtype == torch.float64 else logits.float()


def top_k(
    logits: Float[Tensor, "*b v"],
    frac_num_tokens: float | None = None,
    k: int | None = None,
    thres: float | None = None,
) -> Float[Tensor, "*b v"]:
    """Keeps the k largest logits (https://arxiv.org/abs/1805.04833), never fewer than one.

    How many is given in one way: `k`; `frac_num_tokens`, a share of the vocabulary, rounded up (a tenth unless
    given); or `thres`, the share to drop, what is left rounded down (FLASH-pytorch's `filter_thres`).
    """
    logits = wide(logits)
    v = logits.shape[-1]
    if sum(given is not None for given in (frac_num_tokens, k, thres)) > 1:
        several = f"frac_num_tokens={shown(frac_num_tokens)}, k={shown(k)} and thres={shown(thres)}"
        raise ValueError(f"top_k takes one of {several}, not several")
    if k is not None:
        k = integer("k", k, 1)
    elif thres is not None:
        k = math.floor((1 - number("thres", thres, at_least=0, at_most=1)) * v + SHARE_SLACK)
    else:
        share = 0.1 if frac_num_tokens is None else number("frac_num_tokens", frac_num_tokens, above=0, at_most=1)
        k = math.ceil(share * v - SHARE_SLACK)
    k = min(max(k, 1), v)
    least = logits.topk(k, dim=-1).values[..., -1:]
    equal = logits == least
    room = k - (logits > least).sum(-1, keepdim=True)
    return logits.masked_fill((logits < least) | (equal & (equal.cumsum(-1) > room)), -math.inf)


def top_p(logits: Float[Tensor, "*b v"], thres: float = 0.9) -> Float[Tensor, "*b v"]:
    """Keeps the fewest tokens, likeliest first, whose probabilities reach `thres` (https://arxiv.org/abs/1904.09751)."""
    logits, thres = wide(logits), number("thres", thres, at_least=0, at_most=1)
    # A sum of rounded probabilities can reach 1 before the last token.
    if thres == 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    before = F.pad(ordered.softmax(-1).cumsum(-1), (1, -1))
    drop = before >= thres
    drop[..., 0] = False
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -math.inf)


def top_a(logits: Float[Tensor, "*b v"], min_p_pow: float = 2.0, min_p_ratio: float = 0.02) -> Float[Tensor, "*b v"]:
    """Keeps what is at least `min_p_ratio * p ** min_p_pow` likely, p being the largest probability.

    From https://github.com/BlinkDL/RWKV-LM#the-top-a-sampling-method; the likeliest tokens are always kept.
    """
    logits = wide(logits)
    power, ratio = number("min_p_pow", min_p_pow, at_least=0), number("min_p_ratio", min_p_ratio, at_least=0)
    top = logits.log_softmax(-1).amax(-1, keepdim=True)
    return keep_above(logits, ratio, (power - 1) * top)


def min_p(logits: Float[Tensor, "*b v"], min_p: float = 0.1) -> Float[Tensor, "*b v"]:
    """Keeps what is at least `min_p` times as likely as the likeliest token (https://arxiv.org/abs/2407.01082)."""
    logits = wide(logits)
    return keep_above(logits, number("min_p", min_p, at_least=0, at_most=1), logits.new_zeros(()))


def keep_above(logits: Float[Tensor, "*b v"], ratio: float, log_scale: Float[Tensor, "..."]) -> Float[Tensor, "*b v"]:
    """Keeps logits whose probability is at least `ratio * exp(log_scale)` times the largest one, and the largest."""
    # In logarithms: the ratio of two probabilities is the difference of their logits, and nothing underflows.
    top = logits.amax(-1, keepdim=True)
    floor = top + log_scale + (math.log(ratio) if ratio > 0 else -math.inf)
    return logits.masked_fill((logits < floor) & (logits < top), -math.inf)


def no_filter(logits: Float[Tensor, "*b v"]) -> Float[Tensor, "*b v"]:
    """Keeps everything."""
    return wide(logits)


FILTERS: dict[str, Callable[..., Tensor]] = {
    "top_k": top_k,
    "top_p": top_p,
    "top_a": top_a,
    "min_p": min_p,
    "none": no_filter,
}


def find_filter(choice: str | Callable[..., Tensor], settings: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    """The filter of that name, or the callable, with its settings bound; errors name what is known."""
    name = next((known for known, fn in FILTERS.items() if fn is choice), choice)
    if not isinstance(name, str):
        if not callable(name):
            raise TypeError(f"filter_logits_fn must be a name or a callable, not {describe(name)}")
        return functools.partial(own_filter, name, settings)
    if name not in FILTERS:
        known = ", ".join(map(repr, FILTERS))
        raise ValueError(f"unknown filter {shown(name)}{nearest(name, FILTERS)} (known: {known}, or a callable)")
    fn = FILTERS[name]
    known = list(inspect.signature(fn).parameters)[1:]
    for given in settings:
        if given not in known:
            takes = ", ".join(map(repr, known)) or "nothing"
            raise TypeError(f"the filter {name!r} takes no {given!r}{nearest(given, known)} (takes: {takes})")
    # A value out of range is found here, before a long prompt is read.
    fn(torch.zeros(1, 2), **settings)
    return functools.partial(fn, **settings)


def own_filter(
    fn: Callable[..., Tensor], settings: Mapping[str, Any], logits: Float[Tensor, "*b v"]
) -> Float[Tensor, "*b v"]:
    """The logits that a filter of the caller's own leaves; TypeError or ValueError where that is not one for each."""
    left = fn(logits, **settings)
    if not isinstance(left, torch.Tensor) or not left.is_floating_point():
        raise TypeError(f"filter_logits_fn must give the logits that are left, not {describe(left)}")
    if left.shape != logits.shape:
        raise ValueError(
            f"filter_logits_fn must give logits {tuple(logits.shape)} as it gets them, -inf for what is not to be "
            f"drawn, not {tuple(left.shape)}"
        )
    return left


def filter_settings(settings: Any) -> dict[str, Any]:
    """`filter_kwargs` as a dict; TypeError unless it maps names to values."""
    if settings is not None and not isinstance(settings, Mapping):
        raise TypeError(f"filter_kwargs must map names to values, such as {{'k': 5}}, not {describe(settings)}")
    return dict(settings or {})


def seen_tokens(ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None, v: int) -> Bool[Tensor, "b v"]:
    """Which of v tokens occur in each row; ids at masked places don't count."""
    # Column v takes what does not count: a plain scatter of the mask would let padding undo a real token of its id.
    real = ids < v if mask is None else mask & (ids < v)
    seen = torch.zeros(ids.shape[0], v + 1, dtype=torch.bool, device=ids.device)
    return seen.scatter_(1, torch.where(real, ids, v), True)[:, :v]


def repetition_penalty(
    logits: Float[Tensor, "*b v"], seen: Bool[Tensor, "*b v"], penalty: float
) -> Float[Tensor, "*b v"]:
    """Makes tokens that were `seen` less likely (https://arxiv.org/abs/1909.05858), for a penalty above 1.

    Positive logits are divided by the penalty and negative ones multiplied, as in CTRL's code: dividing a negative
    logit, as its formula has it, would make the token likelier.
    """
    logits, penalty = wide(logits), number("repetition_penalty", penalty, above=0)
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample(
    logits: Float[Tensor, "*b v"], temperature: float = 1.0, generator: torch.Generator | None = None
) -> Int[Tensor, "*b"]:
    """Draws one token a row from softmax(logits / temperature); the likeliest one at temperature 0.

    ValueError for NaN or infinite logits, looked for on the CPU only: on a GPU the look would wait for the device.
    """
    logits, temperature = wide(logits), number("temperature", temperature, at_least=0)
    top = logits.amax(-1, keepdim=True)
    if logits.device.type == "cpu" and not bool(top.isfinite().all()):
        raise ValueError(f"logits must have a finite largest value in each row, not {top.flatten().tolist()[:7]}")
    if temperature == 0:
        return logits.argmax(-1)
    # The largest logit goes first, or a small temperature would overflow.
    probs = ((logits - top) / temperature).softmax(-1)
    # The smallest of Exp(1) / p is token i with probability p_i: what torch.multinomial does, but without its check of
    # the probabilities, which waits for the device at every token.
    race = torch.empty_like(probs).exponential_(generator=generator).clamp_min_(torch.finfo(probs.dtype).tiny)
    return (probs / race).argmax(-1)


@frozen
class Draw:
    """How the next token is chosen from logits; settings that cannot be meant raise TypeError or ValueError."""

    eos_token: int | Sequence[int] | None = None
    temperature: float = 1.0
    filter_logits_fn: str | Callable[..., Tensor] = "top_k"
    filter_kwargs: Mapping[str, Any] | None = None
    filter_thres: float | None = None
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    generator: torch.Generator | None = None
    filter: Callable[[Tensor], Tensor] = field(init=False, repr=False)
    eos_tokens: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self):
        number("temperature", self.temperature, at_least=0)
        number("repetition_penalty", self.repetition_penalty, above=0)
        if integer("min_tokens", self.min_tokens, 0) and self.eos_token is None:
            raise ValueError(f"min_tokens={self.min_tokens} holds back the end token, but eos_token is not given")
        check_generator(self.generator)
        settings = filter_settings(self.filter_kwargs)
        if self.filter_thres is not None:
            if "thres" in settings:
                raise ValueError(f"filter_thres={self.filter_thres} and filter_kwargs={settings} both give thres")
            settings["thres"] = self.filter_thres
        object.__setattr__(self, "filter", find_filter(self.filter_logits_fn, settings))
        several = self.eos_token if isinstance(self.eos_token, (list, tuple)) else (self.eos_token,)
        object.__setattr__(self, "eos_tokens", () if self.eos_token is None else tuple(several))

    def __call__(self, logits: Float[Tensor, "b v"], seen: Bool[Tensor, "b v"] | None, made: int) -> Int[Tensor, " b"]:
        """One token a row, `made` being how many there are already."""
        if seen is not None:
            logits = repetition_penalty(logits, seen, self.repetition_penalty)
        for eos_token in self.eos_tokens if made < self.min_tokens else ():
            eos = torch.full((1,), eos_token, device=logits.device)
            logits = wide(logits).index_fill(-1, eos, -torch.inf)
        if self.temperature > 0:
            logits = self.filter(logits)
        return sample(logits, self.temperature, self.generator)
