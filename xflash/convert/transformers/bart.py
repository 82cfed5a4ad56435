"""BART (https://arxiv.org/abs/1910.13461)."""

from typing import Any

from .family import Family, Flags, both, families
from .llama import ACTIVATIONS
from .settings import Settings

__all__ = ["bart"]

ATTENTION = """
    {side}.layers.{i}.THEIRS.q_proj.weight         OURS.block.query_key_value.weight[q]
    {side}.layers.{i}.THEIRS.q_proj.bias           OURS.block.query_key_value.bias[q]
    {side}.layers.{i}.THEIRS.k_proj.weight         OURS.block.query_key_value.weight[k]
    {side}.layers.{i}.THEIRS.k_proj.bias           OURS.block.query_key_value.bias[k]
    {side}.layers.{i}.THEIRS.v_proj.weight         OURS.block.query_key_value.weight[v]
    {side}.layers.{i}.THEIRS.v_proj.bias           OURS.block.query_key_value.bias[v]
    {side}.layers.{i}.THEIRS.q_proj.weight         OURS.block.to_q.weight
    {side}.layers.{i}.THEIRS.q_proj.bias           OURS.block.to_q.bias
    {side}.layers.{i}.THEIRS.k_proj.weight         OURS.block.key_value.weight[key]
    {side}.layers.{i}.THEIRS.k_proj.bias           OURS.block.key_value.bias[key]
    {side}.layers.{i}.THEIRS.v_proj.weight         OURS.block.key_value.weight[value]
    {side}.layers.{i}.THEIRS.v_proj.bias           OURS.block.key_value.bias[value]
    {side}.layers.{i}.THEIRS.out_proj.weight       OURS.block.to_out.weight
    {side}.layers.{i}.THEIRS.out_proj.bias         OURS.block.to_out.bias
    {side}.layers.{i}.THEIRS_layer_norm.weight     OURS.final.gain
    {side}.layers.{i}.THEIRS_layer_norm.bias       OURS.final.bias
"""
SIDE = """
    {side}.embed_positions.weight                  embedding.pos_emb.weight
    {side}.layernorm_embedding.weight              embedding.post_emb_norm.gain
    {side}.layernorm_embedding.bias                embedding.post_emb_norm.bias
    {side}.layers.{i}.fc1.weight                   ff.block.to_inner.weight
    {side}.layers.{i}.fc1.bias                     ff.block.to_inner.bias
    {side}.layers.{i}.fc2.weight                   ff.block.to_out.weight
    {side}.layers.{i}.fc2.bias                     ff.block.to_out.bias
    {side}.layers.{i}.final_layer_norm.weight      ff.final.gain
    {side}.layers.{i}.final_layer_norm.bias        ff.final.bias
"""


def table(side: str, attention: dict[str, str]) -> str:
    """The names of one side, and of its kinds of attention."""
    parts = [ATTENTION.replace("THEIRS", theirs).replace("OURS", ours) for theirs, ours in attention.items()]
    return "".join([SIDE, *parts]).replace("{side}", side)


WEIGHTS = {
    "encoder": table("encoder", {"self_attn": "attn"}) + "\nshared.weight embedding.token_emb.weight",
    "decoder.net": table("decoder", {"self_attn": "attn", "encoder_attn": "cross_attn"})
    + "\nfinal_logits_bias tied_bias[1]",
}


def bart(settings: Settings) -> Flags:
    """Flags of an encoder and a decoder with learned positions and norms behind the sums."""
    for name, value in {"is_encoder_decoder": True, "tie_word_embeddings": True, **OLD}.items():
        settings.only(name, value)
    # Of other heads, and of training alone: of whole layers, and how weights begin.
    settings.without_effect(
        "encoder_layerdrop", "decoder_layerdrop", "classifier_dropout", "classif_dropout", "init_std"
    )
    settings.without_effect("num_hidden_layers", "force_bos_token_to_be_generated", "save_step")
    common = same(settings)
    flags = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in common.items()}
    for side, name in (("enc", "encoder"), ("dec", "decoder")):
        heads = settings.need(f"{name}_attention_heads")
        flags |= {f"{side}_depth": settings.need(f"{name}_layers"), f"{side}_heads": heads}
        flags |= {f"{side}_attn_dim_head": settings.need("d_model") // heads}
        flags |= {f"{side}_ff_dim": settings.need(f"{name}_ffn_dim")}
    flags |= {
        "dim": settings.need("d_model"),
        "tie_token_emb": True,
        "dec_tie_embedding": True,
        "dec_logits_bias": True,
    }
    return Flags({**flags, "enc_layers": "attn ff", "dec_layers": "attn cross_attn ff"}, {})


# Settings of files of old, which all have these.
OLD: dict[str, Any] = {
    "is_decoder": False,
    "normalize_before": False,
    "add_final_layer_norm": False,
    "normalize_embedding": True,
}
OLD |= {"static_position_embeddings": False, "add_bias_logits": False, "extra_pos_embeddings": 2}


def same(settings: Settings) -> dict[str, Any]:
    """What both sides have."""
    return {
        "num_tokens": settings.need("vocab_size"),
        "max_seq_len": settings.need("max_position_embeddings"),
        "pos_emb_offset": 2,
        "emb_scale": settings.need("d_model") ** 0.5 if settings("scale_embedding", False) else None,
        "emb_dropout": settings("dropout", 0.1),
        "post_emb_norm": True,
        "post_emb_norm_bias": True,
        "norm": "layernorm",
        "norm_bias": True,
        "norm_place": "post",
        "attn_qkv_bias": True,
        "attn_out_bias": True,
        "attn_dropout": settings("attention_dropout", 0.0),
        "ff_activation": settings.among("activation_function", ACTIVATIONS, "gelu"),
        "ff_dropout": settings("activation_dropout", 0.0),
    }


SHARED = "shared.weight"
families["bart"] = Family(
    bart,
    WEIGHTS,
    build=both,
    # Without a head, as base and large are published, it is the token embedding.
    heads={"ForConditionalGeneration": {}, "Model": {"dec_logits_bias": False}},
    tied={"lm_head.weight": SHARED, "encoder.embed_tokens.weight": SHARED, "decoder.embed_tokens.weight": SHARED},
)
