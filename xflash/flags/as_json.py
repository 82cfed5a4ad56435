"""Values of flags as JSON has them."""

from typing import Any

from ..base.registry import activations

__all__ = ["from_json", "to_json"]


def to_json(value: Any) -> Any:
    """A flag's value as JSON has it: tuples become lists, registered functions their names."""
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if (name := next((name for name, fn in activations.items() if fn is value), None)) is not None:
        return name
    by_name = "; what activations.register has entered is written by its name" if callable(value) else ""
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written to a JSON config{by_name}")


def from_json(value: Any) -> Any:
    """The inverse of `to_json`: lists become tuples."""
    if isinstance(value, list):
        return tuple(from_json(v) for v in value)
    if isinstance(value, dict):
        return {k: from_json(v) for k, v in value.items()}
    return value
