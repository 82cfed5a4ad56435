"""The flags of whole models, for the covering set of tests/matrix.py."""

from typing import Any

import torch
from covering import merged

from xflash import Decoder, Encoder, TransformerWrapper, ViTransformerWrapper, XTransformer

WRAPPER: dict[str, list[dict[str, Any]]] = {
    "stack": [{}, {"pos": "rotary"}, {"num_memory_tokens": 3}, {"shift_tokens": 1}],
    "use_abs_pos_emb": [{}, {"use_abs_pos_emb": True}, {"use_abs_pos_emb": False}],
    "scaled_sinu_pos_emb": [{}, {"scaled_sinu_pos_emb": True}],
    "l2norm_embed": [{}, {"l2norm_embed": True}],
    "post_emb_norm": [
        {},
        {"post_emb_norm": True},
        {"post_emb_norm": True, "post_emb_norm_eps": 1e-3, "post_emb_norm_bias": True},
    ],
    "emb_scale": [{}, {"emb_scale": 3.0}],
    "pos_emb_offset": [{}, {"pos_emb_offset": 2}],
    "emb_dropout": [{}, {"emb_dropout": 0.1}],
    "logits_softclamp": [{}, {"logits_softclamp": 1.5}],
    "head_transform": [
        {},
        {"head_transform": "gelu"},
        {"head_transform": "relu", "head_transform_eps": 1e-3, "head_transform_bias": False},
    ],
    "head": [
        {},
        {"tie_embedding": True},
        {"tie_embedding": True, "tie_embedding_scale": 0.5},
        {"logits_bias": True},
        {"tie_embedding": True, "logits_bias": True},
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
