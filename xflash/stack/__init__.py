"""A stack of layers: its face, its flags, the door for padding, side inputs, and its states."""

from typing import Any

from ..base.moved import lent

KINDS = ("CrossAttender", "Decoder", "Encoder", "PrefixDecoder")


def __getattr__(name: str) -> Any:
    return lent(__name__, "stacks" if name in KINDS else "face")(name)
