"""What x-transformers' calls are told that is said otherwise here, handed on to `step` and to the masks."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ..base.checks import as_attn_mask, as_mask, check_switches, given
from ..base.shapes import Bool, Int, Tensor
from ..generation.prompts import row_lengths, token_ids
from .model_state import ModelState
from .options import per_token

__all__ = ["with_side_calls"]

# What x-transformers' models are told in a call: what it may be, and what says nothing.
SIDE_CALLS: dict[str, tuple[Any, Any]] = {
    "seq_start_pos": (Int[Tensor, " b"] | None, None),
    "self_attn_kv_mask": (Bool[Tensor, "b n"] | None, None),
    "cache": (ModelState | None, None),
    "input_not_include_cache": (bool, False),
    "return_intermediates": (bool, False),
}

# What a state has of its first call.
FIRST = ("prepend_embeds", "prepend_mask", "context", "context_mask", "context_pos", "prefix_attn_len")


def with_side_calls(forward: Callable) -> Callable:
    """The call of a model that says some things as x-transformers does too.

    seq_start_pos: (b,) where each row, padded on its left, begins, which a mask says too.  self_attn_kv_mask: (b, n)
    which tokens are seen by others, as an attn_mask says for each of them.  return_intermediates: (logits, state), as
    `step` gives.  cache: that state; x is all tokens, and the logits are of those that the state has not seen, or with
    input_not_include_cache x is these alone.
    """
    signature = inspect.signature(forward)
    *named, beside = signature.parameters.values()
    told_too = [
        inspect.Parameter(name, beside.KEYWORD_ONLY, default=value, annotation=kind)
        for name, (kind, value) in SIDE_CALLS.items()
    ]

    @functools.wraps(forward)
    def call(self: Any, *args: Any, **given: Any) -> Any:
        # A loop, for Dynamo does not know how sets of names are compared.
        if not any(name in SIDE_CALLS for name in given):
            return forward(self, *args, **given)
        told = {name: given.pop(name, value) for name, (_, value) in SIDE_CALLS.items()}
        switches = {name: told[name] for name in ("input_not_include_cache", "return_intermediates")}
        check_switches(**switches)
        x, mask, beside = tokens(*args, **given)
        # A state knows where its rows begin.
        if told["seq_start_pos"] is not None and not (told["cache"] and told["input_not_include_cache"]):
            mask = behind_start(told["seq_start_pos"], x, mask)
        if told["self_attn_kv_mask"] is not None:
            check_keys_alone(self)
            check_whole(told, beside)
            beside["attn_mask"] = seen_keys(told["self_attn_kv_mask"], x, beside)
        if told["cache"] is None and not told["return_intermediates"]:
            return forward(self, x, mask, **beside)
        return cached(self, x, mask, told["cache"], switches, beside)

    call.__annotations__ = {**forward.__annotations__, **{name: kind for name, (kind, _) in SIDE_CALLS.items()}}
    call.__signature__ = signature.replace(parameters=[*named, *told_too, beside])  # ty: ignore[missing-attribute]
    return call


def tokens(x: Tensor, mask: Tensor | None = None, **beside: Any) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """What a call is given: its tokens, their mask, and what is beside them; TypeError for tokens that are no ids."""
    x = token_ids("x", x)
    if x.dim() != 2:
        raise ValueError(f"x must be (batch, tokens), not {tuple(x.shape)}")
    return x, mask, beside


def behind_start(seq_start_pos: Any, x: Int[Tensor, "b n"], mask: Tensor | None) -> Bool[Tensor, "b n"]:
    """The mask of rows that are padded on the left, each with its first token at `seq_start_pos` (b,)."""
    b, n = x.shape
    starts = row_lengths("seq_start_pos", seq_start_pos, x)
    real = torch.arange(n, device=x.device) >= starts[:, None]
    return real if mask is None else real & as_mask(mask, (b, n))


def check_keys_alone(model: Any) -> None:
    """ValueError for a model in which hidden tokens would be seen by tokens of its own that stand in front of all."""
    layers, pooled = model.attn_layers, model.pooled
    learned = "memory tokens" if layers.memory_tokens is not None and not layers.causal else ""
    learned = "class tokens" if pooled is not None and pooled.count else learned
    if learned:
        raise ValueError(
            f"self_attn_kv_mask hides tokens from others, but the model's {learned} see all of them: give mask, which "
            "leaves tokens out"
        )


def check_whole(told: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
    """ValueError for keys that are hidden in a call with a state."""
    stated = [told["cache"] is not None, told["return_intermediates"], beside.get("mems") is not None]
    if any(stated) or beside.get("return_mems"):
        raise ValueError(
            "self_attn_kv_mask is of whole sequences: it cannot be given to a call with a state (cache, "
            "return_intermediates, mems, return_mems); give mask, which leaves tokens out"
        )


def seen_keys(self_attn_kv_mask: Any, x: Int[Tensor, "b n"], beside: Mapping[str, Any]) -> Bool[Tensor, "b h m m"]:
    """The attn_mask in which no token sees those where `self_attn_kv_mask` (b, n) is False, and what a given one says.

    Embeddings in front of the tokens are seen.
    """
    (b, n), front, attn_mask = x.shape, beside.get("prepend_embeds"), beside.get("attn_mask")
    p = front.shape[1] if isinstance(front, torch.Tensor) and front.dim() == 3 else 0
    seen = F.pad(as_mask(self_attn_kv_mask, (b, n), "self_attn_kv_mask"), (p, 0), value=True)[:, None, None]
    seen = seen.expand(b, 1, p + n, p + n)
    if attn_mask is None:
        return seen
    heads = {attn_mask.shape[1]} if isinstance(attn_mask, torch.Tensor) and attn_mask.dim() == 4 else {1}
    return seen & as_attn_mask(attn_mask, b, p + n, heads)


def cached(
    model: Any,
    x: Int[Tensor, "b n"],
    mask: Tensor | None,
    cache: Any,
    switches: Mapping[str, Any],
    beside: Mapping[str, Any],
) -> Any:
    """`model.step` by x-transformers' names: the logits of the tokens that `cache` has not seen, and the state.

    switches: `input_not_include_cache`, whether x is new tokens only and not all of them; `return_intermediates`,
    whether the state is given too.  beside: what else the call was given.
    """
    if not model.attn_layers.causal:
        raise ValueError(
            f"{type(model).__name__} is bidirectional and has no state: return_intermediates=True is of causal models, "
            "return_hiddens=True gives the streams of all layers"
        )
    if cache is not None and not isinstance(cache, ModelState):
        raise TypeError(f"cache must be the state that return_intermediates=True gave, not {given(cache)}")
    sides = {name: value for name, value in beside.items() if value is not None and value is not False}
    for name in ("attn_mask", "doc_ids", "mems", *(name for name in sides if name.startswith("return_"))):
        if name in sides:
            raise ValueError(f"{name} cannot be given together with cache and return_intermediates")
    if cache is not None and not switches["input_not_include_cache"]:
        seen = cache.bound
        if x.shape[1] <= seen:
            raise ValueError(
                f"x has {x.shape[1]} tokens, but cache has seen {seen}: x is all tokens, those that the cache has seen "
                "in front; with input_not_include_cache=True it is the new ones"
            )
        mask = None if mask is None else as_mask(mask, (x.shape[0], x.shape[1]))[:, seen:]
        x, sides = x[:, seen:], behind_seen(sides, seen)
    logits, state = model.step(x, cache, mask, **sides)
    return (logits, state) if switches["return_intermediates"] else logits


def behind_seen(sides: Mapping[str, Any], seen: int) -> dict[str, Any]:
    """What is beside the tokens as it is for those behind the first `seen`, without what was in front of these."""
    sides = {name: value for name, value in sides.items() if name not in FIRST}
    cut = {name: value[:, seen:] if name in per_token(sides) else value for name, value in sides.items()}
    if isinstance(ids := sides.get("embed_ids"), Mapping):
        cut["embed_ids"] = {name: one[:, seen:] for name, one in ids.items()}
    return cut
