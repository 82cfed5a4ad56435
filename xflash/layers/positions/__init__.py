"""Relative positions by name."""

from ...base.moved import lent

__getattr__ = lent(__name__, "relative")
