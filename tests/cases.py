"""Small stacks of everything that is registered, by name, for tests that try them all."""

from collections.abc import Iterator

import torch

from xflash import AttentionLayers
from xflash.base.registry import blocks, joins, norms, positions, reads, scales, scores
from xflash.flags.layout import layout_text, parse_layout

SMALL = {
    "attn": {"attn_dim_head": 6},
    "gau": {"gau_query_key_dim": 14},
    "flash": {"flash_query_key_dim": 14, "flash_group_size": 5},
    "block_attn": {"block_attn_block_width": 5, "block_attn_dim_head": 6},
    "recurrent": {"recurrent_block_width": 5, "recurrent_dim_head": 6, "recurrent_num_state_vectors": 3},
    "state_read": {"state_read_dim_head": 6},
    "cross_attn": {"cross_attn_dim_head": 6, "cross_attn_dim_context": 22},
    "cross_gau": {"cross_gau_query_key_dim": 14, "cross_gau_dim_context": 22},
}
DIM, HEADS = 34, 4


def least_depth(flags: dict) -> int:
    """How often the layout of a case must be repeated at least: twice where repetitions have to do with each other."""
    together = flags.get("weight_tie_layers") or "unet" in str(flags.get("reads"))
    passed_on = [value for name, value in flags.items() if name.endswith(("_value_residual", "_scores"))]
    together = together or any(value is True or "residual" in str(value) for value in passed_on)
    return 2 if together or isinstance(flags.get("shift_tokens"), tuple) else 1


def build(layers: str = "attn ff", depth: int = 2, **flags) -> AttentionLayers:
    """A small stack, at least as deep as its flags ask for."""
    torch.manual_seed(0)
    depth = max(depth, least_depth(flags))
    named = names(layers)
    small = {k: v for name, given in SMALL.items() if name in named for k, v in given.items()}
    return AttentionLayers(**{"dim": DIM, "depth": depth, "heads": HEADS, "layers": layers, **small, **flags})


def names(layers: str) -> list[str]:
    """The blocks of a layout, those in parallel each."""
    return [block.name for spec in parse_layout(layers) for block in spec.members]


def able(position: str) -> str:
    """A layout of all blocks that can use a position."""
    return " ".join(name for name, block in blocks.items() if position in block.positions)


def behind(scale: str) -> str:
    """A layout with a block that the scale stands behind."""
    return "attn gau" if scales[scale].fits([blocks["gau"]]) else "attn ff"


def beside(join: str) -> dict[str, str]:
    """Where norms stand beside a join."""
    places = joins[join].norm_places
    return {"norm_place": places[0]} if places else {}


# What a block needs beside it.
COMPANY = {"state_read": "state_read recurrent"}


def reading(field: str, causal_only: bool) -> dict[str, list[str]]:
    """The parts of a name that blocks can hold, each with those that look both ways, or back only."""
    able = [n for n, b in blocks.items() if field in b.holds and b.causal_only == causal_only and n not in COMPANY]
    registry = {name: part for block in able for name, part in blocks[block].holds[field].items()}
    return {name: [n for n in able if not blocks[n].refuses(part)] for name, part in registry.items()}


def holding(field: str, part: object, names: list[str]) -> dict[str, object]:
    return {"layers": " ".join(names), **{f"{name}_{field}": part for name in names}}


