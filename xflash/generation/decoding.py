"""From logits to tokens one after the other: the next logits with a state or without, and what is drawn of them."""

import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..base.checks import given
from ..base.registry import side_inputs
from ..base.shapes import Bool, Float, Int, Tensor
from .nets import ends, only_logits
from .prompts import Prompts, prefix_of
from .sampling import Draw, seen_tokens, wide

__all__ = ["Drawn", "Recomputed", "advance", "begin", "check_every", "draws", "evaluating", "until_ended"]


class Recomputed(NamedTuple):
    """Stands for a state where there is none: all tokens so far, read anew for every next one (the slow definition)."""

    ids: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"] | None
    window: int | None
    kwargs: Mapping[str, Any]

    def logits(self, net: Any) -> Float[Tensor, "b v"]:
        """The logits after the last token, which is the last column of every row."""
        last = slice(None) if self.window is None else slice(-self.window, None)
        masked = {} if self.mask is None else {"mask": self.mask[:, last]}
        ids = self.ids[:, last]
        return only_logits(net, net(ids, **masked, **{**self.kwargs, **self.prefix(ids.shape[1])}), ids)[:, -1]

    def prefix(self, n: int) -> dict[str, Any]:
        """What is left of a prefix among the last n tokens."""
        b, read = self.ids.shape[:2]
        prefix = prefix_of(self.kwargs, b)
        if prefix is None or n == read:
            return {}
        gone: Any = read - n if self.mask is None else self.mask[:, : read - n].sum(1)
        left = prefix - gone
        return {"prefix_attn_len": left.clamp(min=0) if isinstance(left, torch.Tensor) else max(left, 0)}

    def append(self, tokens: Int[Tensor, " b"]) -> "Recomputed":
        """One more token a row."""
        mask = None if self.mask is None else torch.cat((self.mask, torch.ones_like(self.mask[:, :1])), 1)
        return self._replace(ids=torch.cat((self.ids, tokens[:, None]), 1), mask=mask)

    def reorder(self, index: Int[Tensor, " b2"]) -> "Recomputed":
        """The rows that `index` names, with their rows of every tensor in kwargs (context and the like)."""
        mask = None if self.mask is None else self.mask[index]
        kwargs = {k: v if shared(k, v) else v[index] for k, v in self.kwargs.items()}
        return self._replace(ids=self.ids[index], mask=mask, kwargs=kwargs)


def shared(name: str, value: Any) -> bool:
    """Whether an argument of the model is one for all rows."""
    if not isinstance(value, torch.Tensor):
        return True
    return name in side_inputs and side_inputs[name]().one_for_all(value)


def begin(
    net: Any, prompts: Prompts, kwargs: Mapping[str, Any], *, last: int | None = None, cache_kv: bool = True
) -> tuple[Float[Tensor, "b v"], Any]:
    """The logits after the prompts, and the state to go on from; `last` is what `window` gave."""
    if last is not None or not cache_kv:
        state = Recomputed(prompts.ids, prompts.mask, last, kwargs)
        return state.logits(net), state
    if not hasattr(net, "step"):
        raise TypeError(f"{type(net).__name__} has no step(ids, state, mask=): give cache_kv=False to go without one")
    masked = {} if prompts.mask is None else {"mask": prompts.mask}
    return last_logits(net, net.step(prompts.ids, None, **masked, **kwargs), prompts.ids)


def advance(net: Any, tokens: Int[Tensor, " b"], state: Any) -> tuple[Float[Tensor, "b v"], Any]:
    """The logits after one more token a row, and the next state."""
    if isinstance(state, Recomputed):
        state = state.append(tokens)
        return state.logits(net), state
    return last_logits(net, net.step(tokens[:, None], state), tokens[:, None])


def last_logits(net: Any, out: Any, ids: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b v"], Any]:
    """The logits of the last token, and the state, of what a step gave; TypeError where that is no such pair."""
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"{type(net).__name__}.step must give (logits, state), not {given(out)}")
    return only_logits(net, out[0], ids)[:, -1], out[1]


def check_every(device: torch.device) -> int:
    """After how many tokens to look whether all rows have ended: on a GPU each look waits for the device."""
    return 1 if device.type == "cpu" else 16


class Drawn(NamedTuple):
    """A token a row, the batch shaped as the prompts', which rows have ended with it, and how likely each was (None:
    that is not asked for).
    """

    token: Int[Tensor, "*b"]
    ended: Bool[Tensor, " b"]
    log_prob: Float[Tensor, "*b"] | None


def draws(
    net: Any,
    prompts: Prompts,
    seq_len: int,
    draw: Draw,
    kwargs: Mapping[str, Any],
    *,
    last: int | None,
    cache_kv: bool,
    pad_value: int,
    log_probs: bool = False,
) -> Iterator[Drawn]:
    """Token after token; log_probs: with the log-probability of each, 0 behind a row's end, before any filter."""
    logits, state = begin(net, prompts, kwargs, last=last, cache_kv=cache_kv)
    seen = None if draw.repetition_penalty == 1 else seen_tokens(prompts.ids, prompts.mask, logits.shape[-1])
    ended = torch.zeros(len(prompts.ids), dtype=torch.bool, device=logits.device)
    for made in range(seq_len):
        if made:
            logits, state = advance(net, token, state)
        token = draw(logits, seen, made)
        shown, likely = token.masked_fill(ended, pad_value), None
        if log_probs:
            likely = wide(logits).log_softmax(-1).gather(-1, token[:, None])[:, 0].masked_fill(ended, 0)
            likely = likely.reshape(prompts.lead)
        if draw.eos_tokens:
            ended = ended | ends(token, draw.eos_tokens)
        if seen is not None:
            seen = seen.scatter(1, token[:, None], True)
        yield Drawn(shown.reshape(prompts.lead), ended, likely)


def until_ended(steps: Iterator[Drawn], look: bool) -> tuple[Int[Tensor, "*b n"], Float[Tensor, "*b n"] | None]:
    """What `draws` makes, its tokens in one tensor and their log-probabilities in another.

    look: no more than until all rows have ended.
    """
    made: list[Drawn] = []
    unended: Any = 0
    for drawn in steps:
        made.append(drawn)
        unended = unended + ~drawn.ended.all()
        if look and len(made) % check_every(drawn.token.device) == 0 and bool(drawn.ended.all()):
            break
    # How long it took to notice that all rows had ended must not show in the result.
    kept = made[: int(unended) + 1] if look else made
    tokens = torch.stack([drawn.token for drawn in kept], dim=-1)
    likely = [drawn.log_prob for drawn in kept if drawn.log_prob is not None]
    return tokens, torch.stack(likely, dim=-1) if likely else None


# The modules that go back to training mode when nobody evaluates them any more, and how many do; changed under a lock,
# for threads may generate from one model.
EVALUATED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
COUNTING = threading.Lock()


@contextmanager
def evaluating(module: nn.Module) -> Generator[None, None, None]:
    """Eval mode without gradients inside; afterwards every submodule is in the mode it was in, whatever happened.

    Where several are inside, in one thread or in many, modes come back with the last of them.
    """
    with COUNTING:
        held = [m for m in module.modules() if m.training or m in EVALUATED]
        for m in held:
            EVALUATED[m] = EVALUATED.get(m, 0) + 1
            m.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        with COUNTING:
            for m in held:
                EVALUATED[m] -= 1
                if not EVALUATED[m]:
                    del EVALUATED[m]
                    m.training = True
