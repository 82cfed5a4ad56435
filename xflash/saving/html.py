"""What a notebook shows of a model: the line that constructs it, its layers, and its flags to unfold."""

from collections.abc import Iterable
from html import escape
from typing import Any

from ..base.tables import html_table
from ..flags.flag import REQUIRED, Flag
from .summary import summary

__all__ = ["page"]


def page(model: Any) -> str:
    """What `print` shows, a table of the layers of each stack inside, and tables of flags that can be unfolded."""
    text = f"<pre>{escape(summary(model))}</pre>"
    if "_modules" not in model.__dict__:
        return text
    rows = list(model.flag_rows())
    changed = [row for row in rows if row[1] != row[2].default]
    stacks = [
        (name, module) for name, module in model.named_modules() if isinstance(getattr(module, "layout", None), str)
    ]
    folds = [folded(f"layers of {name}" if name else "layers", layers(stack)) for name, stack in stacks]
    folds += [
        folded(f"{len(changed)} flags that are set", flags(changed)),
        folded(f"all {len(rows)} flags", flags(rows)),
    ]
    return text + "".join(folds)


def folded(title: str, inner: str) -> str:
    """Something with a title that is unfolded by a click."""
    return f"<details><summary>{escape(title)}</summary>{inner}</details>"


def layers(stack: Any) -> str:
    """The layers of a stack as a tensor meets them, with their parameters."""
    found = []
    for place, index in enumerate(stack.order):
        branch, first = stack.branches[index], stack.order.index(index)
        count = f"{sum(p.numel() for p in branch.parameters()):,}" if first == place else f"those of layer {first + 1}"
        found.append([str(place + 1), " + ".join(branch.kinds()), count])
    return html_table(["layer", "block", "parameters"], found)


def flags(rows: Iterable[tuple[str, Any, Flag]]) -> str:
    """The flags with their values, defaults and meanings."""
    found = []
    for name, value, spec in rows:
        text = type(value).__name__ if hasattr(value, "flag_rows") else repr(value)
        default = "(required)" if spec.default is REQUIRED else repr(spec.default)
        found.append([name, text, default, spec.meaning()])
    return html_table(["flag", "value", "default", "meaning"], found, words=True)