CASES = {
    **{f"block {name}": {"layers": COMPANY.get(name, name)} for name in blocks},
    "a context in pieces": {"layers": "cross_attn state_read recurrent", "shift_tokens": 1, "num_memory_tokens": 7},
    "states read below": {"layers": "block_attn(read_from=(1,)) flash recurrent(reads=False) ff", "depth": 1},
    "states read by another": {"layers": "recurrent(reads=False) recurrent(read_from=(1,))", "depth": 1},
    "read_layer": {"layers": "block_attn recurrent(read_layer=1) ff", "depth": 1},
    "experts": {"layers": "attn moe", "moe_experts": 5, "moe_dim": 7, "shift_tokens": 1},
    "experts shared": {"layers": "moe+attn moe(top_k=1)", "moe_shared_dim": 5, "moe_shared_gate": True, "moe_glu": True}
    | {"moe_router": "sigmoid", "moe_dim": 7, "weight_tie_layers": True},
    "compressed": {"layers": "recurrent ff", "recurrent_compress": "conv", "recurrent_compress_factor": 5},
    "compress loss": {"layers": "block_attn ff", "block_attn_compress": "conv", "block_attn_compress_factor": 5}
    | {"block_attn_compress_loss": True, "num_memory_tokens": 7},
    # Five tokens are held: less than the sequences have.
    "retrieve": {"layers": "recurrent ff", "recurrent_retrieve": 3, "recurrent_retrieve_len": 5, "shift_tokens": 1},
    "retrieve all": {"layers": "block_attn ff", "block_attn_retrieve": 99, "pos": "rotary", "num_memory_tokens": 11},
    "sliding": {"layers": "block_attn ff", "block_attn_reach": "sliding", "pos": "rotary", "rotary_xpos": True},
    "lstm": {
        "layers": "recurrent",
        "recurrent_gate": "lstm",
        "recurrent_update": "dual",
        "recurrent_write_from": "window",
    },
    "gru": {"layers": "recurrent", "recurrent_gate": "gru", "recurrent_update": "single", "recurrent_kv_heads": 2},
    **{f"norm {name}": {"layers": "attn ff flash", "norm": name} for name in norms},
    **{f"position {name}": {"layers": able(name), "pos": name} for name in positions},
    **{f"read {name}": {"layers": "attn gau", "reads": name} for name in reads},
    **{f"scale {name}": {"layers": behind(name), "scale": name} for name in scales},
    **{f"join {name}": {"layers": "attn gau", "join": name, **beside(name)} for name in joins},
    "value residual": {"layers": "attn cross_attn", "attn_value_residual": True, "weight_tie_layers": True},
    "values learned": {"layers": "attn ff", "attn_value_residual": True, "attn_kv_heads": 2, "pos": "rotary"}
    | {"join": "gru", "gru_gain": True},
    "views": {"layers": "attn ff", "reads": "unet lime", "lime_views": True, "shift_tokens": 1, "join": "hyper"}
    | {"attn_gate_values": True, "num_memory_tokens": 3, "lime_weights": "relu"},
    "streams between pieces": {"layers": "state_read recurrent", "join": "hyper", "reads": "lime"},
    "tied gates": {"layers": "attn gau", "join": "gru", "weight_tie_layers": True, "norm_place": "post"},
    "tied streams": {"layers": "flash ff", "join": "hyper", "weight_tie_layers": True}
    | {"scale": "layerscale", "hyper_streams": 2, "reads": "reinject"},
    "every read and scale": {"layers": "attn ff", "reads": " ".join(reads), "scale": " ".join(scales)}
    | {"join": "scaled", "norm_place": "sandwich", "norm": "rmsnorm"},
    **{f"scores {name}": holding("scores", name, able) for name, able in reading("scores", False).items() if able},
    **{f"weights {name}": holding("weight_fn", name, able) for name, able in reading("weight_fn", False).items()},
    "scores in blocks": holding("scores", tuple(n for n, b in reading("scores", True).items() if b), ["recurrent"]),
    "weights in blocks": holding("weight_fn", "sigmoid", ["block_attn"]),
    "no norm": {"layers": "attn ff", "norm": "none", "pos": "rotary"},
    "norm after": {"layers": "attn ff", "norm": "rmsnorm", "norm_place": "after", "pos": "rotary"},
    "parallel": {"layers": "attn+ff", "pos": "rotary", "shift_tokens": 1},
    "parallel, norms apart": {"layers": "gau+attn(norm=own)+ff(norm=own, norm_eps=1e-3)", "shift_tokens": 2}
    | {"num_memory_tokens": 3, "reads": "lime unet", "join": "hyper", "scale": "layerscale"},
    "parallel, tied": {"layers": "attn(norm=own, window=3)+flash cross_attn+ff", "weight_tie_layers": True}
    | {"attn_value_residual": True, "pos": "rel_pos", "norm_place": "sandwich"},
    "parallel, in pieces": {"layers": "attn+state_read ff+recurrent(block_width=10)", "shift_tokens": 1, "depth": 1},
    "norms of layers": {
        "layers": "attn(norm=rmsnorm, norm_place=after) ff(norm=none) gau(norm_eps=1e-2)+ff(norm_place=post) flash",
        "norm": "scalenorm",
    },
    "parts of layers": {
        "layers": "attn(shift_tokens=2, join=gru) ff(scale=rezero)+gau(layer_dropout=0.2) flash(scale=none)",
        "scale": "layerscale",
    },
    "positions of layers": {
        "layers": "attn(rotary_base=50.0) gau attn(pos=none)+gau(rotary_interleaved=True) attn(pos='alibi rotary')",
        "pos": "rotary",
    },
    "weights of layers' positions": {
        "layers": "attn(rel_pos_num_buckets=8) attn+gau flash(pos=rotary)",
        "pos": "rel_pos",
    },
    "shift": {"layers": "attn ff flash", "shift_tokens": (2, 0, 1, 1, 3, 0)},
    "sinks": {"layers": "attn(window=3,sinks=2) ff", "pos": ("rotary", "rel_pos")},
    "memory tokens": {"layers": "flash attn gau", "num_memory_tokens": 3, "shift_tokens": 1},
    # Blocks of ten, lest the sequences that the laws use fall into too many pieces.
    "all blocks": {
        "layers": " ".join(blocks).replace("recurrent", "recurrent(block_width=10)"),
        "pos": "rotary",
        "shift_tokens": 1,
    },
}


def both_ways(cases: dict[str, dict]) -> list:
    """Each of `ways(cases)` as an argument of pytest: (flags, causal)."""
    import pytest

    return [pytest.param(flags, causal, id=name) for name, flags, causal in ways(cases)]


def ways(cases: dict[str, dict]) -> Iterator[tuple[str, dict, bool]]:
    """Each case as a causal stack and, without blocks that look back only, as a bidirectional one.

    Gives (name, flags, causal).
    """
    for case, flags in cases.items():
        yield f"{case}-causal", flags, True
        steps = {
            part
            for value in flags.values()
            for part in scores
            if value == part or (type(value) is tuple and part in value)
        }
        if any("causal" in scores[part].needs for part in steps):
            continue
        specs = parse_layout(flags["layers"])
        kept = [spec for spec in specs if not any(blocks[block.name].causal_only for block in spec.members)]
        left, gone = layout_text(kept), set(names(flags["layers"])) - set(names(layout_text(kept)) if kept else ())
        if left and not any(flag.startswith(tuple(gone)) for flag in flags if gone):
            yield f"{case}-bidirectional", {**flags, "layers": left}, False
