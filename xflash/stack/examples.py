"""An example for each part: six lines that build a stack with it, and call it."""

from collections.abc import Mapping
from typing import Any

from ..base.registry import blocks, positions, side_inputs
from ..flags.flag import flags_of
from ..flags.layout import default_layout
from .slots import slot_prefix

__all__ = ["example", "held_example"]

# The width of the stack; rows and tokens of a call.
DIM, ROWS, TOKENS = 64, 2, 16
# The layout of a stack that is given none: a block in which tokens meet, and one for each alone.
PLAIN = default_layout(False, False)
MIXER, ALONE = PLAIN.split()


def example(slot: str, name: str, part: Any) -> str:
    """A stack that has the part, chosen for it by the flag `slot`; `layers` for a block."""
    flags: dict[str, Any] = {"layers": PLAIN, slot: name}
    if slot == "layers":
        flags["layers"] = f"{name} {ALONE}" if part.mixes_tokens else f"{MIXER} {name}"
    elif slot == "pos":
        able = [block for block in blocks if positions[name].fits(blocks[block])]
        flags["layers"] = PLAIN if MIXER in able else f"{able[0]} {ALONE}"
    return written(part, flags, "norm_" if slot == "norm" else slot_prefix(name))


def held_example(field: str, name: str, part: Any, holders: list[str]) -> str:
    """A stack with a block that holds the part."""
    block = MIXER if MIXER in holders else holders[0]
    return written(part, {"layers": f"{block} {ALONE}", f"{block}_{field}": name}, slot_prefix(f"{block}_{name}"))


def written(part: Any, flags: Mapping[str, Any], prefix: str) -> str:
    """The lines of an example: with the flags that the part asks for, or else with one of its own."""
    flags = {**flags, **(part.example or told(part, prefix))}
    used = [name for name in blocks if name in flags["layers"].split()]
    asked = {*getattr(part, "heeds", ()), *("context" for name in used if blocks[name].takes_context)}
    given = "x"
    for name, side in side_inputs.items():
        if name in asked and side.example:
            given += f", {name}={side.example.format(rows=ROWS, tokens=TOKENS, dim=DIM)}"
    words = ", ".join(f"{name}={quoted(value)}" for name, value in flags.items())
    return "\n".join(
        [
            "import torch",
            "from xflash import Decoder",
            "",
            f"model = Decoder(dim={DIM}, depth=2, {words})",
            f"x = torch.randn({ROWS}, {TOKENS}, {DIM})",
            f"print(model({given}).shape)  # torch.Size([{ROWS}, {TOKENS}, {DIM}])",
        ]
    )


def told(part: Any, prefix: str) -> dict[str, Any]:
    """The first flag of a part that is neither a switch nor a choice of other parts, at its default."""
    chooses = getattr(part, "holds", ())
    for flag, spec in flags_of(part.Config).items():
        if isinstance(spec.default, (int, float, str)) and spec.default not in (False, True) and flag not in chooses:
            return {prefix + flag: spec.default}
    return {}


def quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
