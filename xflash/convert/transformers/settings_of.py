"""The settings that a config of transformers would have, of a model's flags: under all names that its configs know."""

from collections.abc import Iterator
from typing import Any

from .family import families
from .llama import ACTIVATIONS
from .settings import Settings

__all__ = ["settings_of"]

# The first name of each activation there.
NAMES: dict[str, str] = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}


def settings_of(model: Any) -> Iterator[dict[str, Any]]:
    """The settings of each kind of config that might say the model, those that a kind knows."""
    known = all_settings(model)
    for kind, family in families.items():
        probe = Settings({**known, "model_type": kind})
        try:
            family.flags(probe)
        except (ValueError, ZeroDivisionError):
            continue
        taken = {*probe.taken, "pad_token_id"}
        yield {"model_type": kind, **{name: value for name, value in known.items() if name in taken}}


def all_settings(model: Any) -> dict[str, Any]:
    """Everything that is said of the model by one name or another."""
    stack = model.attn_layers.to_config()
    held = [block for branch in model.attn_layers.branches for block in getattr(branch.block, "blocks", [branch.block])]
    attention = [block for block in held if hasattr(block, "kv_heads")]
    dense = [block for block in held if hasattr(block, "inner")]
    experts = [block for block in held if hasattr(block, "router")]
    said = around(model, stack)
    if attention:
        said |= of_attention(attention) | {"rope_parameters": rope_of(stack)}
        new = said["num_ln_in_parallel_attn"] == 2 or attention[0].kv_heads not in (1, attention[0].heads)
        said["new_decoder_architecture"] = said["parallel_attn"] and new
    if dense:
        said |= named(dense[0].inner, "intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim")
    if experts:
        kinds = [hasattr(block, "router") for block in held if block in dense or block in experts]
        dense_layers = [layer for layer, sparse in enumerate(kinds) if not sparse]
        said |= of_experts(experts[0], said) | {"mlp_only_layers": dense_layers}
    for block in (dense + experts)[:1]:
        names = ("hidden_act", "activation_function", "activation", "hidden_activation")
        said |= named(NAMES.get(block.config.activation, block.config.activation), *names)
        said["mlp_bias"] = not block.config.no_bias
    return said


def named(value: Any, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names, value)


def around(model: Any, stack: dict[str, Any]) -> dict[str, Any]:
    """What is said of the whole: sizes, norms, embeddings and head."""
    parallel = any(hasattr(branch.block, "blocks") for branch in model.attn_layers.branches)
    own = any(hasattr(branch.before, "shared") for branch in model.attn_layers.branches)
    return {
        **named(model.dim, "hidden_size", "n_embd"),
        "word_embed_proj_dim": model.arguments["emb_dim"] or model.dim,
        **named(stack.get("norm_eps"), "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
        **named(model.max_seq_len, "max_position_embeddings", "n_positions"),
        **named(parallel, "use_parallel_residual", "parallel_attn"),
        "num_ln_in_parallel_attn": 2 if own else 1,
        "alibi": "alibi_slope_scale" in stack,
        "do_layer_norm_before": stack["norm_place"] == "pre",
        "vocab_size": model.num_tokens,
        "tie_word_embeddings": model.tie_embedding,
        "pad_token_id": None,
        "embd_pdrop": model.embedding.emb_dropout,
        "final_logit_softcapping": model.logits_softclamp,
    }


def of_attention(blocks: list[Any]) -> dict[str, Any]:
    first, windows = blocks[0], [block.config.window for block in blocks]
    config, score = first.config, first.config.score_scale
    softclamp = config.scores == "softclamp" or tuple(config.scores or ()) == ("softclamp",)
    return {
        **named(len(blocks), "num_hidden_layers", "n_layer"),
        **named(first.heads, "num_attention_heads", "n_head"),
        **named(first.kv_heads, "num_key_value_heads", "num_kv_heads"),
        **named(config.dropout, "attention_dropout", "attn_pdrop"),
        **named(config.out_bias, "attention_bias", "bias", "enable_bias"),
        "head_dim": config.dim_head,
        "multi_query": first.kv_heads == 1,
        "sliding_window": next((window for window in windows if window), None),
        "use_sliding_window": any(windows),
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
        "no_rope_layers": [int(block.site.pos is None) for block in blocks],
        "query_pre_attn_scalar": None if score is None else whole(score**-2),
        "attn_logit_softcapping": first.reader.steps["softclamp"].config.value if softclamp else None,
    }


def whole(value: float) -> float:
    """A number as an integer, where it is one but for what was rounded."""
    return round(value) if abs(value - round(value)) < 1e-9 * value else value


def of_experts(block: Any, said: dict[str, Any]) -> dict[str, Any]:
    width = block.experts.to_out.shape[-1]
    return {
        **named(block.config.experts, "num_local_experts", "num_experts"),
        "num_experts_per_tok": block.config.top_k,
        "moe_intermediate_size": width,
        "intermediate_size": said.get("intermediate_size", width),
        "norm_topk_prob": block.normalize,
        "swiglu_limit": block.config.glu_limit,
    }


def rope_of(stack: dict[str, Any]) -> dict[str, Any] | None:
    """`rope_parameters`, where there are rotary positions."""
    if "rotary_base" not in stack:
        return None
    said: dict[str, Any] = {"rope_theta": stack["rotary_base"]}
    length = stack["rotary_scaling_length"]
    if width := stack["rotary_emb_dim"]:
        said["partial_rotary_factor"] = width / stack["attn_dim_head"]
    kind, turns = stack["rotary_scaling"], stack["rotary_scaling_turns"]
    if kind is None:
        factor = stack["rotary_interpolation_factor"]
        return said | ({"rope_type": "default"} if factor == 1 else {"rope_type": "linear", "factor": factor})
    said |= {"rope_type": kind, "factor": stack["rotary_scaling_factor"]}
    if kind in ("llama3", "yarn"):
        said["original_max_position_embeddings"] = length
        names = ("low_freq_factor", "high_freq_factor") if kind == "llama3" else ("beta_slow", "beta_fast")
        said |= dict(zip(names, turns or (), strict=False))
    if kind == "yarn":
        said |= {"truncate": stack["rotary_scaling_truncate"], "attention_factor": stack["rotary_scaling_attention"]}
    return said
