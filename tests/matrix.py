"""A pairwise covering set of the flags: every value of a flag meets every value of every other in some stack.

Layouts hold every block, so that no flag lacks its block; a combination that xflash refuses is counted, the pair that
is to blame is found, and the other pairs it would have covered are covered by further combinations.
"""

import json
from pathlib import Path
from typing import Any

import covering
import torch
from covering import merged
from matrix_models import SEQ2SEQ, VIT, WRAPPER, build_model, build_seq2seq, build_vit

from xflash import AttentionLayers, Decoder, Encoder
from xflash.flags.layout import parse_layout

FILE = Path(__file__).with_name("covering.json")


def steps(block: str) -> list[dict[str, Any]]:
    """Steps on a block's scores, each flag of them with another value, and other weights."""
    own: list[dict[str, Any]] = [
        {"scores": "softclamp topk learned_sink", "softclamp_value": 2.0, "topk_k": 3},
        {"scores": "topk talking_heads", "talking_heads_pre": False, "topk_k": 2, "topk_straight_through": True},
        {"weight_fn": "sigmoid", "sigmoid_bias": -2.0, "scores": "talking_heads", "talking_heads_post": False},
        {"scores": "learned_sink"},
    ]
    return [{f"{block}_{name}": value for name, value in flags.items()} for flags in own]


