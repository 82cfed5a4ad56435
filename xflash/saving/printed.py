"""`Printed`: how a module that knows what it is built from is shown, alone and beside another."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..flags.flag import Flag, flag_table
from .differences import Differences, diff
from .html import page
from .summary import summary, tree

__all__ = ["Printed"]


class Printed(nn.Module):
    """A module with `flag_rows`, shown as text, as HTML in notebooks, as a table of flags, and beside another."""

    def flag_rows(self) -> list[tuple[str, Any, Flag]]:
        """The flags with their values."""
        raise NotImplementedError

    def flag_table(self, changed_only: bool = False) -> str:
        """Every flag, or those that are not at their default, with its value, default, type and meaning, as text."""
        return flag_table(self.flag_rows(), changed_only)

    def diff(self, other: "Printed | Mapping[str, Any]") -> Differences:
        """Which flags another model, or a config as `to_config()` gives it, has otherwise: see `xflash.diff`."""
        return diff(self, other)

    def __repr__(self) -> str:
        return summary(self)

    def _repr_html_(self) -> str:
        return page(self)

    def module_tree(self) -> str:
        """All modules as text, as PyTorch shows them: thousands of lines for a large model."""
        return tree(self)
