"""What a net must be, and must give, to be trained on token ids and to generate them."""

from typing import Any

import torch
from torch import nn

from ..base.checks import describe, integer
from ..base.shapes import Bool, Float, Int, Tensor
from ..stack.face import AttentionLayers

__all__ = [
    "check_bidirectional",
    "check_causal",
    "check_eos",
    "check_gives_logits",
    "check_token",
    "ends",
    "only_logits",
]


def check_gives_logits(net: Any) -> None:
    """TypeError or ValueError unless `net` may be a model from token ids to logits; a net of one's own may be any."""
    wanted = "net must be a model from token ids to logits such as TransformerWrapper"
    if not isinstance(net, nn.Module):
        raise TypeError(f"{wanted}, not {describe(net)}")
    name, gives = type(net).__name__, getattr(net, "gives", "")
    if isinstance(gives, str) and gives:
        raise TypeError(f"{wanted}; {name} gives {gives}")
    kind = type(net).__module__.removeprefix("torch.nn.modules.")
    # Of torch's own layers, containers and tables of embeddings can be such a model.
    if kind != type(net).__module__ and kind not in ("container", "sparse"):
        raise TypeError(f"{wanted}, not a single layer, {name}")
    if getattr(net, "return_only_embed", False) is True:
        raise ValueError(f"{name} has return_only_embed=True: it gives embeddings, and a loss needs logits")


def check_causal(net: nn.Module) -> None:
    """ValueError for a net that sees what it is to predict, as it says itself or as all stacks inside it are."""
    name, says = type(net).__name__, getattr(net, "causal", None)
    if says is not None and not says:
        instead = "build it with causal=True" if "causal" in getattr(net, "arguments", ()) else "use a Decoder"
        raise ValueError(f"{name} is bidirectional, so it sees what it is to predict: {instead}")
    stacks = [m for m in net.modules() if isinstance(m, AttentionLayers)] if says is None else []
    if stacks and not any(stack.causal for stack in stacks):
        raise ValueError(
            f"{name} does not say that it is causal, and all stacks in it are bidirectional, so that it would see what "
            "it is to predict: use a Decoder, or set causal = True on it if it looks back only"
        )


def check_bidirectional(net: Any) -> None:
    """TypeError or ValueError unless `net` can be trained on hidden tokens."""
    check_gives_logits(net)
    name, pooled = type(net).__name__, getattr(net, "pooled", None)
    if pooled is not None:
        raise ValueError(f"{name} pools its outputs ({pooled.kind}=True): it tells no single tokens")
    if getattr(net, "causal", False):
        raise ValueError(
            f"{name} is causal: it would guess a hidden token from those before it only; use an Encoder "
            "(AutoregressiveWrapper trains a Decoder)"
        )


def only_logits(net: Any, out: Any, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n v"]:
    """What a model gave for `ids`; TypeError or ValueError where that is not logits alone, one row of them a token."""
    if isinstance(out, torch.Tensor):
        # Embeddings in front of the tokens have logits too.
        if out.dim() != 3 or out.shape[0] != ids.shape[0] or out.shape[1] < ids.shape[1]:
            b, n = ids.shape
            raise ValueError(
                f"{type(net).__name__} given ids ({b}, {n}) must give logits ({b}, {n}, num_tokens), "
                f"not {tuple(out.shape)}"
            )
        return out
    raise TypeError(
        f"{type(net).__name__} called with ids gives a {type(out).__name__}, not logits alone: use its own loss, and "
        "generate with its step (cache_kv=True)"
    )


def check_eos(net: Any, eos_token: Any) -> tuple[int, ...]:
    """The end tokens, none for None; TypeError or ValueError for one that is no id of the model's vocabulary."""
    if eos_token is None:
        return ()
    if not isinstance(eos_token, (list, tuple)):
        return (check_token(net, "eos_token", eos_token),)
    if not eos_token:
        raise ValueError("eos_token is an empty list: give None where no token ends a row")
    return tuple(check_token(net, f"eos_token[{i}]", token) for i, token in enumerate(eos_token))


def ends(tokens: Int[Tensor, "*b"], eos_tokens: tuple[int, ...]) -> Bool[Tensor, "*b"]:
    """Which tokens are end tokens."""
    found = tokens == eos_tokens[0]
    for eos in eos_tokens[1:]:
        found = found | (tokens == eos)
    return found


def check_token(net: Any, name: str, token: Any) -> int:
    """`token`; TypeError or ValueError if it is no id of the model's vocabulary, as far as that is known."""
    token, v = integer(name, token, 0), getattr(net, "num_tokens", None)
    if v is not None and token >= v:
        raise ValueError(f"{name}={token} is not in the model's vocabulary of {v} tokens (0 to {v - 1})")
    return token
