"""What other libraries call an argument, and how it is said here: answers to names that do not exist, no aliases."""

import inspect
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ..base.checks import shown
from ..base.registry import SLIP, closest, part_meant

__all__ = ["ELSEWHERE", "HINTS", "by_name", "meant"]

# Ours: the names for it in transformers, timm, torch.nn, GPT-2's code and others.
NAMES = {
    "dim": "hidden_size d_model embed_dim n_embd hidden_dim model_dim",
    "heads": "num_heads n_heads nhead n_head num_attention_heads",
    "depth": "num_layers n_layers n_layer num_hidden_layers",
    "enc_depth": "num_encoder_layers encoder_layers",
    "dec_depth": "num_decoder_layers decoder_layers",
    "attn_dim_head": "head_dim dim_head head_dims size_per_head",
    "attn_kv_heads": "num_kv_heads num_key_value_heads n_kv_heads kv_heads",
    "attn_dropout": "attention_dropout attention_probs_dropout_prob attn_pdrop attn_drop attn_drop_rate",
    "attn_window": "sliding_window window_size",
    "attn_qkv_bias": "qkv_bias",
    "attn_score_scale": "attention_multiplier attn_scale",
    "attn_flash": "use_flash_attn use_flash_attention flash_attn",
    "ff_dim": "intermediate_size dim_feedforward ffn_dim d_ff n_inner mlp_dim ffn_hidden_size ff_hidden",
    "ff_mult": "mlp_ratio ffn_mult",
    "ff_activation": "hidden_act hidden_activation activation activation_function act_layer",
    "ff_glu": "glu swiglu use_swiglu",
    "moe_experts": "num_experts num_local_experts n_routed_experts",
    "moe_top_k": "num_experts_per_tok num_experts_per_token",
    "shift_tokens": "token_shift",
    "norm_unit_offset": "norm_add_unit_offset",
    "layer_dropout": "drop_path_rate drop_path layerdrop stochastic_depth",
    "rotary_base": "rope_theta rope_base rotary_theta",
    "rotary_emb_dim": "rotary_dim rotary_ndims",
    "norm": "norm_layer normalization",
    "norm_eps": "layer_norm_eps layer_norm_epsilon rms_norm_eps layernorm_eps",
    "causal": "is_causal is_decoder",
    "grad_checkpoint": "gradient_checkpointing activation_checkpointing use_checkpoint grad_checkpointing",
    "logits_softclamp": "final_logit_softcapping",
    "num_tokens": "vocab_size n_vocab vocabulary_size num_embeddings",
    "max_seq_len": "max_position_embeddings n_positions n_ctx block_size context_length max_length",
    "tie_embedding": "tie_word_embeddings tie_weights weight_tying",
    "emb_dropout": "embd_pdrop embed_dropout pos_drop_rate",
    "image_size": "img_size",
    "channels": "in_chans num_channels in_channels",
    "pool": "global_pool",
    "num_register_tokens": "reg_tokens num_registers",
    "num_classes": "num_labels",
    "x": "input_ids idx",
    "src": "input_ids",
    "prompts": "input_ids idx start_tokens",
    "prime": "input_ids idx",
    "ids": "input_ids",
    "tgt": "decoder_input_ids",
    "tgt_start": "decoder_input_ids",
    "img": "pixel_values images x",
    "mask": "attention_mask padding_mask key_padding_mask src_key_padding_mask",
    "tgt_mask": "decoder_attention_mask tgt_key_padding_mask",
    "context_mask": "encoder_attention_mask memory_key_padding_mask",
    "context": "encoder_hidden_states encoder_outputs memory",
    "labels": "targets",
    "embed_ids": "token_type_ids segment_ids",
    "doc_ids": "seq_idx sequence_ids",
    "prepend_embeds": "inputs_embeds",
    "layers": "indices",
    "return_attn": "output_attentions",
    "return_hiddens": "output_hidden_states return_intermediates",
    "state": "past_key_values past_key_value past layer_past cache",
    "cache_kv": "use_cache",
    "seq_len": "max_new_tokens max_length length max_tokens num_new_tokens n_tokens steps",
    "length": "max_new_tokens max_length seq_len max_tokens num_new_tokens n_tokens steps",
    "eos_token": "eos_token_id eos eos_id stop stop_token stop_tokens stop_token_id end_token",
    "temperature": "temp",
    "min_tokens": "min_new_tokens min_length",
    "beams": "num_beams",
    "pad_value": "pad_token_id",
    "label_smoothing": "label_smoothing_factor",
    "z_loss": "z_loss_weight z_loss_coef",
    "loss_weights": "loss_mask token_weights",
    "return_log_probs": "return_logprobs logprobs output_scores",
}
# A name of theirs, and ours that it may stand for: what of them an argument is called depends on what is called.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    theirs: tuple(ours for ours, names in NAMES.items() if theirs in names.split())
    for theirs in dict.fromkeys(" ".join(NAMES.values()).split())
}
# What to know of ours where their meaning is another.
NOTES = {
    "mask": "True = a real token",
    "tgt_mask": "True = a real token",
    "context_mask": "True = a real token",
    "embed_ids": "a dict by name, of a model with embed_num_tokens",
    "prepend_embeds": "embeddings in front of the tokens; a stack itself takes embeddings alone",
    "state": "what step gave",
    "cache_kv": "False goes without",
    "seq_len": "the number of new tokens",
}
FILTERED = "give filter_logits_fn={!r}, filter_kwargs={}"
DROPOUTS = "emb_dropout, attn_dropout, ff_dropout and the other blocks' own say it part by part"
BIASES = "attn_qkv_bias and attn_out_bias give attention biases, ff_no_bias=True takes the feed-forward's away"
MAKES = "AutoregressiveWrapper(model).generate(prompts, seq_len) makes tokens"
CARRIED = "step(ids, state) gives (logits, state), and goes on from a state"
QK_NORMS = "attn_qk_rmsnorm='head' norms queries and keys, with learned gains, attn_qk_norm=True to length one"
PARALLEL = "layers='attn+ff' has its blocks in parallel"
NORM_PLACES = "norm_place='pre', 'post', 'pre_and_post', 'sandwich' or 'after' says where norms stand"
Z_LOSS = "attn_z_loss of the stack is its weight, which trainers add and return_auxiliary_loss=True gives"
COUNTED = "give reduction='sum', return_count=True, and divide gradients by the sum of the counts"
BALANCE = "moe_balance_loss and moe_z_loss are the weights of the router's losses"
WIDTHS = "queries and keys are as wide as attn_dim_head, gau_query_key_dim and flash_query_key_dim say"
DEPTH = "branch_start says how large what projects back to the stream starts"
NONE = "xflash has no counterpart of this flag of x-transformers"
# Flags of x-transformers that say nothing here.
ABSENT = """
    attn_softpick attn_laser attn_laser_softclamp_value attn_orthog_projected_values
    attn_orthog_projected_values_per_head use_derf scale_residual_constant adaptive_condition_mlp
    adaptive_condition_mlp_expansion par_ratio attn_aggregated_residuals attn_aggregated_residual_kwargs
    gated_multi_residual attn_pre_scale_post_talking_heads attn_swiglu_values attn_gate_values_rank attn_output_gate
    attn_output_gate_rank attn_output_gate_headwise attn_low_rank_silu_gates attn_zero_init_output attn_k_rmsnorm
    attn_cog_signed attn_hybrid_module attn_hybrid_mask_kwarg attn_hybrid_fold_axial_dim attn_hybrid_learned_mix
    attn_qkv_receive_diff_residuals attn_inverted_attention ff_glu_mult_bias ff_zero_init_output
    memory_tokens_interspersed_every emb_frac_gradient sigsoftmax_logits ff_deep_embed add_continuous_pred_head
    probabilistic use_identity_if_same_dim project_in project_out loss_fn
"""
# What has no counterpart of one name.
HINTS = {
    **dict.fromkeys(("qk_dim", "attn_qk_dim", "dim_qk"), WIDTHS),
    "return_auxiliary_loss": "a trainer adds it to its loss; model(x, return_auxiliary_loss=True) gives it by itself",
    "seed": "give generator=torch.Generator().manual_seed(...)",
    "top_k": FILTERED.format("top_k", "{'k': ...}"),
    "top_p": FILTERED.format("top_p", "{'thres': ...}"),
    "top_a": FILTERED.format("top_a", "{...}"),
    "min_p": FILTERED.format("min_p", "{'min_p': ...}"),
    **dict.fromkeys(("max_new_tokens", "max_length"), MAKES),
    "do_sample": "temperature=0 takes the likeliest token always",
    "use_cache": CARRIED,
    **dict.fromkeys(("past_key_values", "past_key_value", "past", "layer_past"), CARRIED),
    **dict.fromkeys(("beams", "num_beams"), "beam_search(..., beams=...) keeps several hypotheses"),
    "num_return_sequences": "repeat the prompts: prompts.repeat_interleave(..., 0)",
    "streamer": "stream(...) gives one token after the other",
    "pad_token_id": "pad_value is said when the wrapper is built",
    "position_ids": "positions are counted from the mask and the doc_ids",
    "inputs_embeds": "a stack itself takes embeddings: model.attn_layers(x)",
    "return_dict": "calls give tensors, and tuples where more is asked for",
    **dict.fromkeys(
        ("labels", "targets"),
        "AutoregressiveWrapper(model) and MaskedLMWrapper(model) have a loss",
    ),
    "is_causal": "a Decoder is causal, an Encoder is not",
    "causal": "prefix_attn_len of a PrefixDecoder lets a call's first tokens see each other, or all of them",
    "pos": "positions are counted from the mask and the doc_ids, rows and columns are said by grid",
    "sum_embeds": "embed_ids add embeddings of further ids (embed_num_tokens), prepend_embeds stand in front",
    "seq_start_pos": "a mask says which tokens are real, wherever they stand, prompt_lens how many",
    "self_attn_kv_mask": "attn_mask=kept[:, None, None].expand(-1, 1, n, n) hides keys from all queries",
    "input_not_include_cache": CARRIED,
    "cache_age": CARRIED,
    "detach_mems": "model.remember(state, detach=False) leaves a memory in its graph, tbptt_steps a trainer's",
    "mem_masks": "what is masked never reaches a state",
    "dropout_mems": "SegmentWrapper(memory_dropout=...) forgets at times",
    **dict.fromkeys(("add_attn_z_loss", "return_attn_z_loss", "attn_z_loss_weight"), Z_LOSS),
    **dict.fromkeys(("num_items_in_batch", "num_targets"), COUNTED),
    **dict.fromkeys(("dropout", "drop_rate", "hidden_dropout_prob", "hidden_dropout", "resid_pdrop"), DROPOUTS),
    **dict.fromkeys(("bias", "use_bias", "mlp_bias"), BIASES),
    **dict.fromkeys(("init_values", "layer_scale_init_value"), "give scale='layerscale', layerscale_init=..."),
    "rope_scaling": "rotary_scaling='yarn' ('llama3', 'dynamic', 'longrope') or rotary_interpolation_factor says it",
    **dict.fromkeys(("attention_bias", "attn_bias"), BIASES),
    **dict.fromkeys(("qk_norm", "qk_layernorm", "use_qk_norm"), QK_NORMS),
    **dict.fromkeys(("parallel", "parallel_attn", "parallel_residual", "use_parallel_residual"), PARALLEL),
    **dict.fromkeys(("post_norm", "norm_first"), NORM_PLACES),
    **dict.fromkeys(("use_rope", "use_rotary"), "pos='rotary' says it"),
    "partial_rotary_factor": "rotary_emb_dim is the number of a head's channels that are turned",
    "rope_local_base_freq": "layers='attn(window=..., rotary_base=...) ff' has a base of one layer's own",
    "sliding_window_pattern": "layers='(attn(window=...) ff)*5 attn ff' says which layers have a window",
    "query_pre_attn_scalar": "attn_score_scale=query_pre_attn_scalar**-0.5 is what scores are multiplied by",
    "attn_logit_softcapping": "attn_scores='softclamp' bounds the scores, attn_softclamp_value says how far",
    **dict.fromkeys(("moe_aux_loss", "router_aux_loss_coef", "moe_load_balance", "aux_loss_coef"), BALANCE),
    "attn_rotate_num_heads": "rotary_num_heads says it, or rotate_num_heads",
    "attn_cope_soft_onehot_pos": "attn_scores='cope' lies between the two nearest of its positions",
    "layers_execute_order": "it is a flag of the stack: a call has no order of its own",
    "only_attn": "layers='attn' says it",
    "ff_solu": "ff_activation='solu' says it",
    **dict.fromkeys(("attn_output_proj_depth", "ff_output_proj_depth"), DEPTH),
    "disable_abs_pos_emb": "use_abs_pos_emb=False says it, an argument of TransformerWrapper",
    **dict.fromkeys(ABSENT.split(), NONE),
    "attn_data_dependent_alibi_kwargs": "attn_forget_start says where the gates of attn_scores='forget' start",
    "attn_implementation": "attn_flash=True or False says whether the fused softmax kernel is used",
}


