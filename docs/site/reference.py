"""The reference: what is exported, with its signature and docstring as they are when the package is imported.

A page lists names, each with the methods to be shown:

    ```{reference} xflash
    Decoder: forward step
    ```

Docstrings are Markdown. They are read from the living objects and not from the source, as constructors are made of
Configs.
"""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

MODULES = re.compile(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z])")

# A link without words, and the end of a line behind which an argument is explained.
LINK = re.compile(r"(?<!\]\()\bhttps?://[^\s,;)]*[^\s,;).:]")
ARGUMENT = re.compile(r"\n(?=[a-z_]+(?:, [a-z_]+)*: )")


class Written:
    """What stands in a signature as this text."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def type_text(annotation: Any) -> Any:
    """A type as the source has it: `Float[Tensor, 'b n d'] | None`, no module in front of a name."""
    if annotation is inspect.Signature.empty:
        return annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return Written(MODULES.sub("", text))


def value_text(default: Any) -> Any:
    """A default as it would be given: functions by their names."""
    if default is dataclasses.MISSING:
        return Written("MISSING")
    return Written(default.__name__) if inspect.isroutine(default) else default


def signature(called: Any, bound: bool = False) -> str:
    """The signature of a class, a function or a method (bound: without self)."""
    found = inspect.signature(called)
    if type(found) is not inspect.Signature:
        return str(found).replace("...", "**flags")  # hundreds of flags: it shows the first
    parameters = [
        given.replace(annotation=type_text(given.annotation), default=value_text(given.default))
        for given in found.parameters.values()
    ]
    return str(found.replace(parameters=parameters[bound:], return_annotation=type_text(found.return_annotation)))


def words(documented: Any) -> str:
    """The docstring as Markdown; of a stack without the table of all flags, which is a page of its own."""
    own = vars(documented).get("__doc__") if isinstance(documented, type) else None
    text = getattr(own, "text", None) or inspect.getdoc(documented)
    if not text:
        raise ValueError(f"{documented!r} is listed, but has no docstring")
    text = ARGUMENT.sub("  \n", text)
    return LINK.sub(r"<\g<0>>", text)


def entry(kind: str, head: str, body: str, depth: int = 0) -> str:
    """Something that is named, with what is said of it."""
    fence = "`" * (9 - depth)
    return f"{fence}{{py:{kind}}} {head}\n{body}\n{fence}\n"


def method(owner: type, name: str) -> str:
    static = inspect.getattr_static(owner, name)
    called = getattr(owner, name)
    of_class = isinstance(static, (classmethod, staticmethod))
    option = ":classmethod:\n\n" if isinstance(static, classmethod) else ""
    return entry("method", name + signature(called, bound=not of_class), option + words(called), depth=1)


def described(module: Any, name: str, methods: list[str]) -> str:
    """What a module exports by a name, as Markdown."""
    value = getattr(module, name)
    head = f"{module.__name__}.{name}"
    if isinstance(value, type):
        body = "\n".join([words(value), "", *(method(value, name) for name in methods)])
        return entry("class", head + signature(value), body)
    if callable(value):
        return entry("function", head + signature(value), words(value))
    return entry("data", head, f"{', '.join(f'`{word}`' for word in value)}")


def entries(module: str, lines: list[str]) -> Iterator[str]:
    """The entries of the lines `name: method method`."""
    home = importlib.import_module(module)
    for line in filter(None, map(str.strip, lines)):
        name, _, methods = line.partition(":")
        yield described(home, name, methods.split())
