"""A family of models: which configs it reads, with which flags and under which names of weights it is built here."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from ...base.registry import nearest
from ...stack.stacks import CrossAttender, Decoder, Encoder
from ...wrappers.transformer import TransformerWrapper
from ...wrappers.vit import ViTransformerWrapper
from ...wrappers.xtransformer import XTransformer
from .settings import Settings

__all__ = ["Family", "Flags", "both", "decoder", "encoder", "families", "family_of", "head_of", "vision"]


NO_HEAD = {"return_only_embed": True, "tie_embedding": False}


class Flags(NamedTuple):
    """The flags of a stack, and the arguments of the model around it."""

    stack: dict[str, Any]
    model: dict[str, Any]


def decoder(flags: Flags) -> nn.Module:
    """A language model with a causal stack, unless the flags say otherwise."""
    kind = Decoder if flags.stack.get("causal", True) else Encoder
    return TransformerWrapper(attn_layers=kind(**flags.stack), **flags.model)


def both(flags: Flags) -> nn.Module:
    """An encoder and a decoder that attends to it; the flags of the stack are those of both sides."""
    return XTransformer(**{**flags.stack, **flags.model})


def encoder(flags: Flags) -> nn.Module:
    """A model whose tokens see all others."""
    return TransformerWrapper(attn_layers=Encoder(**flags.stack), **flags.model)


def vision(flags: Flags) -> nn.Module:
    """A model of images."""
    inside = {"pool_layers": CrossAttender(**flags.model["pool_layers"])} if "pool_layers" in flags.model else {}
    return ViTransformerWrapper(attn_layers=Encoder(**flags.stack), **{**flags.model, **inside})


class Family(NamedTuple):
    """flags: of a config.  weights: a table of names.  prefix: of the names of all but the head.

    heads: the endings of class names, and what they say to the model.  tied: names of weights that may be another one
    again.  beside: a pattern of names of what is left out, for other outputs than those here.  made: all weights, those
    among them that are made of others.
    """

    flags: Callable[[Settings], Flags]
    weights: str | Mapping[str, str]
    build: Callable[[Flags], nn.Module] = decoder
    heads: Mapping[str, dict[str, Any]] = {
        "ForCausalLM": {},
        "Model": {"return_only_embed": True, "tie_embedding": False},
    }
    prefix: str = "model."
    beside: str = ""
    tied: Mapping[str, str] = {"lm_head.weight": "embed_tokens.weight"}
    made: Callable[[Mapping[str, Any], nn.Module], dict[str, Any]] | None = None


families: dict[str, Family] = {}


def family_of(settings: Settings) -> Family:
    """The family of a config; ValueError for one that is not known here."""
    kind = settings.kind
    if kind not in families:
        known = ", ".join(families)
        raise ValueError(
            f"there are no flags here for the model_type {kind!r}; known are {known}{nearest(kind, families)}"
        )
    return families[kind]


def head_of(family: Family, name: str | None) -> dict[str, Any]:
    """What the class of a model says of its head; ValueError for a class with another one."""
    if name is None:
        return next(iter(family.heads.values()))
    for ending, arguments in family.heads.items():
        if name.endswith(ending):
            return arguments
    known = " or ".join(f"...{ending}" for ending in family.heads)
    raise ValueError(f"a {name} has a head without a counterpart in xflash; those with one end with {known}")
