"""From keywords to Configs: what a flag is, its other spellings, and the layout."""

from ..base.moved import lent

__getattr__ = lent(__name__, "flag")
