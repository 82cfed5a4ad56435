"""Modules under the names they had in xflash 0.1.0, for what was pickled then and for scripts that import them."""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["MOVED", "Moved", "lent", "names_before"]

MOVED = {
    "aliases": "flags.aliases",
    "checks": "base.checks",
    "configurable": "saving.configurable",
    "data": "datasets.sequences",
    "door": "stack.door",
    "elsewhere": "flags.elsewhere",
    "fallback": "base.fallback",
    "fetch": "datasets.fetch",
    "files": "base.files",
    "images": "datasets.images",
    "layers.attention": "layers.blocks.attention",
    "layers.block": "layers.blocks.block",
    "layers.block_attention": "layers.blocks.block_attention",
    "layers.compress": "layers.blocks.compress",
    "layers.context": "layers.blocks.context",
    "layers.cosine": "layers.blocks.cosine",
    "layers.cross_attention": "layers.blocks.cross_attention",
    "layers.cross_gau": "layers.blocks.cross_gau",
    "layers.feedforward": "layers.blocks.feedforward",
    "layers.flash": "layers.blocks.flash",
    "layers.gated_unit": "layers.blocks.gated_unit",
    "layers.gau": "layers.blocks.gau",
    "layers.key_values": "layers.blocks.key_values",
    "layers.masks": "layers.blocks.masks",
    "layers.multi_head": "layers.blocks.multi_head",
    "layers.patches": "wrappers.patches",
    "layers.pooling": "wrappers.pooling",
    "layers.residuals": "layers.joins.join",
    "layers.recurrence": "layers.blocks.recurrence",
    "layers.recurrent": "layers.blocks.recurrent",
    "layers.retrieve": "layers.blocks.retrieve",
    "layers.state_read": "layers.blocks.state_read",
    "layout": "flags.layout",
    "looks": "base.looks",
    "losses": "wrappers.losses",
    "migrate": "saving.migrate",
    "pieces": "base.pieces",
    "registry": "base.registry",
    "sampling": "generation.sampling",
    "shapes": "base.shapes",
    "stack_flags": "stack.config",
    "stack_parts": "stack.parts",
    "stack_pieces": "stack.block_by_block",
    "state": "base.state",
    "stepping": "stack.stepping",
    "weights": "saving.weights",
    "wrappers.beam": "generation.beam",
    "wrappers.decoding": "generation.decoding",
}


class Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the module of this package that was under a name before."""

    def __init__(self, package: str):
        self.package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        package, _, rest = name.partition(".")
        return importlib.util.spec_from_loader(name, self) if package == self.package and rest in MOVED else None

    def exec_module(self, module: Any) -> None:
        now = MOVED[module.__name__.partition(".")[2]]
        sys.modules[module.__name__] = importlib.import_module(f"{self.package}.{now}")


def names_before(module: str) -> list[str]:
    """The names, inside the package, that a module of it had before."""
    return [was for was, now in MOVED.items() if now == module.partition(".")[2]]


def lent(package: str, *modules: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package that has the name of what is now modules in it."""

    def getattr_(name: str) -> Any:
        for module in () if name.startswith("__") else modules:
            found = importlib.import_module(f"{package}.{module}")
            if hasattr(found, name):
                return getattr(found, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return getattr_
