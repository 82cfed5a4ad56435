"""A pairwise covering set of the flags: every value of a flag meets every value of every other in some stack.

Layouts hold every block, so that no flag lacks its block; a combination that xflash refuses is counted, the pair that
is to blame is found, and the other pairs it would have covered are covered by further combinations.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from allpairspy import AllPairs

from xflash import AttentionLayers, Decoder, Encoder, TransformerWrapper, ViTransformerWrapper, XTransformer

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
    ],
    "norm": [
        {"norm": "layernorm"},
        {"norm": "layernorm", "norm_bias": True},
        {"norm": "rmsnorm"},
        {"norm": "simple_rmsnorm"},
        {"norm": "scalenorm"},
    ],
    "norm details": [{}, {"norm_eps": 1e-6}, {"final_norm": False}, {"final_norm": True}],
    "norm_place": [{"norm_place": place} for place in ("pre", "post", "sandwich")],
    "residual": [
        {"residual": "add"},
        {"residual": "layerscale", "residual_init": 0.1},
        {"residual": "rezero"},
        {"residual": "scaled"},
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

WRAPPER: dict[str, list[dict[str, Any]]] = {
    "stack": [{}, {"pos": "rotary"}, {"num_memory_tokens": 3}, {"shift_tokens": 1}],
    "use_abs_pos_emb": [{}, {"use_abs_pos_emb": True}, {"use_abs_pos_emb": False}],
    "scaled_sinu_pos_emb": [{}, {"scaled_sinu_pos_emb": True}],
    "l2norm_embed": [{}, {"l2norm_embed": True}],
    "post_emb_norm": [{}, {"post_emb_norm": True}],
    "emb_dropout": [{}, {"emb_dropout": 0.1}],
    "head": [
        {},
        {"tie_embedding": True},
        {"tie_embedding": True, "tie_embedding_scale": 0.5},
        {"logits_bias": True},
        {"logits_dim": 7},
        {"return_only_embed": True},
    ],
    "emb_dim": [{}, {"emb_dim": 20}],
    "num_memory_tokens": [{}, {"num_memory_tokens": 3}],
    "embed_num_tokens": [{}, {"embed_num_tokens": {"segment": 2, "type": 5}}],
    "pooling": [
        {},
        {"average_pool_embed": True},
        {"attn_pool": True},
        {"use_cls_token": True},
        {"use_cls_token": True, "num_cls_tokens": 2},
    ],
    "memory": [{}, {"max_mem_len": 29}],
}

# Blocks that attend to a context, beside what reaches every block.
CROSS: dict[str, list[dict[str, Any]]] = {
    "layout": [
        {"layers": "cross_attn ff cross_gau", "depth": 1},
        {"layers": "attn cross_attn cross_gau", "depth": 2, "weight_tie_layers": True},
        {"layers": "flash cross_attn(heads=2) cross_gau(heads=2)", "depth": 1},
        {"custom_layers": ("a", "c", "cross_gau", "f")},
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

VIT: dict[str, list[dict[str, Any]]] = {
    "layout": [
        {"layers": "attn ff", "attn_dim_head": 6},
        {"layers": "flash gau", "flash_group_size": 5, "gau_query_key_dim": 8, "flash_query_key_dim": 8},
        {"layers": "attn gau", "attn_dim_head": 6, "num_memory_tokens": 2, "gau_query_key_dim": 8},
        {"layers": "attn ff", "attn_dim_head": 6, "pos": "rotary", "shift_tokens": 1},
    ],
    "size": [{}, {"image_size": (12, 20), "patch_size": (4, 5)}],
    "pos_emb": [{}, {"pos_emb": "sincos2d"}, {"pos_emb": None}],
    "pool": [{}, {"pool": "cls"}, {"pool": "attn"}],
    "num_register_tokens": [{}, {"num_register_tokens": 3}],
    "post_emb_norm": [{}, {"post_emb_norm": True}],
    "emb_dropout": [{}, {"emb_dropout": 0.1}],
    "num_classes": [{}, {"num_classes": None}],
    "channels": [{}, {"channels": 1}],
}

# The flags of each side have their kind; here the two sides meet.
SEQ2SEQ: dict[str, list[dict[str, Any]]] = {
    "encoder": [
        {"enc_layers": "attn ff"},
        {"enc_layers": "flash", "enc_flash_group_size": 5, "enc_flash_query_key_dim": 8},
        {"enc_layers": "gau ff", "enc_gau_query_key_dim": 8, "enc_shift_tokens": 1},
    ],
    "decoder": [
        {"dec_layers": "attn cross_attn ff"},
        {"dec_layers": "attn cross_gau", "dec_cross_gau_query_key_dim": 8},
        {"dec_layers": "cross_attn flash", "dec_flash_group_size": 3, "dec_flash_query_key_dim": 8},
        {"dec_layers": "cross_attn recurrent", "dec_recurrent_block_width": 4, "dec_recurrent_num_state_vectors": 2},
        {"dec_layers": "attn cross_attn ff", "dec_shift_tokens": 1},
    ],
    "enc_pos": [{}, {"enc_pos": "rotary"}, {"enc_scaled_sinu_pos_emb": True}],
    "dec_pos": [{}, {"dec_pos": "rotary"}, {"dec_use_abs_pos_emb": False}],
    "tie_token_emb": [{}, {"tie_token_emb": True}],
    "enc_memory": [{}, {"enc_num_memory_tokens": 2}],
    "dec_memory": [{}, {"dec_num_memory_tokens": 2}],
    "dropout": [{}, {"cross_attn_tokens_dropout": 0.2}],
    "labels": [{}, {"ignore_index": 0, "pad_value": 1, "loss_chunk": 5}],
    "embeddings": [{}, {"enc_emb_dim": 20, "dec_emb_dim": 20}, {"enc_post_emb_norm": True, "dec_tie_embedding": True}],
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
STACK_FLAGS = ("pos", "shift_tokens")


def merged(row: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {flag: value for choice in row.values() for flag, value in choice.items()}


def build_stack(causal: bool, row: dict[str, dict[str, Any]]) -> AttentionLayers:
    torch.manual_seed(0)
    return (Decoder if causal else Encoder)(**{**FIXED, **merged(row)})


def small(row: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Small sizes for the blocks that are in some layouts only."""
    names = str(row["layout"].get("layers") or row["layout"]["custom_layers"]).replace("'a'", " attn ")
    words = names.replace("(", " ").split()
    extra = {"attn_dim_head": 6} if "attn" in words else {}
    return extra | ({"flash_group_size": 5, "flash_query_key_dim": 10} if "flash" in words else {})


