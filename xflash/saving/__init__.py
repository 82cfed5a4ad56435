"""Configs and weights, in and out, and what older versions wrote."""

from ..base.moved import lent

__getattr__ = lent(__name__, "store")
