"""`to_transformers`: the model of transformers that a model here is, with its weights."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ...base.checks import shown
from ...base.registry import blocks
from ...layers.blocks.block import Block
from ...saving.weights import blueprint, check_model
from ...wrappers.transformer import TransformerWrapper
from .fill import Plan, build
from .settings_of import settings_of

__all__ = ["to_transformers"]

# What says how a column is written, or is said by the modules in it.
SPELLED = {"layers", "depth", "custom_layers", "heads", "final_norm", "cross_attend", "only_cross", "num_memory_tokens"}
# What a flag says of a block is what the block has.
RESOLVED = {"heads": "heads", "kv_heads": "kv_heads", "mult": "inner", "dim": "inner"}


def to_transformers(model: nn.Module, config: Any = None) -> Any:
    """The model of transformers (which must be installed) with the flags, weights and outputs of one of ours.

    `config`: a config of transformers that says this model, such as that which it came from; None: one is made, of the
    first family of decoders that has these flags. The new model shares nothing with the old one, and has its dtype,
    device and mode. What xflash has no place for, such as BERT's pooler, begins anew. TypeError for what is no
    TransformerWrapper; ValueError with the flag that no config, or not the one that is given, has, and for a model that
    is not what its own config builds.
    """
    if not isinstance(model, TransformerWrapper):
        raise TypeError(f"to_transformers takes a TransformerWrapper, not a {type(model).__name__}")
    check_model(model, blueprint(model.to_config()))
    import transformers  # ty: ignore

    said = settled(model, config)
    plan = build(said, head_of(model))
    config = transformers.AutoConfig.for_model(**{"model_type": said["model_type"], **said})
    weight = model.embedding.token_emb.weight
    with torch.random.fork_rng(devices=[]):
        theirs = class_of(model, transformers).from_config(config, dtype=weight.dtype).to(weight.device)
    for name, t in theirs.state_dict().items():
        places = plan.places.get(plan.own(name))
        if places is not None:
            t.copy_(places[0].read(model))
        elif not plan.is_left_out(plan.own(name)):
            raise ValueError(f"transformers' {type(theirs).__name__} has a weight {name!r} that xflash has not")
    return theirs.train(model.training)


def head_of(model: TransformerWrapper) -> str | None:
    """The ending of a class with the head of a model."""
    return "Model" if model.return_only_embed else None


def class_of(model: TransformerWrapper, transformers: Any) -> Any:
    if model.return_only_embed:
        return transformers.AutoModel
    return transformers.AutoModelForCausalLM if model.causal else transformers.AutoModelForMaskedLM


def settled(model: TransformerWrapper, config: Any) -> dict[str, Any]:
    """The settings of a config that says this model; ValueError where none does."""
    if config is not None:
        if not isinstance(config, Mapping) and not hasattr(config, "to_dict"):
            raise TypeError(f"config must be one of transformers, or a dictionary of its settings, not {shown(config)}")
        said = dict(config if isinstance(config, Mapping) else config.to_dict())
        if reason := unlike(model, build(said, head_of(model))):
            raise ValueError(f"this config says another model: {reason}")
        return said
    reasons = {}
    for said in settings_of(model):
        kind = said["model_type"]
        try:
            plan = build(said, head_of(model))
        except (TypeError, ValueError):
            continue
        if not isinstance(plan.model, TransformerWrapper):
            continue
        reasons[kind] = unlike(model, plan)
        if not reasons[kind]:
            return said
    near = min(reasons, key=lambda kind: reasons[kind].count("; "), default=None)
    reason = "" if near is None else f"; nearest is {near!r}, but {reasons[near]}"
    raise ValueError(f"no config of transformers that is known here has these flags{reason}; give the one that has")


def unlike(model: TransformerWrapper, plan: Plan) -> str:
    """Where a model and that of a plan differ, or ''."""
    if not isinstance(plan.model, TransformerWrapper):
        return f"it is a {type(model).__name__}, not a {type(plan.model).__name__}"
    ours, theirs = described(model), described(plan.model)
    differ = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return "; ".join(f"{name} is {shown(ours.get(name))}, not {shown(theirs.get(name))}" for name in differ)


def described(model: Any) -> dict[str, Any]:
    """What a model does, by flag, however its column is written."""
    said = model.to_config()
    stack = said.pop("attn_layers")
    kinds = tuple(f"{name}_" for name in blocks)
    found = {name: value for name, value in stack.items() if not name.startswith(kinds) and name not in SPELLED}
    found["final_norm"] = type(model.attn_layers.final_norm).__name__
    found["emb_dim"] = said.get("emb_dim") or model.dim
    free = () if getattr(model, "length_limit", None) else ("max_seq_len",)
    found |= {name: value or None for name, value in said.items() if name not in ("format", "class", "emb_dim", *free)}
    for at, branch in enumerate(model.attn_layers.branches):
        found |= {f"layer {at}: {name}": value for name, value in parts_of(branch)}
    return found


def parts_of(branch: Any) -> Iterator[tuple[str, Any]]:
    """What the parts of a branch are, and their flags."""
    for name, part in branch.named_modules():
        config = getattr(part, "config", None)
        if not dataclasses.is_dataclass(config) or isinstance(config, type):
            continue
        values = {"": type(part).__name__, **dataclasses.asdict(config)}
        if isinstance(part, Block):
            has = {flag: own for flag, own in RESOLVED.items() if flag in values and hasattr(part, own)}
            values |= {flag: getattr(part, own) for flag, own in has.items()} | {"pos": part.site.pos}
        yield from ((f"{name} {flag}".strip(), value) for flag, value in values.items())