def build_cross(causal: bool, row: dict[str, dict[str, Any]]) -> AttentionLayers:
    torch.manual_seed(0)
    return (Decoder if causal else Encoder)(**{"dim": 24, "heads": 4, **small(row), **SMALL_CROSS, **merged(row)})


def build_recurrent(causal: bool, row: dict[str, dict[str, Any]]) -> AttentionLayers:
    torch.manual_seed(0)
    return Decoder(**{"dim": 24, "heads": 4, **small(row), **SMALL_BLOCKS, **merged(row)})


def build_vit(causal: bool, row: dict[str, dict[str, Any]]) -> ViTransformerWrapper:
    torch.manual_seed(0)
    stack = (Decoder if causal else Encoder)(dim=24, depth=1, heads=4, **row["layout"])
    rest = merged({name: choice for name, choice in row.items() if name != "layout"})
    return ViTransformerWrapper(**{"image_size": 12, "patch_size": 4, "num_classes": 7, "attn_layers": stack, **rest})


def build_seq2seq(causal: bool, row: dict[str, dict[str, Any]]) -> XTransformer:
    torch.manual_seed(0)
    small = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in (("depth", 1), ("heads", 4))}
    small |= {"enc_num_tokens": 31, "dec_num_tokens": 31, "enc_max_seq_len": 23, "dec_max_seq_len": 23}
    return XTransformer(dim=24, **small, **merged(row))


def build_model(causal: bool, row: dict[str, dict[str, Any]]) -> TransformerWrapper:
    torch.manual_seed(0)
    small = {"attn_dim_head": 6, "flash_group_size": 5, "flash_query_key_dim": 10}
    stack = (Decoder if causal else Encoder)(dim=24, depth=1, heads=4, layers="flash attn ff", **small, **row["stack"])
    rest = merged({name: choice for name, choice in row.items() if name != "stack"})
    return TransformerWrapper(num_tokens=31, max_seq_len=67, attn_layers=stack, **rest)


