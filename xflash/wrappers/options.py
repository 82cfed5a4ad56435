"""What wrappers hand on to the model they wrap: checked by name, cut to the tokens it is given."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ..base.checks import as_mask, check_switch
from ..base.registry import side_inputs
from ..base.shapes import Int, Tensor
from ..flags.aliases import canonical
from ..flags.answering import answering, arguments_of
from ..flags.elsewhere import meant
from ..stack.inputs.side_input import SideInput

__all__ = [
    "also_called",
    "check_adds_none",
    "check_for_new_tokens",
    "check_gives_hiddens",
    "check_handed_on",
    "check_lengths",
    "check_loss_chunk",
    "check_needs_nothing",
    "check_option_names",
    "check_tokens_only",
    "further_flags",
    "per_token",
    "without_last",
]


# What says where a call or a row begins: a trainer hands it on by other names, or not at all.
CARRIED = {"state", "mems", "reset", "cache", "input_not_include_cache", "seq_start_pos", "x_num"}


def check_option_names(how: str, options: Iterable[str], known: Iterable[str], own: Iterable[str] = ()) -> None:
    """TypeError for an option that `how` does not have, with what is meant by it or the nearest one.

    `own`: its arguments that are no options, one of which may be meant.
    """
    known = list(known)
    for name in options:
        if name not in known:
            raise TypeError(f"{how} has no option {name!r}{meant(name, [*known, *own])}")


def check_adds_none(net: Any) -> None:
    """ValueError for a net whose layers have a loss of their own, where none is added."""
    if net.has_auxiliary_loss:
        raise ValueError(
            f"{net.auxiliary_flags} would be lost: the loss here is that of the outputs alone; build the stack without"
        )


def check_handed_on(how: str, options: Mapping[str, Any], own: Callable, call: Callable) -> None:
    """`check_option_names` of the options of `own` and what is left of them for the model's `call`.

    A model that takes any keyword says itself what it does not know.
    """
    if not options or torch.compiler.is_compiling():
        return
    kinds = dict.fromkeys(name for function in (call, own) for name in arguments_of(function))
    taken = arguments_of(call).values()
    if any(p.kind is p.VAR_KEYWORD for p in taken):
        return
    handed = {p.name for p in list(taken)[1:] if not p.name.startswith("return_")} - CARRIED
    every = inspect.signature(own).parameters
    own_names = {p.name for p in every.values() if p.kind is p.KEYWORD_ONLY}
    check_option_names(how, options, [name for name in kinds if name in handed | own_names], every)


def check_tokens_only(net: Any, what: str) -> None:
    """ValueError for a model that needs ids of further embeddings (`embed_num_tokens`) beside the tokens."""
    names = getattr(getattr(net, "embedding", None), "embed_num_tokens", None)
    if isinstance(names, Mapping) and names:
        raise ValueError(
            f"{type(net).__name__} was built with embed_num_tokens ({', '.join(map(repr, names))}), and {what}"
        )


def check_needs_nothing(stack: Any, what: str, but: str = "") -> None:
    """ValueError for a stack that must be given something beside x in each call, such as a condition; `but`: this."""
    needed = [name for name in stack.asked if side_inputs[name]().needed and name != but]
    if needed:
        raise ValueError(f"parts of the stack need {needed[0]}, but {what}")


def further_flags(
    stack: Any, flags: Mapping[str, Any], taken: Iterable[str], implied: Iterable[str] = ()
) -> dict[str, Any]:
    """All flags of a stack as a model that hands on `flags` writes them into its config.

    taken: those that say the same as arguments of the model.  implied: those that arguments of the model may set, left
    to them where they are not among the flags.
    """
    left = {*taken, *(set(implied) - canonical(flags).keys())}
    return {name: value for name, value in stack.arguments.items() if name not in left}


def check_loss_chunk(net: Any, chunk: int | None) -> None:
    """TypeError unless `chunk` is None, or `net` has a head of its own to call."""
    if chunk is None:
        return
    if "return_embeddings" not in inspect.signature(net.forward).parameters or not hasattr(net, "logits"):
        raise TypeError(
            f"loss_chunk={chunk} needs a net that gives its embeddings (return_embeddings=True) and turns them into "
            f"logits (net.logits), as TransformerWrapper does; {type(net).__name__} does not"
        )


def check_lengths(kwargs: Mapping[str, Any], n: int, whole: str) -> None:
    """ValueError for side inputs of tokens that are not of the n tokens of `whole`."""
    for name in per_token(kwargs):
        count = kwargs[name].shape[1]
        if count != n:
            raise ValueError(f"{name} is of {count} tokens, but {whole} has {n}")


def per_token(kwargs: Mapping[str, Any]) -> list[str]:
    """The side inputs among the arguments that have an entry for each of some tokens."""
    many = [name for name, value in kwargs.items() if isinstance(value, torch.Tensor) and value.dim() > 1]
    return [n for n in many if n in side_inputs and side_inputs[n]().per_token(kwargs[n], kwargs[n].shape[1])]


def check_for_new_tokens(how: str, kwargs: Mapping[str, Any]) -> None:
    """ValueError for what every call needs, but is given for each token of the prompts only."""
    for name in per_token(kwargs):
        if side_inputs[name]().needed:
            carries = side_inputs[name].carried is not SideInput.carried
            instead = "; give one for each row" if carries else ""
            raise ValueError(
                f"{how} makes tokens that would have no {name}: {tuple(kwargs[name].shape)} is one for each token of "
                f"the prompts{instead}"
            )


def check_gives_hiddens(net: Any, wanted: Any) -> None:
    """TypeError unless `wanted` is a switch, and where it is on, `net` gives the streams of its layers."""
    check_switch("return_hiddens", wanted)
    if wanted and "return_hiddens" not in inspect.signature(net.forward).parameters:
        raise TypeError(
            f"return_hiddens=True needs a net that gives the streams of its layers, as TransformerWrapper does; "
            f"{type(net).__name__} does not"
        )


def without_last(kwargs: Mapping[str, Any], x: Int[Tensor, "b n"]) -> dict[str, Any]:
    """The arguments of a model beside x as they are for all but its last token; ValueError for what does not fit x."""
    cut, n = dict(kwargs), x.shape[1]
    embed_ids, attn_mask, front = (kwargs.get(name) for name in ("embed_ids", "attn_mask", "prepend_embeds"))
    if isinstance(embed_ids, Mapping):
        for name, ids in embed_ids.items():
            if isinstance(ids, torch.Tensor) and ids.shape != x.shape:
                raise ValueError(f"embed_ids[{name!r}] has shape {tuple(ids.shape)}, but x has {tuple(x.shape)}")
        cut["embed_ids"] = {k: v[:, :-1] if isinstance(v, torch.Tensor) else v for k, v in embed_ids.items()}
    check_lengths(kwargs, n, "x")
    if isinstance(seen := kwargs.get("self_attn_kv_mask"), torch.Tensor):
        cut["self_attn_kv_mask"] = as_mask(seen, (x.shape[0], n), "self_attn_kv_mask")[:, :-1]
    for name in side_inputs:
        if name in kwargs and side_inputs[name]().per_token(kwargs[name], n):
            cut[name] = kwargs[name][:, :-1]
    if isinstance(attn_mask, torch.Tensor):
        m = n + (front.shape[1] if isinstance(front, torch.Tensor) and front.dim() == 3 else 0)
        if tuple(attn_mask.shape[-2:]) != (m, m):
            raise ValueError(
                f"attn_mask must end in ({m}, {m}), a row and a column for every token, not {tuple(attn_mask.shape)}"
            )
        cut["attn_mask"] = attn_mask[..., :-1, :-1]
    return cut


def also_called(**names: str) -> Callable[[Callable], Callable]:
    """Decorator: the arguments can be given by these other names too (theirs=ours)."""

    def decorate(fn: Callable) -> Callable:
        fn = answering(fn)

        @functools.wraps(fn)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for theirs, ours in names.items():
                if theirs in kwargs:
                    if ours in kwargs:
                        raise TypeError(f"{theirs} and {ours} are two names of one argument: give one of them")
                    kwargs[ours] = kwargs.pop(theirs)
            return fn(*args, **kwargs)

        return wrapper

    return decorate
