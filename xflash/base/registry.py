"""Names for pluggable parts, and the nearest match when a name is misspelt."""

import dataclasses
import difflib
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from .checks import shown

__all__ = [
    "Registry",
    "activations",
    "blocks",
    "closest",
    "excerpt",
    "joins",
    "nearest",
    "norms",
    "part_meant",
    "positions",
    "reads",
    "residuals",
    "scales",
    "scores",
    "side_inputs",
    "weight_fns",
]

T = TypeVar("T")
# How much alike words are, of which one may be meant for the other, and is most likely so; abbreviations have letters.
ALIKE, SLIP, SHORTEST = 0.6, 0.8, 4


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known word closest to `word`, or the empty string."""
    _, match = closest(word, known)
    return f"; did you mean {match!r}?" if match else ""


def closest(word: str, known: Iterable[str]) -> tuple[float, str]:
    """The known word that `word` was most likely meant to be, and how likely from 0 to 1; (0, '') for none.

    One of the same parts in another order comes first, a slip of the pen next, what is abbreviated then.
    """
    folded, word = {str(k).casefold(): str(k) for k in known}, str(word).casefold()
    turned = next((name for name in folded if sorted(name.split("_")) == sorted(word.split("_"))), None)
    if turned is not None:
        return 1.0, folded[turned]
    match = next(iter(difflib.get_close_matches(word, folded, n=1, cutoff=ALIKE)), None)
    likely = 0.0 if match is None else difflib.SequenceMatcher(None, match, word).ratio()
    if likely < SLIP:
        whole = min((name for name in folded if abbreviates(word, name)), key=len, default=None)
        if whole is not None:
            return SLIP, folded[whole]
    return (0.0, "") if match is None else (likely, folded[match])


def abbreviates(word: str, name: str) -> bool:
    """Whether each part of a word is one of `name`'s, or stands for one: begins as it and has some of its letters.

    In their order; parts of `name` may be left out, but not the first and the last of them both.
    """
    short, parts = word.split("_"), name.split("_")
    if len(word) < SHORTEST or not any(stands_for(short[at], parts[at]) for at in (0, -1)):
        return False
    left = iter(parts)
    return all(any(stands_for(part, whole) for whole in left) for part in short)


def stands_for(short: str, whole: str) -> bool:
    """Whether all letters of a part stand in another one, in order, the first as its first."""
    letters = iter(whole)
    return short[:1] == whole[:1] and all(letter in letters for letter in short)


def excerpt(text: str, at: int = 0, width: int = 60) -> str:
    """`text` in quotes, or where it is long what stands around place `at`, so that a message stays short."""
    start = max(0, min(at - width // 3, len(text) - width))
    end = start + width
    return repr(f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}")


class Registry(Mapping[str, Any]):
    """A mapping from a name to a class that classes enter by decoration (activations: to a function).

    The module that defines the base of a registry's classes names it as `base`. `origins` has the modules that
    registered: a name is known once that was imported.
    """

    base: type | None = None

    def __init__(self, kind: str):
        self.kind = kind
        self._parts: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator; raises ValueError when the name is no identifier or belongs to another class.

        TypeError for a part that is no such class: its flags are among those of every stack.
        """
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"a {self.kind} needs a name that is an identifier, not {shown(name)}")
        origin = sys._getframe(1).f_globals.get("__name__", "")

        def enter(part: T) -> T:
            self.check(name, part)
            present = self._parts.get(name)
            # A notebook cell that is run again defines the same class anew: that replaces, it does not clash.
            if present is not None and getattr(present, "__qualname__", "") != getattr(part, "__qualname__", ""):
                raise ValueError(f"the {self.kind} {name!r} is already registered, by {present.__qualname__}")
            self.check_alone(name)
            self._parts[name] = part
            self.origins[name] = origin
            return part

        return enter

    def check_alone(self, name: str) -> None:
        """ValueError for a word of layouts, and for the name of a part of another kind whose flags begin alike."""
        for word, (kinds, meaning) in TAKEN.items():
            if name == word and any(self is registry for registry in kinds):
                raise ValueError(f"the {self.kind} {name!r} needs another name: in a layout, {name!r} means {meaning}")
        for other in SHARING if any(self is registry for registry in SHARING) else ():
            if other is not self and name in other:
                raise ValueError(
                    f"the {self.kind} {name!r} needs another name: there is a {other.kind} {name!r}, and the flags of "
                    f"both would begin with '{name}_'"
                )

    def check(self, name: str, part: Any) -> None:
        """TypeError unless `part` is a class of this kind with a Config that can be read, or a function without one."""
        found = part.__name__ if isinstance(part, type) else shown(part)
        base = self.base
        if base is None:
            if isinstance(part, type) or not callable(part):
                raise TypeError(f"the {self.kind} {name!r} must be a function of a tensor, not {found}")
            return
        if not isinstance(part, type) or not issubclass(part, base) or part is base:
            # Bases are public: their users know them by the name of the package.
            package = base.__module__.partition(".")[0]
            raise TypeError(f"the {self.kind} {name!r} must be a subclass of {package}.{base.__name__}, not {found}")
        unlike = getattr(part, "unlike", None)
        if unlike is not None and (reason := unlike()):
            raise TypeError(f"the {self.kind} {name!r} {reason}")
        if not hasattr(base, "Config"):
            return
        config: Any = getattr(part, "Config", None)
        if not isinstance(config, type) or not dataclasses.is_dataclass(config):
            raise TypeError(f"the {self.kind} {name!r} needs a Config that is a dataclass, its fields made by flag()")
        try:
            typing.get_type_hints(config)
        except NameError as error:
            raise TypeError(f"the Config of the {self.kind} {name!r} has a type that cannot be read: {error}") from None

    def name_of(self, part: type) -> str:
        """The name a class is registered by; its own where it is not, or not any more."""
        return next((name for name, known in self._parts.items() if known is part), part.__name__)

    def __getitem__(self, name: str) -> Any:
        try:
            return self._parts[name]
        except KeyError:
            raise ValueError(self.unknown(name)) from None

    def __repr__(self) -> str:
        return f"<the {self.kind}s {', '.join(self._parts)}>"

    def unknown(self, name: Any) -> str:
        """The sentence about a name that nothing is registered by."""
        known = ", ".join(map(repr, self._parts))
        return f"unknown {self.kind} {shown(name)}{self.meant(name)} (known: {known})"

    def meant(self, name: Any) -> str:
        """What a name is called here or is the name of instead, or the nearest name that is known here."""
        return part_meant(name) or nearest(name, self._parts)

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


