"""ModernBERT (https://arxiv.org/abs/2412.13663)."""

from typing import Any

from .family import Family, Flags, encoder, families
from .layers import attention, layered, said_types
from .llama import ACTIVATIONS
from .rope import two_ropes
from .settings import Settings

__all__ = ["modernbert"]

WEIGHTS = """
    embeddings.tok_embeddings.weight    embedding.token_emb.weight
    embeddings.norm.weight              embedding.post_emb_norm.gain
    embeddings.norm.bias                embedding.post_emb_norm.bias
    layers.{i}.attn_norm.weight         attn.before.gain
    layers.{i}.attn_norm.bias           attn.before.bias
    layers.{i}.attn.Wqkv.weight         attn.block.query_key_value.weight[q k v]
    layers.{i}.attn.Wqkv.bias           attn.block.query_key_value.bias[q k v]
    layers.{i}.attn.Wo.weight           attn.block.to_out.weight
    layers.{i}.attn.Wo.bias             attn.block.to_out.bias
    layers.{i}.mlp_norm.weight          ff.before.gain
    layers.{i}.mlp_norm.bias            ff.before.bias
    layers.{i}.mlp.Wi.weight            ff.block.to_inner.weight[gate up]
    layers.{i}.mlp.Wi.bias              ff.block.to_inner.bias[gate up]
    layers.{i}.mlp.Wo.weight            ff.block.to_out.weight
    layers.{i}.mlp.Wo.bias              ff.block.to_out.bias
    final_norm.weight                   attn_layers.final_norm.gain
    final_norm.bias                     attn_layers.final_norm.bias
    head.dense.weight                   transform.dense.weight
    head.dense.bias                     transform.dense.bias
    head.norm.weight                    transform.norm.gain
    head.norm.bias                      transform.norm.bias
    decoder.bias                        tied_bias
"""


def modernbert(settings: Settings) -> Flags:
    """Flags of an encoder with windows in most layers, and no norm in front of the first."""
    dim, heads, eps = settings.need("hidden_size"), settings.need("num_attention_heads"), settings("norm_eps", 1e-5)
    has_bias, norm_bias = settings("attention_bias", False), settings("norm_bias", False)
    bases = (settings("global_rope_theta", 160000.0), settings("local_rope_theta", 10000.0))
    # transformers gives what an old file says to layers of both kinds.
    settings.only("rope_scaling", None)
    wide, near = two_ropes(settings, dim // heads, bases)
    stack: dict[str, Any] = {
        "dim": dim,
        "heads": heads,
        **layered(layers(settings, near)),
        "norm": "layernorm",
        "norm_bias": norm_bias,
        "norm_eps": eps,
        "attn_dim_head": dim // heads,
        "attn_qkv_bias": has_bias,
        "attn_out_bias": has_bias,
        "attn_dropout": settings("attention_dropout", 0.0),
        "ff_dim": settings.need("intermediate_size"),
        "ff_activation": settings.among("hidden_activation", ACTIVATIONS, "gelu"),
        "ff_glu": True,
        "ff_no_bias": not settings("mlp_bias", False),
        "ff_dropout": settings("mlp_dropout", 0.0),
        **wide,
    }
    return Flags(stack, around(settings, eps, norm_bias))


def layers(settings: Settings, near: dict[str, Any]) -> list[str]:
    depth, every = settings.need("num_hidden_layers"), settings("global_attn_every_n_layers", 3)
    types = said_types(settings, ["sliding_attention" if i % every else "full_attention" for i in range(depth)])
    window = {"window": settings("local_attention", 128) // 2 + 1, **near}
    own = [window if kind == "sliding_attention" else {} for kind in types]
    return [attention(**flags, norm=None if layer else "none") + " ff" for layer, flags in enumerate(own)]


def around(settings: Settings, eps: float, norm_bias: bool) -> dict[str, Any]:
    """What stands around the stack."""
    settings.only("tie_word_embeddings", True)
    settings.only("classifier_bias", norm_bias)
    settings.only("sparse_prediction", False)
    # Of how weights begin, of other heads, and of which tokens a loss leaves out.
    settings.without_effect("initializer_cutoff_factor", "classifier_pooling", "classifier_dropout", "cls_token_id")
    settings.without_effect("deterministic_flash_attn", "sparse_pred_ignore_index", "reference_compile")
    settings.without_effect("position_embedding_type", "embedding_bias", "repad_logits_with_grad", "layer_norm_eps")
    return {
        "num_tokens": settings.need("vocab_size"),
        "max_seq_len": settings("max_position_embeddings"),
        "use_abs_pos_emb": False,
        "post_emb_norm": True,
        "post_emb_norm_eps": eps,
        "post_emb_norm_bias": norm_bias,
        "emb_dropout": settings("embedding_dropout", 0.0),
        "tie_embedding": True,
        "logits_bias": settings("decoder_bias", True),
        "head_transform": settings.among("classifier_activation", ACTIVATIONS, "gelu"),
        "head_transform_eps": eps,
        "head_transform_bias": norm_bias,
    }


NO_HEAD: dict[str, Any] = {"return_only_embed": True, "tie_embedding": False, "logits_bias": False}
NO_HEAD |= {"head_transform": None, "head_transform_eps": 1e-5, "head_transform_bias": True}
families["modernbert"] = Family(
    modernbert,
    WEIGHTS,
    build=encoder,
    heads={"ForMaskedLM": {}, "Model": NO_HEAD},
    tied={"decoder.weight": "embeddings.tok_embeddings.weight"},
)