def meant(name: str, known: Iterable[str], homes: Iterable[tuple[str, Collection[str]]] = ()) -> str:
    """What somebody may have meant by an argument `name` that there is not: what it is called among the `known`, or in
    one of the other `homes` (what to call each, and its arguments), or how else it is said, or the nearest known one.
    """
    known, homes = list(known), list(homes)
    for ours in ELSEWHERE.get(name, ()):
        if ours in known:
            return f"; it is called {ours!r} here{f' ({NOTES[ours]})' if ours in NOTES else ''}"
    for ours in (name, *ELSEWHERE.get(name, ())):
        for where, arguments in homes:
            if ours in arguments:
                return f": it is {'' if ours == name else f'called {ours!r} here, '}an argument of {where}"
    if name in HINTS:
        return f"; {HINTS[name]}"
    if said := part_meant(name):
        return said
    return nearest_of(name, known, homes) or (
        f"; where xflash has it, it is {ELSEWHERE[name][0]!r}" if name in ELSEWHERE else ""
    )


def nearest_of(name: str, known: Iterable[str], homes: Iterable[tuple[str, Collection[str]]]) -> str:
    """The nearest name among the known ones, or where one of another home is nearer, that and whose it is."""
    likely, match = closest(name, known)
    found = [(*closest(name, arguments), where) for where, arguments in homes]
    best, other, where = max(found, key=lambda near: near[0], default=(0.0, "", ""))
    if best >= SLIP and best > likely:
        return f"; did you mean {other!r}, an argument of {where}?"
    return f"; did you mean {match!r}?" if match else ""


def by_name(names: Sequence[str], signature: inspect.Signature, args: Sequence[Any]) -> str:
    """`"; name them: dim=64, depth=1"` where a constructor is given too much by position, or the empty string.

    names: what it can be given, in order; of `args`, self is not one.
    """
    placed = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(args) < len(placed):
        return ""
    rest = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    pairs = zip((name for name in names if name not in rest), args, strict=False)
    return f"; name them: {', '.join(f'{name}={shown(value)}' for name, value in pairs)}"


# A block's name that is another library's word for something else.
ALSO = {"flash": "attn_flash=True asks for the fused softmax kernel"}


def meant_block(name: str) -> str:
    """What is meant by the name of a block that is given as a flag."""
    also = f"; {ALSO[name]}" if name in ALSO else ""
    return f": {name!r} is a block, named in the layout, as in layers={f'{name} ff'!r}{also}"
