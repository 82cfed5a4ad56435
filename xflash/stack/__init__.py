"""A stack of layers: its face, its flags, the door for padding, side inputs, and its states."""

from ..base.moved import lent

__getattr__ = lent(__name__, "stacks", "face")
