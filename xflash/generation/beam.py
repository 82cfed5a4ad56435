"""Beam search over a causal model. `a` counts the hypotheses (beams) of a row."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..base.checks import integer, number
from ..base.shapes import Bool, Float, Int, Tensor
from .decoding import advance, begin, check_every
from .nets import check_eos, ends
from .prompts import Prompts, check_seq_len, window
from .sampling import wide

__all__ = ["Beams", "beam_search", "widen"]


class Beams(NamedTuple):
    """The hypotheses of each row, `a` of them: sum of log-probabilities (-inf: no such beam), tokens, whether ended."""

    total: Float[Tensor, "b a"]
    length: Int[Tensor, "b a"]
    ended: Bool[Tensor, "b a"]

    def scores(self, length_penalty: float) -> Float[Tensor, "b a"]:
        """What hypotheses are ranked by: the log-probability over length ** length_penalty."""
        return self.total / self.length.clamp(min=1).to(self.total.dtype) ** length_penalty

    def settled(self, seq_len: int, length_penalty: float) -> Bool[Tensor, " b"]:
        """True for rows whose best ended hypothesis no open one can overtake within `seq_len` tokens."""
        # More tokens can only lower the total: no score exceeds what the total gives at its own or at the full length.
        hope = torch.maximum(self.scores(length_penalty), self.total / seq_len**length_penalty)
        best = self.scores(length_penalty).masked_fill(~self.ended, -torch.inf).amax(1)
        return best >= hope.masked_fill(self.ended, -torch.inf).amax(1)

    def over(self, seq_len: int, length_penalty: float, all_beams: bool) -> bool:
        """Whether more tokens cannot change the result: all hypotheses, or only the best one of each row."""
        rows = (self.ended | (self.total == -torch.inf)).all(1)
        return bool((rows if all_beams else rows | self.settled(seq_len, length_penalty)).all())


def widen(
    beams: Beams, log_probs: Float[Tensor, "b a v"], eos_tokens: tuple[int, ...], length_penalty: float
) -> tuple[Beams, Int[Tensor, "b a"], Int[Tensor, "b a"], Bool[Tensor, "b a"]]:
    """One step: the best `a` of all hypotheses with one more token; ended ones stay as they are and compete on.

    Gives the beams, the beam each one continues, its new token, and whether that one had already ended (the token
    then means nothing).
    """
    a, v = log_probs.shape[1:]
    # An ended hypothesis has a single continuation, itself, which costs nothing.
    stay = torch.full_like(log_probs[0, 0], -torch.inf)
    stay[0] = 0
    total = beams.total[..., None] + torch.where(beams.ended[..., None], stay, log_probs)
    length = beams.length + ~beams.ended
    scores = total / length[..., None].to(total.dtype) ** length_penalty
    chosen = scores.flatten(1).topk(a, dim=1).indices
    parent, token = chosen // v, chosen % v
    before = beams.ended.gather(1, parent)
    ended = before | ends(token, eos_tokens) if eos_tokens else before
    return Beams(total.flatten(1).gather(1, chosen), length.gather(1, parent), ended), parent, token, before


def fresh(b: int, a: int, like: Float[Tensor, "b v"]) -> Beams:
    """Empty hypotheses, all of them alike, so that only the first of each row counts."""
    zeros = torch.zeros(b, a, dtype=torch.long, device=like.device)
    total = torch.full((b, a), -torch.inf, dtype=like.dtype, device=like.device)
    total[:, 0] = 0
    return Beams(total, zeros, zeros.bool())


def trace(
    steps: list[tuple[Int[Tensor, "b a"], Int[Tensor, "b a"]]], beams: Beams, pad_value: int
) -> Int[Tensor, "b a n"]:
    """The tokens of each hypothesis, read backwards from the last step along `(parent, token)`."""
    here = torch.arange(beams.total.shape[1], device=beams.total.device).expand_as(beams.total)
    tokens = []
    for parent, token in reversed(steps):
        tokens.append(token.gather(1, here))
        here = parent.gather(1, here)
    found = torch.stack(tokens[::-1], dim=-1)
    return found.masked_fill((beams.total == -torch.inf)[..., None], pad_value)


def beam_search(
    net: Any,
    prompts: Prompts,
    seq_len: int,
    kwargs: Mapping[str, Any],
    *,
    beams: int = 4,
    eos_token: int | Sequence[int] | None = None,
    length_penalty: float = 1.0,
    temperature: float = 1.0,
    pad_value: int = 0,
    all_beams: bool = False,
    restrict_to_max_seq_len: bool = False,
    cache_kv: bool = True,
) -> tuple[Int[Tensor, "b a n"], Float[Tensor, "b a"]]:
    """Each row's hypotheses (the best alone unless `all_beams`), padded behind their end, and their scores."""
    seq_len, beams = check_seq_len(seq_len), integer("beams", beams, 1)
    eos_tokens = check_eos(net, eos_token)
    length_penalty = number("length_penalty", length_penalty, at_least=-8, at_most=8)
    temperature = number("temperature", temperature, above=0)
    last = window(net, prompts, seq_len, restrict_to_max_seq_len)
    logits, state = begin(net, prompts, kwargs, last=last, cache_kv=cache_kv)
    (b, _), device = logits.shape, logits.device
    state = state.reorder(torch.arange(b, device=device).repeat_interleave(beams))
    log_probs = (wide(logits) / temperature).log_softmax(-1)
    found, log_probs = fresh(b, beams, log_probs), log_probs[:, None].expand(b, beams, -1)
    first = torch.arange(b, device=device)[:, None] * beams
    steps = []
    for made in range(1, seq_len + 1):
        found, parent, token, ended = widen(found, log_probs, eos_tokens, length_penalty)
        # On a GPU the look would wait for the device.
        if device.type == "cpu" and bool(found.total.isnan().any()):
            raise ValueError(
                "logits must have a finite largest value in each row: no hypothesis is better than another"
            )
        steps.append((parent, token.masked_fill(ended, pad_value)))
        look = bool(eos_tokens) and made % check_every(device) == 0
        if made == seq_len or (look and found.over(seq_len, length_penalty, all_beams)):
            break
        state = state.reorder((first + parent).flatten())
        logits, state = advance(net, token.flatten(), state)
        log_probs = (wide(logits) / temperature).log_softmax(-1).unflatten(0, (b, beams))
    kept = found if all_beams else Beams(*(t[:, :1] for t in found))
    # How long it took to notice that all had ended must not show in the result.
    longest = int(kept.length.masked_fill(kept.total == -torch.inf, 0).max())
    return trace(steps, kept, pad_value)[..., :longest], kept.scores(length_penalty)
