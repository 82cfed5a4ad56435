"""How decoders that are known are written."""

__all__ = ["RECIPES"]

# What their feed-forward layers have in common.
GATED = "ff_glu=True, ff_activation='silu', ff_no_bias=True"

RECIPES = {
    "gpt2": "Decoder(dim=768, depth=12, heads=12, norm_bias=True, ff_activation='gelu_tanh', "
    "attn_qkv_bias=True, attn_out_bias=True)",
    "gpt_j": "Decoder(dim=768, depth=12, layers='attn+ff', norm_bias=True, ff_activation='gelu_tanh', "
    "pos='rotary', rotary_emb_dim=32, rotary_interleaved=True)",
    "llama": f"Decoder(dim=768, depth=12, norm='rmsnorm', pos='rotary', attn_kv_heads=4, {GATED})",
    "mistral": f"Decoder(dim=768, depth=12, norm='rmsnorm', pos='rotary', attn_kv_heads=4, attn_window=4096, {GATED})",
    "olmo2": "Decoder(dim=768, depth=12, norm='rmsnorm', norm_place='after', attn_qk_rmsnorm='width', "
    f"pos='rotary', rotary_base=500000.0, {GATED})",
    "gemma3": "Decoder(dim=768, depth=2, layers='(attn(window=512, rotary_base=10000.0) ff)*5 attn ff', "
    "norm='rmsnorm', norm_unit_offset=True, norm_place='sandwich', attn_qk_rmsnorm='head', "
    "attn_qk_rmsnorm_unit_offset=True, pos='rotary', rotary_base=1000000.0, "
    f"{GATED.replace('silu', 'gelu_tanh')})",
}