def refusal(build, causal: bool, row: dict[str, dict[str, Any]]) -> str:
    """Why a combination is refused, or ''."""
    try:
        with torch.device("meta"):
            build(causal, row)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def culprits(build, causal: bool, row: dict, defaults: dict) -> tuple[tuple[str, int], ...]:
    """The least part of a refused combination that is refused beside defaults."""
    kept = dict(row)
    for name in row:
        trial = {**kept, name: defaults[name]}
        if refusal(build, causal, trial):
            kept = trial
    return tuple((name, id(kept[name])) for name in row if kept[name] is not defaults[name])


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


def cover(what: str, causal: bool) -> dict[str, list[list[int]]]:
    """Accepted and refused combinations, as indices of choices, that cover every pair that is not refused."""
    domain, build = domain_of(what)
    names = list(domain)
    defaults = {name: options[0] for name, options in domain.items()}
    accepted: list[tuple[int, ...]] = []
    refused: list[tuple[int, ...]] = []
    barred: set[tuple[tuple[str, int], ...]] = set()
    for at, name in enumerate(names):
        for i, choice in enumerate(domain[name]):
            if refusal(build, causal, {**defaults, name: choice}):
                refused.append(tuple(i if j == at else 0 for j in range(len(names))))
                barred.add(((name, id(choice)),))

    def allowed(values) -> bool:
        present = {(name, id(domain[name][i])) for name, i in zip(names, values, strict=False)}
        return not any(present.issuperset(blame) for blame in barred)

    # Each round bars the pairs that turned out to be refused, and covers what the refused combinations left open.
    while True:
        live = [[i for i, c in enumerate(domain[n]) if ((n, id(c)),) not in barred] for n in names]
        found = [tuple(row) for row in AllPairs(live, filter_func=allowed, previously_tested=accepted)]
        fresh = [row for row in found if refusal(build, causal, as_row(what, row))]
        accepted += [row for row in found if row not in fresh]
        refused += fresh
        barred.update(culprits(build, causal, as_row(what, row), defaults) for row in fresh)
        if not fresh:
            break
    # What the filter kept from being joined with anything stands beside defaults.
    for pair in itertools.combinations(range(len(names)), 2):
        for values in itertools.product(*(range(len(domain[names[i]])) for i in pair)):
            row = [0] * len(names)
            for i, value in zip(pair, values, strict=True):
                row[i] = value
            held = any(all(r[i] == v for i, v in zip(pair, values, strict=True)) for r in accepted)
            if not held and not refusal(build, causal, as_row(what, row)):
                accepted.append(tuple(row))
    return {"accepted": [list(r) for r in accepted], "refused": [list(r) for r in refused]}


def as_row(what: str, indices) -> dict[str, dict[str, Any]]:
    """A combination from the indices of its choices."""
    domain, _ = domain_of(what)
    return {name: domain[name][i] for name, i in zip(domain, indices, strict=True)}


def pairs(what: str, rows) -> set:
    """The pairs of choices that some combination holds."""
    names = list(domain_of(what)[0])
    return {((names[i], r[i]), (names[j], r[j])) for r in rows for i in range(len(names)) for j in range(i)}


def stored() -> dict[str, dict[str, list[list[int]]]]:
    """The covering sets as they were written by `python tests/matrix.py` (a minute's work)."""
    return json.loads(FILE.read_text())


if __name__ == "__main__":
    kinds = {
        f"{what} {'causal' if causal else 'bidirectional'}": cover(what, causal)
        for what, (_, _, directions) in DOMAINS.items()
        for causal in directions
    }
    FILE.write_text(
        "{\n" + ",\n".join(f"{json.dumps(kind)}: {json.dumps(rows)}" for kind, rows in kinds.items()) + "\n}\n"
    )
    for kind, rows in kinds.items():
        print(f"{kind}: {len(rows['accepted'])} accepted, {len(rows['refused'])} refused")
