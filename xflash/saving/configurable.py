"""Modules that know how they were built: to_config / from_config."""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from ..base.checks import shown
from ..base.fallback import as_eager, refusable
from ..base.pieces import innermost
from ..base.registry import nearest
from ..base.roles import param_groups
from ..flags.answering import answer_calls
from ..flags.as_json import from_json, to_json
from ..flags.elsewhere import by_name, meant
from ..flags.flag import Flag, build, flags_of
from .classes import CLASSES, check_name, homes, is_torchs, kind
from .migrate import FORMAT, read_arguments, read_weights
from .printed import Printed

__all__ = ["Configurable", "from_config"]

C = TypeVar("C", bound="Configurable")


@dataclass(frozen=True)
class NoFlags:
    """The Config of a class that has none."""


class Configurable(Printed):
    """A module that records the arguments it was built from, so that `from_config(to_config())` builds it again.

    Every subclass can be named in a config. Arguments are what JSON can hold, or Configurable modules. A class with a
    `Config` of its own, fields made by `flag()`, is built from what that has, and instead of `__init__` it has
    `assemble(config)`; where it `takes_flags`, further ones, those of a stack, are handed to that too, of which it sets
    `presets` otherwise than stacks do. `gives` says what the module makes of what, where that is not logits of token
    ids: wrappers that train such a model refuse it.
    """

    Config: ClassVar[type] = NoFlags
    takes_flags: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Any]] = {}
    gives: ClassVar[str] = ""

    arguments: dict[str, Any]

    def __init__(self, *given: Any, **arguments: Any):
        super().__init__()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if not is_torchs(cls):
            check_name(cls)
            CLASSES[cls.__name__] = cls
        if "__init__" in cls.__dict__:
            cls.__init__ = recording(cls.__init__)  # type: ignore[method-assign]
        elif "Config" in cls.__dict__:
            cls.__init__ = building(cls)  # type: ignore[method-assign]
        for name in ("forward", "step"):
            if name in cls.__dict__:
                setattr(cls, name, refusable(cls.__dict__[name]))
        answer_calls(cls)

    def flag_rows(self) -> list[tuple[str, Any, Flag]]:
        """The flags of its Config and of the modules inside, with their values; these say what a None leaves open."""
        fields = flags_of(self.Config).items() if hasattr(self, "Config") else ()
        rows = {name: (name, self.arguments[name], spec) for name, spec in fields if name in self.arguments}
        for module in self.children():
            for name, value, spec in module.flag_rows() if isinstance(module, Configurable) else ():
                own = rows.setdefault(name, (name, value, spec))
                if own[1] is None:
                    rows[name] = (name, value, own[2]._replace(default=spec.default))
        return [
            (name, value, spec._replace(default=self.presets.get(name, spec.default)))
            for name, value, spec in rows.values()
        ]

    def param_groups(
        self, weight_decay: float = 0.0, muon: bool = False, embedding: bool = True, head: bool = True
    ) -> list[dict[str, Any]]:
        """The trained parameters in groups for an optimizer, each with its `weight_decay` and `use_muon`.

        Matrices decay, and so do embeddings and heads unless told otherwise; gains, offsets, biases, positions, memory
        and what each head of attention has never do. muon: matrices are in a group of their own, for
        `torch.optim.Muon` (https://kellerjordan.github.io/posts/muon), and nothing else is.
        """
        return param_groups(self, weight_decay, muon, embedding, head)

    def written_flags(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        """What a config says beside the flags of its Config: those handed on, which are these and all defaults."""
        return dict(flags)

    @classmethod
    def hands_on(cls) -> list[str]:
        """The names of the flags that it takes beside those of its Config."""
        return CLASSES["AttentionLayers"].takes()

    @classmethod
    def takes(cls) -> list[str]:
        """The names of what it is built from."""
        return [p.name for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]

    def to_config(self) -> dict[str, Any]:
        """The format, the class and its arguments as JSON can hold them, modules among them described likewise."""
        return {"format": FORMAT, **self.described()}

    def described(self) -> dict[str, Any]:
        """The class and its arguments."""
        return {"class": kind(self).__name__, **{k: encode(k, v) for k, v in self.arguments.items()}}

    @classmethod
    def from_config(cls: type[C], config: Mapping[str, Any]) -> C:
        """The module a config describes; TypeError when it describes another class."""
        built = from_config(config)
        if not isinstance(built, cls):
            raise TypeError(f"the config is of a {type(built).__name__}, not of a {cls.__name__}")
        return built

    def save(self, folder: str | Path) -> None:
        """Writes the weights, and the config with them, into `folder`: see `xflash.save`."""
        from .store import save

        save(self, folder)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        read_weights(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "format": FORMAT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.get("format", 1) != FORMAT:
            raise ValueError(
                f"a {type(self).__name__} pickled by another version of xflash has other weights: build it anew and "
                "give it that one's state_dict(), which is read whatever wrote it"
            )
        super().__setstate__(state)

    def compile(self, *args: Any, **options: Any) -> None:
        """As nn.Module.compile, with the options of torch.compile; but a module that goes piece after piece, or has
        such a one inside, has the (innermost) piece compiled: the same few graphs for any number of them.

        Such are stacks whose layers read state vectors across layers, and what reads texts in segments.
        """
        inside = innermost(self)
        for module in inside:
            module.compile_piece(*args, **options)
        if not inside:
            super().compile(*args, **options)
            self._compiled_call_impl = as_eager(cast(Any, self._compiled_call_impl), self._call_impl)


def recording(init):
    """`init` that keeps the arguments of the outermost call, and names the nearest one when an argument is unknown."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self, *args, **kwargs):
        values = named(signature, self, args, kwargs)
        self.__dict__.setdefault("arguments", values)
        init(self, *args, **kwargs)

    return wrapper


def building(cls: type[Configurable]):
    """The `__init__` of a class with a Config: keeps what it was built from, defaults too, and has it assembled."""
    config, signature = cls.Config, signature_of(cls.Config, cls.takes_flags)

    def __init__(self, *args, **kwargs):
        values = named(signature, self, args, kwargs)
        flags = {name: value for name, value in values.items() if name not in flags_of(config)}
        read = build(config, {name: value for name, value in values.items() if name in flags_of(config)})
        outermost = "arguments" not in self.__dict__
        if outermost:
            self.__dict__["arguments"] = {name: getattr(read, name) for name in flags_of(config)}
        Configurable.__init__(self)
        self.assemble(read, **flags)
        if outermost:
            self.arguments = {**self.arguments, **self.written_flags(flags)}

    __init__.__signature__ = signature  # ty: ignore[missing-attribute]
    __init__.__annotations__ = {p.name: p.annotation for p in signature.parameters.values() if p.annotation != p.empty}
    __init__.__qualname__, __init__.__module__ = f"{cls.__qualname__}.__init__", cls.__module__
    return __init__


def signature_of(config: type, takes_flags: bool) -> inspect.Signature:
    """That of the constructor of a class with a Config."""
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
    parameters += inspect.signature(config).parameters.values()
    if takes_flags:
        parameters.append(inspect.Parameter("flags", inspect.Parameter.VAR_KEYWORD, annotation=Any))
    return inspect.Signature(parameters)


def named(signature: inspect.Signature, module: Any, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor by name; TypeError for one that it has not, with what is meant by it."""
    try:
        bound = signature.bind(module, *args, **kwargs)
    except TypeError as error:
        kind = type(module).__name__
        known = [p for p in signature.parameters if p != "self"]
        if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            known += type(module).hands_on()
        for name in kwargs:
            if name not in known:
                raise TypeError(f"{kind} has no argument {name!r}{meant(name, known, homes(but=kind))}") from None
        raise TypeError(f"{kind}: {error}{by_name(known, signature, args)}") from None
    values = dict(list(bound.arguments.items())[1:])
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            values |= values.pop(parameter.name, {})
    return values


def encode(name: str, value: Any) -> Any:
    if isinstance(value, Configurable):
        return value.described()
    try:
        return to_json(value)
    except TypeError as error:
        raise TypeError(f"the argument {name!r} keeps this module from having a config: {error}") from None


def from_config(config: Mapping[str, Any]) -> Any:
    """Builds the module a `to_config()` describes, its weights fresh.

    ValueError for a class that is not known, and for a config of a newer format than this version writes.
    """
    if not isinstance(config, Mapping) or "class" not in config:
        raise TypeError("a config is a mapping with the entry 'class', as to_config() gives it")
    written = config.get("format", 1)
    if type(written) is not int or not 1 <= written <= FORMAT:
        raise ValueError(f"the config is of format {shown(written)}, but this version of xflash reads 1 to {FORMAT}")
    return built({k: v for k, v in config.items() if k != "format"}, written)


def built(described: Mapping[str, Any], written: int) -> Any:
    """The module that a config of format `written`, or a part of one, describes."""
    name = described["class"]
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(f"the config names an unknown class {shown(name)}{nearest(name, CLASSES)}")
    arguments = read_arguments({k: v for k, v in described.items() if k != "class"}, written, name)
    return CLASSES[name](**{k: decode(v, written) for k, v in arguments.items()})


def decode(value: Any, written: int) -> Any:
    if isinstance(value, Mapping) and isinstance(value.get("class"), str):
        return built(value, written)
    return from_json(value)
