"""Relative positions by name."""

from ...base.moved import lent

__getattr__ = lent(__name__, "position", "rotary", "distance", "rel_pos", "alibi", "relative", "angles")
