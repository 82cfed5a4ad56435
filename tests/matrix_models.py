"""The flags of whole models, for the covering set of tests/matrix.py."""

from typing import Any

import torch
from covering import merged
from matrix_values import Axes, axes

from xflash import (
    ContinuousTransformerWrapper,
    Decoder,
    Encoder,
    MultiInputTransformerWrapper,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
    XValTransformerWrapper,
)

WRAPPER: Axes = {
    "stack": [{}, {"pos": "rotary"}, {"num_memory_tokens": 3}, {"shift_tokens": 1}],
    **axes(TransformerWrapper.Config),
}
SMALL_STACKS: list[dict[str, Any]] = [{}, {"pos": "rotary"}, {"shift_tokens": 1}]
AROUND = (
    "emb_dim",
    "post_emb_norm",
    "attn_pool",
    "num_memory_tokens",
    "max_mem_len",
    "logits_softclamp",
    "tie_embedding",
)
# What further models have of their own, beside some of what TransformerWrapper has too.
FRAMES: Axes = {
    "stack": SMALL_STACKS,
    **axes(ContinuousTransformerWrapper.Config, wanted=("dim_in", "dim_out", *AROUND)),
}
NUMBERS: Axes = {
    "stack": SMALL_STACKS,
    **axes(XValTransformerWrapper.Config, wanted=("numerical_token_id", "logits_bias", *AROUND)),
}
SEVERAL: Axes = {
    "stack": SMALL_STACKS,
    **axes(MultiInputTransformerWrapper.Config, wanted=("num_tokens", "return_only_embed", *AROUND)),
}
VIT: Axes = {
    "layout": [
        {"layers": "attn ff", "attn_dim_head": 6},
        {"layers": "flash gau", "flash_group_size": 5, "gau_query_key_dim": 8, "flash_query_key_dim": 8},
        {"layers": "attn gau", "attn_dim_head": 6, "num_memory_tokens": 2, "gau_query_key_dim": 8},
        {"layers": "attn ff", "attn_dim_head": 6, "pos": "rotary", "shift_tokens": 1},
        {"layers": "flash attn+ff", "flash_group_size": 5, "flash_query_key_dim": 8, "attn_dim_head": 6}
        | {"pos": "rotary2d"},
    ],
    **axes(ViTransformerWrapper.Config),
}


# The flags of each side have their kind; here the two sides meet.
SEQ2SEQ: Axes = {
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
    "enc_memory": [{}, {"enc_num_memory_tokens": 2}],
    "dec_memory": [{}, {"dec_num_memory_tokens": 2}],
    "embeddings": [{}, {"enc_emb_dim": 20, "dec_emb_dim": 20}, {"enc_post_emb_norm": True, "dec_tie_embedding": True}],
    **axes(XTransformer.Config),
}


def stack_of(causal: bool, flags: dict[str, Any]) -> Decoder | Encoder:
    return (Decoder if causal else Encoder)(dim=24, depth=1, heads=2, attn_dim_head=6, **flags)


def build_frames(causal: bool, row: dict[str, dict[str, Any]]) -> ContinuousTransformerWrapper:
    torch.manual_seed(0)
    rest = merged({name: choice for name, choice in row.items() if name != "stack"})
    return ContinuousTransformerWrapper(max_seq_len=67, attn_layers=stack_of(causal, row["stack"]), **rest)


def build_numbers(causal: bool, row: dict[str, dict[str, Any]]) -> XValTransformerWrapper:
    torch.manual_seed(0)
    rest = merged({name: choice for name, choice in row.items() if name != "stack"})
    sizes = {"num_tokens": 31, "numerical_token_id": 3, "max_seq_len": 67}
    return XValTransformerWrapper(**sizes, attn_layers=stack_of(causal, row["stack"]), **rest)


def build_several(causal: bool, row: dict[str, dict[str, Any]]) -> MultiInputTransformerWrapper:
    torch.manual_seed(0)
    rest = merged({name: choice for name, choice in row.items() if name != "stack"})
    sizes = {"num_tokens": {"note": 31, "length": 5}, "max_seq_len": 67}
    return MultiInputTransformerWrapper(**sizes, attn_layers=stack_of(causal, row["stack"]), **rest)


def build_vit(causal: bool, row: dict[str, dict[str, Any]]) -> ViTransformerWrapper:
    torch.manual_seed(0)
    stack = (Decoder if causal else Encoder)(dim=24, depth=1, heads=4, **row["layout"])
    rest = merged({name: choice for name, choice in row.items() if name != "layout"})
    return ViTransformerWrapper(**{"image_size": 12, "patch_size": 4, "attn_layers": stack, **rest})


def build_seq2seq(causal: bool, row: dict[str, dict[str, Any]]) -> XTransformer:
    torch.manual_seed(0)
    small = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in (("depth", 1), ("heads", 4))}
    small |= {"enc_num_tokens": 31, "dec_num_tokens": 31, "enc_max_seq_len": 23, "dec_max_seq_len": 23}
    return XTransformer(dim=24, **small, **merged(row))


def build_model(causal: bool, row: dict[str, dict[str, Any]]) -> TransformerWrapper:
    torch.manual_seed(0)
    small = {"attn_dim_head": 6, "flash_group_size": 5, "flash_query_key_dim": 10}
    rest = merged({name: choice for name, choice in row.items() if name != "stack"})
    # Memories move between two layers that have one.
    small |= {"layers": "flash attn ff attn" if rest.get("shift_mem_down") else "flash attn ff"}
    stack = (Decoder if causal else Encoder)(dim=24, depth=1, heads=4, **small, **row["stack"])
    return TransformerWrapper(num_tokens=31, max_seq_len=67, attn_layers=stack, **rest)
