"""Pairwise covering sets of the flags, one for the blocks of a kind: each value of a flag meets each of every other.

Layouts hold every block, so that no flag lacks its block; a combination that xflash refuses is counted, the pair that
is to blame is found, and the other pairs it would have covered are covered by further combinations.
"""

import json
from pathlib import Path
from typing import Any

import covering
import torch
from covering import merged
from matrix_models import (
    FRAMES,
    NUMBERS,
    SEQ2SEQ,
    SEVERAL,
    VIT,
    WRAPPER,
    build_frames,
    build_model,
    build_numbers,
    build_seq2seq,
    build_several,
    build_vit,
)
from matrix_values import LAYOUT, Axes, apart, layouts, norm_axes, stack_axes, together

from xflash import AttentionLayers, Decoder, Encoder
from xflash.base.registry import joins
from xflash.flags.flag import flags_of
from xflash.stack.config import StackConfig

FILE = Path(__file__).with_name("covering.json")


FIXED = {"dim": 24, "heads": 4}
PLAIN, CROSS, RECURRENT, EXPERTS = (
    ("flash", "attn", "gau", "ff"),
    ("cross_attn", "cross_gau"),
    ("block_attn", "recurrent", "state_read"),
    ("moe",),
)
# What reaches every block is combined with some of them only.
AROUND = ("norm_place", "shift_tokens", "num_memory_tokens", "layer_dropout", "grad_checkpoint", "weight_tie_layers")
EVERY = [name for name in flags_of(StackConfig) if name not in (*LAYOUT, "cross_attend")]
STACK: Axes = {"layers": layouts(PLAIN), **stack_axes(EVERY), **norm_axes(), **apart(PLAIN)}
# A join that needs norms in some places is tried in the first of them.
STACK["join"] = [
    choice | {"norm_place": place for place in joins[choice.get("join", "add")].norm_places[:1]}  # noqa: B035
    for choice in STACK["join"]
]
CROSSED: Axes = {"layers": layouts(CROSS), **stack_axes((*AROUND, "cross_attend")), **together(CROSS)}
BACK: Axes = {
    "layers": layouts(RECURRENT), **stack_axes((*AROUND, "pos")), **together(RECURRENT[:2]), **apart(RECURRENT[2:]),
}  # fmt: skip
ROUTED: Axes = {"layers": layouts(EXPERTS), **stack_axes(AROUND), **apart(EXPERTS)}
# Frequencies are scaled in the same way whatever stands around: not each way meets all flags of all blocks. Blocks of
# tokens, which are on no grid, have one of the ways.
SCALED: Axes = {"layers": layouts(PLAIN), **stack_axes((*AROUND, "pos"))}
SCALED["pos"] = [choice for choice in SCALED["pos"] if "rotary_scaling" in choice]
STACK["pos"] = [choice for choice in STACK["pos"] if "rotary_scaling" not in choice]
BACK["pos"] = [
    choice
    for choice in BACK["pos"]
    if "rotary2d" not in str(choice.get("pos")) and choice.get("rotary_scaling") in (None, "yarn")
]


def build_stack(causal: bool, row: dict[str, dict[str, Any]]) -> AttentionLayers:
    torch.manual_seed(0)
    flags = merged(row)
    # What layers hand on to others of their kind needs a second one.
    handed = any(v for k, v in flags.items() if k.endswith("_value_residual") or "residual" in str(v))
    if "custom_layers" in flags:
        flags.pop("depth", None)
        flags["custom_layers"] *= 2 if handed else 1
    else:
        flags = {"depth": 2 if handed else 1, **flags}
    return (Decoder if causal else Encoder)(**FIXED, **flags)


DOMAINS: dict[str, tuple[dict[str, list[dict[str, Any]]], Any, tuple[bool, ...]]] = {
    "stack": (STACK, build_stack, (True, False)),
    "cross": (CROSSED, build_stack, (True, False)),
    "recurrent": (BACK, build_stack, (True,)),
    "scaled": (SCALED, build_stack, (True, False)),
    "experts": (ROUTED, build_stack, (True, False)),
    "wrapper": (WRAPPER, build_model, (True, False)),
    "frames": (FRAMES, build_frames, (True,)),
    "numbers": (NUMBERS, build_numbers, (True,)),
    "several": (SEVERAL, build_several, (True,)),
    "vit": (VIT, build_vit, (False,)),
    "seq2seq": (SEQ2SEQ, build_seq2seq, (True,)),
}


def domain_of(what: str) -> tuple[dict[str, list[dict[str, Any]]], Any]:
    return DOMAINS[what][:2]


def as_row(what: str, indices) -> dict[str, dict[str, Any]]:
    """A combination from the indices of its choices."""
    return covering.as_row(domain_of(what)[0], indices)


def pairs(what: str, rows) -> set:
    """The pairs of choices that some combination holds."""
    names = list(domain_of(what)[0])
    return {((names[i], r[i]), (names[j], r[j])) for r in rows for i in range(len(names)) for j in range(i)}


def stored() -> dict[str, dict[str, list[list[int]]]]:
    """The covering sets as they were written by `python tests/matrix.py` (a minute's work)."""
    return json.loads(FILE.read_text())


if __name__ == "__main__":
    kinds = {
        f"{what} {'causal' if causal else 'bidirectional'}": covering.cover(domain, build, causal)
        for what, (domain, build, directions) in DOMAINS.items()
        for causal in directions
    }
    FILE.write_text(
        "{\n" + ",\n".join(f"{json.dumps(kind)}: {json.dumps(rows)}" for kind, rows in kinds.items()) + "\n}\n"
    )
    for kind, rows in kinds.items():
        print(f"{kind}: {len(rows['accepted'])} accepted, {len(rows['refused'])} refused")
