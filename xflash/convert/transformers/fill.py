"""A model built from a config, and filled with weights one after the other; all is checked before any is read."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ...base.registry import nearest
from .family import Family, Flags, family_of, head_of
from .front import read
from .names import places_of
from .places import Place
from .settings import Settings

__all__ = ["Plan", "build"]

# Buffers that older files hold, and that are computed.
COMPUTED = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids)")


class Plan(NamedTuple):
    """A model without memory for its weights, and where each weight of another library goes, by name."""

    family: Family
    flags: Flags
    model: nn.Module
    places: dict[str, list[Place]]

    def laid(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Weights by their own names, those of which some are made here as they lie here."""
        found = {self.own(name): weight for name, weight in weights.items()}
        return found if self.family.made is None else self.family.made(found, self.model)

    def check(self, weights: Mapping[str, Any]) -> None:
        """ValueError unless these, each with a shape and a dtype, are all the weights of the model and nothing else."""
        found = {self.own(name): weight for name, weight in weights.items()}
        for name, weight in found.items():
            if name not in self.places:
                if not self.is_left_out(name):
                    raise ValueError(f"there is no place for the weight {name!r}{nearest(name, self.places)}")
            elif tuple(weight.shape) != (wanted := self.places[name][0].shape(self.model)):
                raise ValueError(f"the weight {name!r} is of shape {tuple(weight.shape)}, not {wanted}")
            elif not weight.dtype.is_floating_point:
                raise ValueError(f"the weight {name!r} is {weight.dtype}: quantised weights have no counterpart here")
        self.check_whole(found)
        self.check_again(found)

    def check_again(self, found: Mapping[str, Any]) -> None:
        """ValueError for a weight that is to be another one again, and is stored beside it with other numbers."""
        for name, other in self.family.tied.items():
            if name not in self.places and name in found and other in found and not equal(found[name], found[other]):
                raise ValueError(
                    f"the weight {name!r} is not {other!r} again, as the config says (tie_word_embeddings=True)"
                )

    def main_of(self, weights: Mapping[str, Any]) -> Any:
        """The weight that says what the model's dtype is, and its device."""
        return next(weight for name, weight in weights.items() if self.has_place(name))

    def check_whole(self, found: Mapping[str, Any]) -> None:
        """ValueError where a weight of the model is not written, or twice."""
        sources: dict[str, dict[str, int]] = {}
        for name, places in self.places.items():
            for place in places:
                counts = sources.setdefault(place.name, {})
                counts[name] = counts.get(name, 0) + place.count(self.model)
        for ours, t in self.model.named_parameters():
            counts = sources.get(ours, {})
            given = [name for name in counts if name in found]
            count = sum(counts[name] for name in given)
            if count < t.numel():
                missing = [repr(name) for name in counts if name not in found]
                raise ValueError(f"there is no weight {' and '.join(missing) or repr(ours)}")
            if count > t.numel():
                raise ValueError(f"{' and '.join(map(repr, given))} are more than one weight for {ours!r}")

    def has_place(self, name: str) -> bool:
        """Whether a weight goes somewhere."""
        return self.own(name) in self.places

    def own(self, name: str) -> str:
        """The name without what the names of all but the head begin with, which some files leave out.

        Old files call what a LayerNorm has gamma and beta.
        """
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name.removeprefix(self.family.prefix))
        return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)

    def is_left_out(self, name: str) -> bool:
        """Whether a weight without a place is another one again, is computed, or of no output here."""
        known = self.family.tied.get(name) in self.places or COMPUTED.fullmatch(name) is not None
        return known or re.fullmatch(self.family.beside, name) is not None

    def filled(self, weights: Mapping[str, Any], device: torch.device | str, dtype: torch.dtype) -> nn.Module:
        """The model with these weights, each let go when it is copied."""
        model = emptied(self.model.to(dtype), device)
        for name, weight in weights.items():
            if places := self.places.get(self.own(name)):
                numbers = read(weight)
                for place in places:
                    place.write(model, numbers)
        return model


def equal(a: Any, b: Any) -> bool:
    """Whether two weights are of the same numbers, looked at only where they do not share them."""
    shared = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.data_ptr() == b.data_ptr()
    return shared or torch.equal(read(a), read(b))


def emptied(model: nn.Module, device: torch.device | str) -> nn.Module:
    """A model with memory for its weights; what was one weight in two places is so still."""
    first: dict[int, str] = {}
    same = {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}
    model.to_empty(device=device)
    for name, other in same.items():
        if name != other:
            (owner, weight), (source, kept) = (where.rpartition(".")[::2] for where in (name, other))
            setattr(model.get_submodule(owner), weight, getattr(model.get_submodule(source), kept))
    return model


def build(config: Mapping[str, Any], head: str | None, long_context: bool = False, has_head: bool = False) -> Plan:
    """The plan of a model with this config; ValueError for a setting that has no flag.

    head: the name of the class of the model; None: a language model.  has_head: whether its weights have a head that is
    not the token embedding.
    """
    settings = Settings(config, long_context, has_head)
    family = family_of(settings)
    flags = family.flags(settings)
    flags.model.update(head_of(family, head))
    settings.finish()
    with torch.device("meta"):
        model = family.build(flags)
    return Plan(family, flags, model, places_of(family.weights, model))
