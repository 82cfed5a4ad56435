"""T5 (https://arxiv.org/abs/1910.10683), 1.1 and Flan-T5 (https://arxiv.org/abs/2210.11416)."""

from typing import Any

from .family import Family, Flags, both, families
from .llama import ACTIVATIONS
from .settings import Settings

__all__ = ["t5"]

SIDE = """
    block.0.layer.0.SelfAttention.relative_attention_bias.weight  attn_layers.positions.rel_pos.tables.*.weight[T]
    block.{i}.layer.0.SelfAttention.q.weight      attn.block.query_key_value.weight[q]
    block.{i}.layer.0.SelfAttention.k.weight      attn.block.query_key_value.weight[k]
    block.{i}.layer.0.SelfAttention.v.weight      attn.block.query_key_value.weight[v]
    block.{i}.layer.0.SelfAttention.o.weight      attn.block.to_out.weight
    block.{i}.layer.0.layer_norm.weight           attn.before.gain
    block.{i}.layer.1.EncDecAttention.q.weight    cross_attn.block.to_q.weight
    block.{i}.layer.1.EncDecAttention.k.weight    cross_attn.block.key_value.weight[key]
    block.{i}.layer.1.EncDecAttention.v.weight    cross_attn.block.key_value.weight[value]
    block.{i}.layer.1.EncDecAttention.o.weight    cross_attn.block.to_out.weight
    block.{i}.layer.LAST.DenseReluDense.wi.weight    ff.block.to_inner.weight
    block.{i}.layer.LAST.DenseReluDense.wi_1.weight  ff.block.to_inner.weight[up]
    block.{i}.layer.LAST.DenseReluDense.wi_0.weight  ff.block.to_inner.weight[gate]
    block.{i}.layer.LAST.DenseReluDense.wo.weight    ff.block.to_out.weight
    block.{i}.layer.LAST.layer_norm.weight           ff.before.gain
    final_layer_norm.weight                       attn_layers.final_norm.gain
"""


def side(name: str, last: int) -> str:
    """The table of one side; `last`: the place of the feed-forward block in a layer."""
    lines = (line.strip() for line in SIDE.replace("LAST", str(last)).split("\n") if line.strip())
    kept = (line for line in lines if last == 2 or "EncDec" not in line)
    kept = (line for line in kept if last == 1 or "layer.1.layer_norm" not in line)
    norm = "block.{i}.layer.1.layer_norm.weight cross_attn.before.gain" if last == 2 else ""
    return "\n".join(f"{name}.{line}" for line in (*kept, norm) if line)


WEIGHTS = {
    "encoder": side("encoder", 1) + "\nshared.weight embedding.token_emb.weight",
    "decoder.net": side("decoder", 2) + "\nlm_head.weight to_logits.weight",
}


def t5(settings: Settings) -> Flags:
    """Flags of an encoder and a decoder with biases by distance, whose scores are not scaled."""
    settings.only("is_encoder_decoder", True)
    settings.only("is_decoder", False)
    settings.without_effect("num_hidden_layers", "n_positions", "classifier_dropout", "d_model")
    depth = settings.need("num_layers")
    one = same(settings)
    flags = {f"{name}_{flag}": value for name in ("enc", "dec") for flag, value in one.items()}
    flags |= {"enc_layers": "attn ff", "enc_depth": depth, "dec_layers": "attn cross_attn ff"}
    flags |= {"dim": settings.need("d_model"), "tie_token_emb": True}
    flags["dec_depth"] = settings("num_decoder_layers", depth)
    scaled = settings.said("scale_decoder_outputs", settings("tie_word_embeddings", True))
    settings.without_effect("tie_word_embeddings")
    tied = scaled or not settings.has_head
    flags |= {"dec_tie_embedding": tied} | ({"dec_tie_embedding_scale": flags["dim"] ** -0.5} if scaled else {})
    return Flags(flags, {})


def same(settings: Settings) -> dict[str, Any]:
    """What both sides have."""
    gate, _, activation = settings("feed_forward_proj", "relu").rpartition("-")
    if gate not in ("", "gated"):
        raise settings.error("feed_forward_proj", settings("feed_forward_proj"), "known: ACTIVATION, gated-ACTIVATION")
    activation = "gelu_new" if (gate, activation) == ("gated", "gelu") else activation
    if activation not in ACTIVATIONS:
        raise settings.error("feed_forward_proj", settings("feed_forward_proj"), f"known are {', '.join(ACTIVATIONS)}")
    settings.without_effect("dense_act_fn", "is_gated_act")
    dropout = settings("dropout_rate", 0.1)
    return {
        "num_tokens": settings.need("vocab_size"),
        "heads": settings.need("num_heads"),
        "norm": "rmsnorm",
        "norm_eps": settings("layer_norm_epsilon", 1e-6),
        "pos": "rel_pos",
        "rel_pos_num_buckets": settings("relative_attention_num_buckets", 32),
        "rel_pos_max_distance": settings("relative_attention_max_distance", 128),
        "attn_dim_head": settings("d_kv", 64),
        "attn_score_scale": 1.0,
        "attn_dropout": dropout,
        "emb_dropout": dropout,
        "ff_dim": settings.need("d_ff"),
        "ff_activation": ACTIVATIONS[activation],
        "ff_glu": gate == "gated",
        "ff_no_bias": True,
        "ff_dropout": dropout,
    }


SHARED = "shared.weight"
families["t5"] = Family(
    t5,
    WEIGHTS,
    build=both,
    # The second is a name of old.
    heads={"ForConditionalGeneration": {}, "WithLMHeadModel": {}},
    prefix="",
    # Of old files: nobody reads it.
    beside=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    tied={"lm_head.weight": SHARED, "encoder.embed_tokens.weight": SHARED, "decoder.embed_tokens.weight": SHARED},
)
