"""`Part`: the interface of everything in a branch beside its block."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from ..base.frozen import frozen
from .site import Site

__all__ = ["Part"]


class Part(nn.Module):
    """Built from its Config and its Site, called with a tensor and the ctx; `calls` are the arguments of forward.

    `heeds` names the side inputs in `ctx.beside` that it looks at; `example` has the flags of its example in the docs.
    """

    calls: ClassVar[tuple[str, ...]] = ("x", "ctx")
    heeds: ClassVar[frozenset[str]] = frozenset()
    example: ClassVar[Mapping[str, Any]] = {}

    @frozen
    class Config:
        """Nothing to set."""

    def __init__(self, config: Any, site: Site):
        super().__init__()
        self.config = config
        self.site = site

    @classmethod
    def unlike(cls) -> str:
        """Why the class cannot be called as its kind is, or ''."""
        try:
            inspect.signature(cls.forward).bind(None, *cls.calls)
        except TypeError:
            given = inspect.signature(cls.forward)
            return (
                f"is built as {cls.__name__}(config, site), whose width is site.dim, and called with "
                f"({', '.join(cls.calls)}), but its forward takes {given}"
            )
        return ""

    def extra_repr(self) -> str:
        return ", ".join([str(self.site.dim), *(f"{name}={value!r}" for name, value in vars(self.config).items())])