# A choice is a dict of flags: flags that mean nothing without each other stand together. The first is the default.
STACK: dict[str, list[dict[str, Any]]] = {
    "layout": [
        {"layers": "flash attn gau ff", "depth": 1},
        {"layers": "gau ff flash attn", "depth": 2, "weight_tie_layers": True},
        {"layers": "attn ff gau(heads=2) flash(group_size=3) attn(window=4)", "depth": 1},
        {"custom_layers": ("f", "flash", "a", "gau")},
        {"layers": "attn(norm=rmsnorm)+gau ff(norm_place=post)+flash attn(norm=none, scale=none) ff", "depth": 1},
        {"layers": "(flash(pos=rotary, rotary_base=50.0) gau(pos=alibi)+ff(shift_tokens=1) attn)*2", "depth": 1},
    ],
    "norm": [
        {"norm": "layernorm"},
        {"norm": "layernorm", "norm_bias": True},
        {"norm": "rmsnorm"},
        {"norm": "simple_rmsnorm"},
        {"norm": "scalenorm"},
        {"norm": "adaptive_layernorm", "dim_condition": 7},
        {"norm": "adaptive_rmsnorm"},
    ],
    "norm details": [{}, {"norm_eps": 1e-6}, {"final_norm": False}, {"final_norm": True}],
    "norm_place": [{"norm_place": place} for place in ("pre", "post", "sandwich", "after")],
    "scale": [
        {},
        {"scale": "layerscale", "layerscale_init": 0.1},
        {"scale": "rezero"},
        {"scale": "adaptive_layerscale", "adaptive_layerscale_init": 0.3},
    ],
    "join": [
        {"join": "add"},
        {"join": "scaled"},
        {"join": "gru"},
        {"join": "gru", "gru_gain": True, "gru_keep": 1.0},
        {"join": "hyper"},
        {"join": "hyper", "hyper_streams": 2, "hyper_mixing": "sum"},
        {"join": "hyper", "hyper_rounds": 2},
        {"join": "orthogonal", "orthogonal_eps": 1e-3},
    ],
    "reads": [
        {},
        {"reads": "lime"},
        {"reads": "lime", "lime_views": True, "lime_eps": 1e-6},
        {"reads": "lime", "lime_weights": "relu"},
    ],
    "value residual": [
        {},
        {"attn_value_residual": True},
        {"attn_value_residual": True, "attn_value_residual_learned": False},
    ],
    "pos": [
        {},
        {"pos": "rotary", "rotary_emb_dim": 4, "rotary_interleaved": True, "rotary_base": 500.0},
        {"pos": "rotary", "rotary_interpolation_factor": 2.0, "rotary_base_rescale_factor": 1.5},
        {"pos": "rotary", "rotary_xpos": True, "rotary_xpos_scale_base": 64.0},
        {"pos": "rel_pos", "rel_pos_num_buckets": 8, "rel_pos_max_distance": 20},
        {"pos": "alibi"},
        {"pos": ("rotary", "alibi"), "alibi_num_heads": 2},
    ],
    "shift": [{}, {"shift_tokens": 1}, {"shift_tokens": 2}, {"shift_tokens": 1, "shift_style": "first_half"}],
    "layer_dropout": [{}, {"layer_dropout": 0.2}],
    "grad_checkpoint": [{}, {"grad_checkpoint": True}],
    "memory": [{}, {"num_memory_tokens": 3}],
    "kv_heads": [{}, {"attn_kv_heads": 1}, {"attn_kv_heads": 2}, {"attn_heads": 2}],
    # Most steps on scores leave no choice of a kernel.
    "kernel": [
        {},
        {"attn_flash": True},
        {"attn_flash": False},
        {"attn_scores": "forget learned_sink", "attn_flash": False},
        {"attn_scores": "residual forget softclamp", "attn_forget_start": 1.0, "attn_weight_fn": "hard"},
        {"attn_scores": "forget"},
        {"attn_scores": "cope softclamp", "attn_cope_positions": 3},
        *steps("attn"),
    ],
    "attn_dropout": [{}, {"attn_dropout": 0.1}],
    "mem_kv": [{}, {"attn_num_mem_kv": 2}],
    "qk_norm": [
        {},
        {"attn_qk_norm": True},
        {"attn_qk_norm": True, "attn_qk_norm_groups": 2, "attn_qk_norm_scale": 4},
        {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
    ],
    "window": [{}, {"attn_window": 5}, {"attn_window": 3, "attn_sinks": 2}],
    "gate_values": [{}, {"attn_gate_values": True}],
    "head_scale": [{}, {"attn_head_scale": True}],
    "ff_mult": [{"ff_mult": 2.0}, {"ff_dim": 25}],
    "ff_glu": [{}, {"ff_glu": True}],
    "ff_activation": [{"ff_activation": name} for name in ("gelu", "silu", "relu2")],
    "ff_no_bias": [{}, {"ff_no_bias": True}],
    "ff_post_act_ln": [{}, {"ff_post_act_ln": True}],
    "ff_dropout": [{}, {"ff_dropout": 0.1}],
    "gau weights": [
        {},
        {"gau_normaliser": "fixed", "gau_fixed_length": 20},
        {"gau_normaliser": "row_sum"},
        {"gau_normaliser": "padded_length"},
        {"gau_normaliser_place": "inside"},
        {"gau_normaliser_place": "content"},
        {"gau_attn_fn": "laplace", "gau_normaliser_place": "inside"},
        {"gau_attn_fn": "softmax"},
        {"gau_attn_fn": "softmax_plus"},
    ],
    "gau_score_scale": [{}, {"gau_score_scale": "none"}],
    "gau_heads": [{}, {"gau_heads": 2}],
    "gau bias": [{}, {"gau_rel_pos_bias": None}, {"gau_rel_pos_bias": "toeplitz", "gau_toeplitz_length": 6}],
    "gau start": [{}, {"gau_offset": False}, {"gau_bias": True}, {"gau_bias": False}, {"gau_gamma_init": "normal"}],
    "gau_dropout": [{}, {"gau_dropout": 0.1}, {"gau_out_dropout": 0.1}],
    "gau_expansion": [{}, {"gau_expansion_factor": 1.5}],
    "group_size": [{"flash_group_size": 5}, {"flash_group_size": 7}, {"flash_group_size": 64}],
    "flash weights": [
        {},
        {"flash_normaliser_place": "outside"},
        {"flash_attn_fn": "laplace"},
        {"flash_attn_fn": "laplace", "flash_normaliser_place": "outside"},
        {"flash_attn_fn": "softmax"},
    ],
    "flash global": [
        {},
        {"flash_global_normaliser": "sum"},
        {"flash_global_normaliser": "padded_length"},
        {"flash_global_scope": "group"},
    ],
    "flash bias": [{"flash_rel_pos_bias": kind} for kind in ("t5", "toeplitz", None)],
    "flash start": [
        {},
        {"flash_offset": False},
        {"flash_bias": False},
        {"flash_bias": True},
        {"flash_gamma_init": "normal"},
    ],
    "flash_dropout": [{}, {"flash_dropout": 0.1}],
    "flash_expansion": [{}, {"flash_expansion_factor": 1.5}],
}


# Blocks that attend to a context, beside what reaches every block.
CROSS: dict[str, list[dict[str, Any]]] = {
    "layout": [
        {"layers": "cross_attn ff cross_gau", "depth": 1},
        {"layers": "attn cross_attn cross_gau", "depth": 2, "weight_tie_layers": True},
        {"layers": "flash cross_attn(heads=2) cross_gau(heads=2)", "depth": 1},
        {"custom_layers": ("a", "c", "cross_gau", "f")},
        {"layers": "attn+cross_attn ff+cross_gau", "depth": 1},
    ],
    **{name: STACK[name] for name in ("norm_place", "shift", "memory", "layer_dropout", "grad_checkpoint")},
    "cross_attend": [{}, {"cross_attend": True}],
    "cross heads": [{}, {"cross_attn_kv_heads": 1}, {"cross_attn_kv_heads": 2}, {"cross_attn_heads": 2}],
    "cross kernel": [
        {},
        {"cross_attn_flash": True},
        {"cross_attn_flash": False},
        {"cross_attn_scores": "residual topk"},
        *steps("cross_attn"),
    ],
    "cross width": [{}, {"cross_attn_dim_context": 20, "cross_gau_dim_context": 20}],
    "cross_attn parts": [
        {},
        {"cross_attn_num_mem_kv": 2},
        {"cross_attn_gate_values": True},
        {"cross_attn_head_scale": True},
        {"cross_attn_dropout": 0.1},
        {"cross_attn_value_residual": True},
    ],
    "cross qk_norm": [
        {},
        {"cross_attn_qk_norm": True, "cross_attn_qk_norm_groups": 2, "cross_attn_qk_norm_scale": 4},
        {"cross_attn_qk_norm": True, "cross_attn_qk_norm_dim_scale": True},
    ],
    "cross_gau weights": [
        {},
        {"cross_gau_attn_fn": "relu2", "cross_gau_normaliser": "fixed", "cross_gau_fixed_length": 20},
        {"cross_gau_attn_fn": "laplace", "cross_gau_normaliser": "row_sum"},
        {"cross_gau_attn_fn": "relu2", "cross_gau_normaliser_place": "inside", "cross_gau_score_scale": "none"},
        {"cross_gau_attn_fn": "relu2"},
        {"cross_gau_attn_fn": "softmax_plus"},
    ],
    "cross_gau parts": [
        {},
        {"cross_gau_heads": 2},
        {"cross_gau_expansion_factor": 1.5},
        {"cross_gau_gamma_init": "normal", "cross_gau_offset": False},
        {"cross_gau_bias": True},
        {"cross_gau_dropout": 0.1, "cross_gau_out_dropout": 0.1},
    ],
}

# Blocks that look back only stand in stacks of their own.
RECURRENT: dict[str, list[dict[str, Any]]] = {
    "layout": [
        {"layers": "block_attn state_read flash recurrent ff", "depth": 1},
        {"layers": "recurrent block_attn state_read", "depth": 2, "weight_tie_layers": True},
        {"layers": "attn state_read block_attn(read_from=(1,)) recurrent(reads=False)", "depth": 1},
        {"layers": "block_attn state_read recurrent(reads=False) recurrent(read_layer=1)", "depth": 1},
        {"layers": "block_attn+state_read attn+recurrent ff", "depth": 1},
    ],
    **{name: STACK[name] for name in ("norm_place", "shift", "memory", "layer_dropout", "grad_checkpoint")},
    # None, xPos, T5's and two at once: how wide what is turned is, and by what, is tried with other blocks.
    "pos": [STACK["pos"][i] for i in (0, 3, 4, 6)],
    "width": [
        {"block_attn_block_width": 8, "recurrent_block_width": 8},
        {"block_attn_block_width": 6, "recurrent_block_width": 10},
        {"block_attn_block_width": 16, "recurrent_block_width": 16},
    ],
    "heads": [
        {},
        {"block_attn_heads": 2, "recurrent_heads": 2, "state_read_heads": 3},
        {"block_attn_kv_heads": 1, "recurrent_kv_heads": 2},
    ],
    "reach": [{}, {"block_attn_reach": "sliding", "recurrent_reach": "sliding"}],
    "bias": [{}, {"block_attn_rel_pos_bias": "t5", "recurrent_rel_pos_bias": "t5"}],
    "cosines": [
        {},
        {"block_attn_cosine": True, "block_attn_cosine_scale": 4, "recurrent_cosine_scale": 4},
        {"recurrent_cosine": False, "state_read_cosine": False, "block_attn_read_cosine": False},
        {"state_read_cosine_scale": 4, "block_attn_read_cosine_scale": 4, "recurrent_read_cosine_scale": 4},
        {"recurrent_read_cosine": False},
    ],
    "dropout": [{}, {"block_attn_dropout": 0.1, "recurrent_dropout": 0.1}],
    "kernel": [{}, {"block_attn_flash": False, "recurrent_flash": False}],
    "compress": [
        {},
        {"recurrent_compress": "conv", "recurrent_compress_factor": 2, "recurrent_compress_blocks": 3},
        {"block_attn_compress": "mean", "block_attn_compress_factor": 2, "block_attn_compress_blocks": 1},
        {"recurrent_compress": "max", "recurrent_compress_factor": 2},
        {"recurrent_compress": "conv", "recurrent_compress_factor": 2, "recurrent_compress_loss": True}
        | {"block_attn_compress": "conv", "block_attn_compress_factor": 2, "block_attn_compress_loss": True},
    ],
    "retrieve": [
        {},
        {"recurrent_retrieve": 3, "recurrent_retrieve_len": 80}
        | {"block_attn_retrieve": 1, "block_attn_retrieve_len": 48},
        {"recurrent_retrieve": 2, "block_attn_retrieve": 50},
        # What is retrieved is read without steps on the scores.
        *(
            block | recurrent | reads
            for block, recurrent, reads in zip(
                steps("block_attn"), reversed(steps("recurrent")), steps("state_read"), strict=True
            )
        ),
    ],
    "gate": [{"recurrent_gate": gate} for gate in ("fixed", "lstm", "gru")],
    "update": [{"recurrent_update": update} for update in ("skip", "single", "dual")],
    "write_from": [{}, {"recurrent_write_from": "window"}],
    "vectors": [{"recurrent_num_state_vectors": 3}, {"recurrent_num_state_vectors": 1}],
}


SMALL_BLOCKS = {"block_attn_dim_head": 6, "recurrent_dim_head": 6, "state_read_dim_head": 6, "state_read_source": 1}
FIXED = {
    "dim": 24,
    "heads": 4,
    "attn_dim_head": 6,
    "gau_query_key_dim": 12,
    "flash_query_key_dim": 10,
}
SMALL_CROSS = {"cross_attn_dim_head": 6, "cross_gau_query_key_dim": 8}


def build_stack(causal: bool, row: dict[str, dict[str, Any]]) -> AttentionLayers:
    torch.manual_seed(0)
    return (Decoder if causal else Encoder)(**{**FIXED, **merged(row)})


def small(row: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Small sizes for the blocks that are in some layouts only."""
    specs = parse_layout(row["layout"].get("layers") or row["layout"]["custom_layers"])
    words = [block.name for spec in specs for block in spec.members]
    extra = {"attn_dim_head": 6} if "attn" in words else {}
    return extra | ({"flash_group_size": 5, "flash_query_key_dim": 10} if "flash" in words else {})


def build_cross(causal: bool, row: dict[str, dict[str, Any]]) -> AttentionLayers:
    torch.manual_seed(0)
    return (Decoder if causal else Encoder)(**{"dim": 24, "heads": 4, **small(row), **SMALL_CROSS, **merged(row)})


def build_recurrent(causal: bool, row: dict[str, dict[str, Any]]) -> AttentionLayers:
    torch.manual_seed(0)
    return Decoder(**{"dim": 24, "heads": 4, **small(row), **SMALL_BLOCKS, **merged(row)})


DOMAINS: dict[str, tuple[dict[str, list[dict[str, Any]]], Any, tuple[bool, ...]]] = {
    "stack": (STACK, build_stack, (True, False)),
    "cross": (CROSS, build_cross, (True, False)),
    "recurrent": (RECURRENT, build_recurrent, (True,)),
    "wrapper": (WRAPPER, build_model, (True, False)),
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
