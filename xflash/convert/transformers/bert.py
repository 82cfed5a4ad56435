"""BERT (https://arxiv.org/abs/1810.04805)."""

from typing import Any

from .family import Family, Flags, encoder, families
from .llama import ACTIVATIONS
from .settings import Settings

__all__ = ["BESIDE", "HEADS", "LAYERS", "WORDS", "bert"]

LAYERS = """
    embeddings.word_embeddings.weight                      embedding.token_emb.weight
    embeddings.position_embeddings.weight                  embedding.pos_emb.weight
    embeddings.token_type_embeddings.weight                embedding.embeds.token_type_embed.weight
    embeddings.LayerNorm.weight                            embedding.post_emb_norm.gain
    embeddings.LayerNorm.bias                              embedding.post_emb_norm.bias
    encoder.layer.{i}.attention.self.query.weight          attn.block.query_key_value.weight[q]
    encoder.layer.{i}.attention.self.query.bias            attn.block.query_key_value.bias[q]
    encoder.layer.{i}.attention.self.key.weight            attn.block.query_key_value.weight[k]
    encoder.layer.{i}.attention.self.key.bias              attn.block.query_key_value.bias[k]
    encoder.layer.{i}.attention.self.value.weight          attn.block.query_key_value.weight[v]
    encoder.layer.{i}.attention.self.value.bias            attn.block.query_key_value.bias[v]
    encoder.layer.{i}.attention.output.dense.weight        attn.block.to_out.weight
    encoder.layer.{i}.attention.output.dense.bias          attn.block.to_out.bias
    encoder.layer.{i}.attention.output.LayerNorm.weight    attn.final.gain
    encoder.layer.{i}.attention.output.LayerNorm.bias      attn.final.bias
    encoder.layer.{i}.intermediate.dense.weight            ff.block.to_inner.weight
    encoder.layer.{i}.intermediate.dense.bias              ff.block.to_inner.bias
    encoder.layer.{i}.output.dense.weight                  ff.block.to_out.weight
    encoder.layer.{i}.output.dense.bias                    ff.block.to_out.bias
    encoder.layer.{i}.output.LayerNorm.weight              ff.final.gain
    encoder.layer.{i}.output.LayerNorm.bias                ff.final.bias
"""
OWN = """
    cls.predictions.transform.dense.weight                 transform.dense.weight
    cls.predictions.transform.dense.bias                   transform.dense.bias
    cls.predictions.transform.LayerNorm.weight             transform.norm.gain
    cls.predictions.transform.LayerNorm.bias               transform.norm.bias
    cls.predictions.bias                                   tied_bias
"""
WORDS = "embeddings.word_embeddings.weight"


def bert(settings: Settings) -> Flags:
    """Flags of an encoder with norms behind the sums; calls give `embed_ids={'token_type': ids}`, zeros too."""
    dim, heads, eps = (
        settings.need("hidden_size"),
        settings.need("num_attention_heads"),
        settings("layer_norm_eps", 1e-12),
    )
    for name in ("is_decoder", "add_cross_attention"):
        settings.only(name, False)
    settings.only("tie_word_embeddings", True)
    settings.only("position_embedding_type", "absolute")
    stack: dict[str, Any] = {
        "dim": dim,
        "depth": settings.need("num_hidden_layers"),
        "heads": heads,
        "layers": "attn ff",
        "norm": "layernorm",
        "norm_bias": True,
        "norm_eps": eps,
        "norm_place": "post",
        "attn_dim_head": dim // heads,
        "attn_qkv_bias": True,
        "attn_out_bias": True,
        "attn_dropout": settings("attention_probs_dropout_prob", 0.1),
        "ff_dim": settings.need("intermediate_size"),
        "ff_activation": settings.among("hidden_act", ACTIVATIONS, "gelu"),
    }
    # Of a head for another task, and of the first models' pooler.
    settings.without_effect("classifier_dropout", "directionality", *(f"pooler_{name}" for name in POOLER))
    embedding = {
        "num_tokens": settings.need("vocab_size"),
        "max_seq_len": settings.need("max_position_embeddings"),
        "embed_num_tokens": {"token_type": settings("type_vocab_size", 2)},
        "post_emb_norm": True,
        "post_emb_norm_eps": eps,
        "post_emb_norm_bias": True,
        # Dropout of the updates is left out; it acts in training alone.
        "emb_dropout": settings("hidden_dropout_prob", 0.1),
    }
    head = {"tie_embedding": True, "logits_bias": True, "head_transform": stack["ff_activation"]}
    return Flags(stack, {**embedding, **head, "head_transform_eps": eps})


POOLER = ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head", "type")
NO_HEAD = {"return_only_embed": True, "tie_embedding": False, "logits_bias": False, "head_transform": None}
HEADS = {"ForMaskedLM": {}, "ForPreTraining": {}, "Model": {**NO_HEAD, "head_transform_eps": 1e-5}}
# What these have beside what is read here: of a pooled token, and of other heads.
BESIDE = r"pooler\..*|cls\.seq_relationship\..*"

families["bert"] = Family(
    bert,
    LAYERS + OWN,
    build=encoder,
    heads=HEADS,
    prefix="bert.",
    tied={"cls.predictions.decoder.weight": WORDS, "cls.predictions.decoder.bias": "cls.predictions.bias"},
    beside=BESIDE,
)
