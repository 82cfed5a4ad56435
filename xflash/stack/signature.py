"""What `inspect.signature`, completion and `help` say of stacks: every flag that there is when they ask."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from ..flags.flag import REQUIRED, Flag
from .config import every_flag

__all__ = ["TakesFlags"]


class Signature(inspect.Signature):
    """A signature of hundreds of parameters, whose text has but the first."""

    SHOWN = 5

    def __str__(self) -> str:
        names = [str(parameter.replace(annotation=parameter.empty)) for parameter in self.parameters.values()]
        return f"(*, {', '.join(names[: self.SHOWN])}, ...)" if len(names) > self.SHOWN else super().__str__()

    def format(self, **_: Any) -> str:
        return str(self)


def parameter(name: str, spec: Flag, default: Any) -> inspect.Parameter:
    """A flag as what can be given by its name."""
    default = inspect.Parameter.empty if default is REQUIRED else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=spec.hint)


class Signed:
    """The `__signature__` of a class whose `**flags` are those of stacks, made anew whenever somebody asks for it.

    So parts of one's own are in it once they are registered, and nobody else pays for it. Instances have none: as
    functions they are what their `forward` says.
    """

    def __get__(self, instance: Any, cls: Any) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        own = list(inspect.signature(cls.__init__).parameters.values())[1:]
        named = [p for p in own if p.kind is not p.VAR_KEYWORD]
        taken = {p.name for p in named}
        flags = [
            parameter(name, spec, cls.fixed.get(name, spec.default))
            for name, spec in every_flag().items()
            if name not in taken
        ]
        spellings = inspect.Parameter("spellings", inspect.Parameter.VAR_KEYWORD, annotation=Any)
        return Signature([*named, *flags, spellings])


class Described:
    """The `__doc__` of a stack: its docstring, and behind it the table of all flags."""

    def __init__(self, text: str):
        self.text = inspect.cleandoc(text)

    def __get__(self, instance: Any, cls: Any) -> str:
        from .catalogue import catalogue

        return f"{self.text}\n\n{catalogue(cls)}"


class TakesFlags:
    """Base of the classes whose `**flags` are those of stacks: completion and `help` show them all."""

    fixed: ClassVar[Mapping[str, bool]] = {}
    __signature__ = Signed()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        text = cls.__dict__.get("__doc__")
        if isinstance(text, str):
            cls.__doc__ = Described(text)
