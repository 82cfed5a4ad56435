"""What `print` shows of a model: the line that constructs it, how large it is, and its layouts."""

import inspect
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from torch import nn

from ..base.registry import excerpt

__all__ = ["summary", "tree"]

WIDTH, LONGEST = 100, 240
# Whether modules are to be shown as PyTorch shows them, all of them.
WHOLE: ContextVar[bool] = ContextVar("whole", default=False)


def summary(model: Any) -> str:
    """The call that builds the model, without what is at its default, and in comments what it has become."""
    if WHOLE.get() or "_modules" not in model.__dict__:
        return nn.Module.__repr__(model) if "_modules" in model.__dict__ else object.__repr__(model)
    count = sum(p.numel() for p in model.parameters())
    kinds = sorted({f"{str(p.dtype).removeprefix('torch.')} on {p.device.type}" for p in model.parameters()})
    lines = [construction(model), f"# {count:,} parameters, {', '.join(kinds) or 'none'}"]
    lines += [f"# {'layout' if name == '' else name + ': layout'} {text}" for name, text in layouts(model)]
    return "\n".join([*lines, "# All flags: .flag_table(); all modules: .module_tree()"])


def tree(model: nn.Module) -> str:
    """All modules, as PyTorch shows them."""
    token = WHOLE.set(True)
    try:
        return nn.Module.__repr__(model)
    finally:
        WHOLE.reset(token)


def layouts(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The stacks inside, by the names that they have there, and the layout of each."""
    for name, module in model.named_modules():
        layout = getattr(module, "layout", None)
        if isinstance(layout, str):
            yield name, excerpt(layout, width=WIDTH)


def construction(model: Any, indent: str = "") -> str:
    """The call that builds a model of these arguments; weights aside, evaluating it builds the same."""
    inner = indent + "    "
    words = [f"{name}={value_text(value, inner)}" for name, value in changed(model)]
    whole = f"{type(model).__name__}({', '.join(words)})"
    if len(indent) + len(whole) <= WIDTH and "\n" not in whole:
        return whole
    return f"{type(model).__name__}(\n{packed(words, inner)}\n{indent})"


def changed(model: Any) -> Iterator[tuple[str, Any]]:
    """The arguments that are not at their default."""
    parameters = inspect.signature(type(model)).parameters
    # Flags that are handed on to a stack are no parameters.
    handed = {name: spec.default for name, _, spec in model.flag_rows()}
    for name, value in model.__dict__.get("arguments", {}).items():
        default = parameters[name].default if name in parameters else handed.get(name, inspect.Parameter.empty)
        if value is not default and (type(value) is not type(default) or value != default):
            yield name, value


def value_text(value: Any, indent: str) -> str:
    if "arguments" in getattr(value, "__dict__", {}):
        return construction(value, indent)
    if isinstance(value, str):
        return excerpt(value, width=LONGEST)
    text = repr(value)
    return text if len(text) <= LONGEST + 2 else f"{text[:LONGEST]}..."


def packed(words: Iterable[str], indent: str) -> str:
    """Arguments in as few lines as they fit in."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 2 <= WIDTH and "\n" not in lines[-1] + word:
            lines[-1] += f" {word},"
        else:
            lines.append(f"{indent}{word},")
    return "\n".join(lines)
