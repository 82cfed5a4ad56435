"""`frozen`: what `dataclass(frozen=True, kw_only=True)` makes of a class, in half the time.

A dataclass writes and compiles six functions for each class, which for all Configs together was a third of what the
import of xflash takes. Those that need not know the fields are the same for every class here.
"""

import dataclasses
import inspect
from typing import Any, TypeVar

from typing_extensions import dataclass_transform

__all__ = ["frozen"]

T = TypeVar("T")


def written(self: Any) -> str:
    """The class and its values."""
    values = ", ".join(
        f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr
    )
    return f"{type(self).__qualname__}({values})"


def values_of(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, field.name) for field in dataclasses.fields(self) if field.compare)


def same(self: Any, other: Any) -> bool:
    """Whether both are of one class and have the same values."""
    return values_of(self) == values_of(other) if type(self) is type(other) else NotImplemented


def hashed(self: Any) -> int:
    return hash(values_of(self))


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def frozen(cls: type[T]) -> type[T]:
    """A dataclass whose values are given by name and stay as they are; what the class has of its own is left to it."""
    for name, own in {"__repr__": written, "__eq__": same, "__hash__": hashed}.items():
        if name not in cls.__dict__:
            setattr(cls, name, own)
    # A dataclass without one reads its signature to say it again.
    cls.__doc__ = cls.__doc__ or f"Values by name: {', '.join(inspect.get_annotations(cls))}."
    return dataclasses.dataclass(frozen=True, kw_only=True, repr=False, eq=False)(cls)