# Parts by the names that other libraries and papers have for them.
CALLED = {
    "rope": "pos='rotary'",
    **dict.fromkeys(("rope2d", "axial", "axial_rope", "rope_2d"), "pos='rotary2d'"),
    "xpos": "pos='rotary', rotary_xpos=True",
    "t5": "pos='rel_pos'",
    **dict.fromkeys(("learned", "absolute"), "use_abs_pos_emb=True of TransformerWrapper"),
    **dict.fromkeys(("sinusoidal", "sincos"), "scaled_sinu_pos_emb=True of TransformerWrapper"),
    **dict.fromkeys(("self_attn", "self_attention", "attention", "mha"), "layers='attn ff'"),
    **dict.fromkeys(("local_attn", "local_attention", "sliding_attn"), "layers='attn(window=...) ff'"),
    **dict.fromkeys(("mlp", "ffn", "feedforward"), "layers='attn ff'"),
    "swiglu": "ff_activation='silu', ff_glu=True",
    "geglu": "ff_activation='gelu', ff_glu=True",
    "reglu": "ff_activation='relu', ff_glu=True",
    "bilinear": "ff_activation='identity', ff_glu=True",
    "swish": "'silu'",
    "avg": "'mean'",
    **dict.fromkeys(("token", "cls_token"), "'cls'"),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_approx"), "'gelu_tanh'"),
    **dict.fromkeys(("relu_squared", "relu_sq", "squared_relu"), "'relu2'"),
}
blocks = Registry("block")
norms = Registry("norm")
positions = Registry("position")
reads = Registry("read")
scales = Registry("scale")
joins = Registry("join")
# What was one slot is three now; parts of one's own that were registered here join the stream.
residuals = joins
activations = Registry("activation")
scores = Registry("score step")
side_inputs = Registry("side input")
weight_fns = Registry("weight function")
# Flags of these begin with the part's own name, whichever it is of.
SHARING = (blocks, positions, reads, scales, joins)
# Words of layouts, and of which registries no part could be chosen by that name.
TAKEN = {
    "none": ((norms, positions, scales), "that there is none"),
    "own": ((norms,), "a norm of its own for one of several blocks in parallel"),
    "a": ((blocks,), "'attn'"),
    "c": ((blocks,), "'cross_attn'"),
    "f": ((blocks,), "'ff'"),
}
# The flags that name parts, an answer to a name that is given to the wrong one.
NAMED_BY = {
    "layers": blocks,
    "norm": norms,
    "pos": positions,
    "reads": reads,
    "scale": scales,
    "join": joins,
    "attn_scores": scores,
    "attn_weight_fn": weight_fns,
}


def part_meant(name: Any) -> str:
    """What the name of a part is called here, or which flag it belongs to; the empty string for any other name."""
    if not isinstance(name, str):
        return ""
    if name.casefold() in CALLED:
        return f"; it is called {CALLED[name.casefold()]} here"
    for flag, registry in NAMED_BY.items():
        if name in registry:
            return f"; {name!r} is a {registry.kind}: {flag}={name!r}"
    return ""
