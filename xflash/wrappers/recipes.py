"""Models that are known, as plain dictionaries of flags, and `create`, which builds them."""

import re
from typing import Any

from ..base.checks import shown
from ..base.registry import nearest
from ..flags.elsewhere import meant
from ..flags.flag import flags_of
from ..saving.classes import homes
from ..saving.configurable import Configurable
from ..stack.stacks import Decoder, Encoder
from .transformer import TransformerWrapper
from .vit import ViTransformerWrapper
from .xtransformer import XTransformer

__all__ = ["create", "recipes"]

Recipe = dict[str, Any]

# What families have in common; `causal` says whether a stack is a Decoder or an Encoder.
ROTARY: Recipe = {"causal": True, "use_abs_pos_emb": False, "norm": "rmsnorm", "pos": "rotary"}
GATED: Recipe = {"ff_glu": True, "ff_activation": "silu", "ff_no_bias": True}
LLAMA: Recipe = {**ROTARY, **GATED, "layers": "attn ff", "norm_eps": 1e-5}
LLAMA3: Recipe = {**LLAMA, "num_tokens": 128256, "attn_kv_heads": 8, "rotary_base": 500000.0}
LLAMA32: Recipe = {
    **LLAMA3, "max_seq_len": 131072, "tie_embedding": True, "ff_dim": 8192,
    "rotary_scaling": "llama3", "rotary_scaling_factor": 32.0, "rotary_scaling_length": 8192,
}  # fmt: skip
QWEN2: Recipe = {**LLAMA, "norm_eps": 1e-6, "rotary_base": 1e6, "attn_qkv_bias": True, "max_seq_len": 32768}
QWEN3: Recipe = {
    **LLAMA, "norm_eps": 1e-6, "rotary_base": 1e6, "attn_qk_rmsnorm": "head", "attn_dim_head": 128,
    "num_tokens": 151936, "max_seq_len": 40960,
}  # fmt: skip
MOE: Recipe = {"layers": "attn moe", "moe_glu": True, "moe_activation": "silu", "moe_no_bias": True}
GEMMA: Recipe = {
    **LLAMA, "norm_eps": 1e-6, "norm_place": "sandwich", "norm_unit_offset": True, "ff_activation": "gelu_tanh",
    "tie_embedding": True, "attn_dim_head": 256, "attn_score_scale": 0.0625,
}  # fmt: skip
GEMMA2: Recipe = {
    **GEMMA, "num_tokens": 256000, "max_seq_len": 8192, "layers": "attn(window=4096) ff attn ff",
    "attn_scores": "softclamp", "attn_softclamp_value": 50.0, "logits_softclamp": 30.0,
}  # fmt: skip
GEMMA3: Recipe = {
    **GEMMA, "num_tokens": 262144, "max_seq_len": 32768, "depth": 1, "heads": 4, "attn_kv_heads": 1,
    "rotary_base": 1e6, "attn_qk_rmsnorm": "head", "attn_qk_rmsnorm_unit_offset": True,
}  # fmt: skip
LOCAL = "attn(window=512, rotary_base=10000.0) ff"
FAR = "attn(window=1024, rotary_base=10000.0, rotary_interpolation_factor=1.0) ff"
BIASED: Recipe = {"norm": "layernorm", "norm_bias": True, "attn_qkv_bias": True, "attn_out_bias": True}
GPT2: Recipe = {
    **BIASED, "causal": True, "layers": "attn ff", "ff_activation": "gelu_tanh", "tie_embedding": True,
    "num_tokens": 50257, "max_seq_len": 1024,
}  # fmt: skip
NEOX: Recipe = {
    **ROTARY, **BIASED, "layers": "attn+ff(norm=own)", "ff_activation": "gelu", "max_seq_len": 2048,
}  # fmt: skip
BERT: Recipe = {
    **BIASED, "causal": False, "layers": "attn ff", "norm_place": "post", "norm_eps": 1e-12, "max_seq_len": 512,
    "num_tokens": 30522, "embed_num_tokens": {"token_type": 2}, "post_emb_norm": True, "post_emb_norm_eps": 1e-12,
    "post_emb_norm_bias": True, "tie_embedding": True, "logits_bias": True, "head_transform": "gelu",
    "head_transform_eps": 1e-12,
}  # fmt: skip
BART: Recipe = {
    **BIASED, "num_tokens": 50265, "max_seq_len": 1024, "pos_emb_offset": 2, "post_emb_norm": True,
    "post_emb_norm_bias": True, "norm_place": "post",
}  # fmt: skip
MODERN: Recipe = {
    "causal": False, "use_abs_pos_emb": False, "norm": "layernorm", "pos": "rotary", "rotary_base": 160000.0,
    "num_tokens": 50368, "max_seq_len": 8192, "post_emb_norm": True, "ff_glu": True, "ff_no_bias": True,
    "tie_embedding": True, "logits_bias": True, "head_transform": "gelu", "head_transform_bias": False, "depth": 1,
}  # fmt: skip
NEAR = "attn(window=65, rotary_base=10000.0) ff"
OSS: Recipe = {
    **ROTARY, **MOE, "norm_eps": 1e-5, "layers": "attn(window=128) moe attn moe", "dim": 2880, "heads": 64,
    "attn_kv_heads": 8, "attn_dim_head": 64, "attn_qkv_bias": True, "attn_out_bias": True,
    "attn_scores": "learned_sink", "moe_dim": 2880, "moe_top_k": 4, "moe_activation": "quick_gelu",
    "moe_glu_limit": 7.0, "moe_glu_offset": 1.0, "moe_no_bias": False, "moe_router_bias": True,
    "rotary_base": 150000.0, "rotary_scaling": "yarn", "rotary_scaling_factor": 32.0, "rotary_scaling_length": 4096,
    "rotary_scaling_turns": (1.0, 32.0), "rotary_scaling_truncate": False, "num_tokens": 201088,
    "max_seq_len": 131072,
}  # fmt: skip
FALCON: Recipe = {**ROTARY, "norm": "layernorm", "norm_bias": True, "max_seq_len": 2048, "tie_embedding": True}
VIT: Recipe = {
    **BIASED, "causal": False, "layers": "attn ff", "norm_eps": 1e-12, "patch_norm": False, "pool": "cls",
    "image_size": 224, "patch_size": 16, "num_classes": 1000,
}  # fmt: skip
DINOV2: Recipe = {
    **VIT, "norm_eps": 1e-6, "scale": "layerscale", "image_size": 518, "patch_size": 14, "num_classes": None,
}  # fmt: skip
REGISTERS: Recipe = {**DINOV2, "num_register_tokens": 4, "pos_emb_antialias": True}
GIANT: Recipe = {"ff_glu": True, "ff_activation": "silu", "ff_dim": 4096}
FLASH: Recipe = {
    "causal": True, "layers": "flash", "norm": "scalenorm", "pos": "rotary", "use_abs_pos_emb": False,
    "flash_group_size": 256, "flash_query_key_dim": 128, "flash_expansion_factor": 2.0, "num_tokens": 32000,
    "max_seq_len": 8192, "tie_embedding": True,
}  # fmt: skip


def sized(dim: int, depth: int, heads: int, **more: Any) -> Recipe:
    """The size of a stack."""
    return {"dim": dim, "depth": depth, "heads": heads, "attn_dim_head": dim // heads, **more}


def t5(layers: int, heads: int, ff_dim: int, dim: int, first: bool = True) -> Recipe:
    """T5 1.0, whose head is its token embedding, or 1.1, whose layers are gated: both sides alike."""
    side = {
        "num_tokens": 32128, "depth": layers, "heads": heads, "norm": "rmsnorm", "norm_eps": 1e-6, "pos": "rel_pos",
        "attn_dim_head": 64, "attn_score_scale": 1.0, "ff_dim": ff_dim, "ff_no_bias": True,
        **({"ff_activation": "relu"} if first else {"ff_activation": "gelu_tanh", "ff_glu": True}),
    }  # fmt: skip
    both = {f"{begin}_{name}": value for begin in ("enc", "dec") for name, value in side.items()}
    tied = {"dec_tie_embedding": True, "dec_tie_embedding_scale": dim**-0.5} if first else {}
    return {"dim": dim, "tie_token_emb": True, **both, **tied}


def bart(layers: int, heads: int, dim: int) -> Recipe:
    """BART, both sides alike."""
    side = {**BART, "depth": layers, "heads": heads, "attn_dim_head": dim // heads}
    both = {f"{begin}_{name}": value for begin in ("enc", "dec") for name, value in side.items()}
    return {"dim": dim, "tie_token_emb": True, **both, "dec_tie_embedding": True}


recipes: dict[str, Recipe] = {
    "gpt2": GPT2 | sized(768, 12, 12),
    "gpt2-medium": GPT2 | sized(1024, 24, 16),
    "gpt2-large": GPT2 | sized(1280, 36, 20),
    "gpt2-xl": GPT2 | sized(1600, 48, 25),
    "gpt-j-6b": ROTARY | sized(4096, 28, 16, rotary_emb_dim=64, rotary_interleaved=True, layers="attn+ff")
    | {"norm": "layernorm", "norm_bias": True, "ff_activation": "gelu_tanh", "logits_bias": True}
    | {"num_tokens": 50400, "max_seq_len": 2048},
    "pythia-160m": NEOX | sized(768, 12, 12, rotary_emb_dim=16, num_tokens=50304),
    "gpt-neox-20b": NEOX | sized(6144, 44, 64, rotary_emb_dim=24, num_tokens=50432),
    "opt-125m": GPT2 | sized(768, 12, 12, ff_activation="relu", pos_emb_offset=2, num_tokens=50272, max_seq_len=2048),
    "opt-350m": GPT2 | sized(1024, 24, 16, ff_activation="relu", pos_emb_offset=2, num_tokens=50272, max_seq_len=2048)
    | {"emb_dim": 512, "emb_proj_bias": False, "pos_emb_at_dim": True, "norm_place": "post", "final_norm": False},
    "falcon-rw-1b": FALCON | BIASED | sized(2048, 24, 32, layers="attn ff", num_tokens=50304)
    | {"pos": "alibi", "alibi_slope_scale": 0.125},
    "falcon-7b": FALCON | sized(4544, 32, 71, layers="attn+ff", attn_kv_heads=1, ff_no_bias=True, num_tokens=65024),
    "phi-2": ROTARY | BIASED | sized(2560, 32, 32, layers="attn+ff", ff_activation="gelu_tanh", rotary_emb_dim=32)
    | {"logits_bias": True, "num_tokens": 51200, "max_seq_len": 2048},
    "phi-3-mini": LLAMA | sized(3072, 32, 32, ff_dim=8192, attn_window=2047, num_tokens=32064, max_seq_len=4096),
    "llama2-7b": LLAMA | sized(4096, 32, 32, ff_dim=11008, num_tokens=32000, max_seq_len=4096),
    "llama2-13b": LLAMA | sized(5120, 40, 40, ff_dim=13824, num_tokens=32000, max_seq_len=4096),
    "llama3-8b": LLAMA3 | sized(4096, 32, 32, ff_dim=14336, max_seq_len=8192),
    "llama3-70b": LLAMA3 | sized(8192, 80, 64, ff_dim=28672, max_seq_len=8192),
    "llama3.2-1b": LLAMA32 | sized(2048, 16, 32),
    "llama3.2-3b": LLAMA32 | sized(3072, 28, 24),
    "mistral-7b": LLAMA
    | sized(4096, 32, 32, ff_dim=14336, attn_kv_heads=8, attn_window=4096, num_tokens=32000, max_seq_len=32768),
    "mixtral-8x7b": ROTARY | MOE | sized(4096, 32, 32, moe_dim=14336, attn_kv_heads=8, rotary_base=1e6)
    | {"norm_eps": 1e-5, "num_tokens": 32000, "max_seq_len": 32768},
    "qwen2.5-0.5b": QWEN2 | sized(896, 24, 14, ff_dim=4864, attn_kv_heads=2, tie_embedding=True, num_tokens=151936),
    "qwen2.5-7b": QWEN2 | sized(3584, 28, 28, ff_dim=18944, attn_kv_heads=4, num_tokens=152064),
    "qwen3-0.6b": QWEN3 | {"dim": 1024, "depth": 28, "heads": 16, "attn_kv_heads": 8, "ff_dim": 3072}
    | {"tie_embedding": True},
    "qwen3-8b": QWEN3 | {"dim": 4096, "depth": 36, "heads": 32, "attn_kv_heads": 8, "ff_dim": 12288},
    "qwen3-30b-a3b": {name: value for name, value in QWEN3.items() if not name.startswith("ff_")} | MOE
    | {"dim": 2048, "depth": 48, "heads": 32, "attn_kv_heads": 4, "moe_experts": 128, "moe_top_k": 8, "moe_dim": 768},
    "gemma2-2b": GEMMA2 | {"dim": 2304, "depth": 13, "heads": 8, "attn_kv_heads": 4, "ff_dim": 9216, "emb_scale": 48.0},
    "gemma2-9b": GEMMA2 | {"dim": 3584, "depth": 21, "heads": 16, "attn_kv_heads": 8, "ff_dim": 14336}
    | {"emb_scale": 3584**0.5},
    "gemma3-270m": GEMMA3 | {"dim": 640, "ff_dim": 2048, "layers": f"(({LOCAL})*5 attn ff)*3", "emb_scale": 640**0.5},
    "gemma3-1b": GEMMA3 | {"dim": 1152, "ff_dim": 6912, "layers": f"(({LOCAL})*5 attn ff)*4 ({LOCAL})*2"}
    | {"emb_scale": 1152**0.5},
    "gemma3-4b": GEMMA3 | {"dim": 2560, "heads": 8, "attn_kv_heads": 4, "ff_dim": 10240, "num_tokens": 262208}
    | {"layers": f"(({FAR})*5 attn ff)*5 ({FAR})*4", "rotary_interpolation_factor": 8.0, "max_seq_len": 131072}
    | {"emb_scale": 2560**0.5},
    "gpt-oss-20b": OSS | {"depth": 12, "moe_experts": 32},
    "gpt-oss-120b": OSS | {"depth": 18, "moe_experts": 128},
    "olmo2-1b": LLAMA | sized(2048, 16, 16, ff_dim=8192, norm_eps=1e-6, rotary_base=500000.0, norm_place="after")
    | {"attn_qk_rmsnorm": "width", "num_tokens": 100352, "max_seq_len": 4096},
    "olmo2-7b": LLAMA | sized(4096, 32, 32, ff_dim=11008, norm_eps=1e-6, rotary_base=500000.0, norm_place="after")
    | {"attn_qk_rmsnorm": "width", "num_tokens": 100352, "max_seq_len": 4096},
    "smollm3-3b": LLAMA | sized(2048, 9, 16, ff_dim=11008, norm_eps=1e-6, attn_kv_heads=4, rotary_base=5e6)
    | {"layers": "(attn ff)*3 attn(pos=none) ff", "tie_embedding": True, "num_tokens": 128256, "max_seq_len": 65536},
    "bert-base": BERT | sized(768, 12, 12),
    "bert-large": BERT | sized(1024, 24, 16),
    "roberta-base": BERT | sized(768, 12, 12, num_tokens=50265, pos_emb_offset=2, embed_num_tokens={"token_type": 1})
    | {"norm_eps": 1e-5, "post_emb_norm_eps": 1e-5, "head_transform_eps": 1e-5},
    "modernbert-base": MODERN | {"dim": 768, "heads": 12, "ff_dim": 1152}
    | {"layers": f"attn(norm=none) ff ({NEAR})*2 (attn ff ({NEAR})*2)*6 attn ff"},
    "bart-base": bart(6, 12, 768),
    "bart-large": bart(12, 16, 1024),
    "t5-small": t5(6, 8, 2048, 512),
    "t5-base": t5(12, 12, 3072, 768),
    "flan-t5-base": t5(12, 12, 2048, 768, first=False),
    "vit-base-16": VIT | sized(768, 12, 12),
    "vit-large-16": VIT | sized(1024, 24, 16),
    "deit-tiny-distilled": VIT | sized(192, 12, 3, pool="cls_pair"),
    "deit-base-distilled": VIT | sized(768, 12, 12, pool="cls_pair"),
    "dinov2-small": DINOV2 | sized(384, 12, 6),
    "dinov2-base": DINOV2 | sized(768, 12, 12),
    "dinov2-large": DINOV2 | sized(1024, 24, 16),
    "dinov2-giant": DINOV2 | sized(1536, 40, 24) | GIANT,
    "dinov2-base-registers": REGISTERS | sized(768, 12, 12),
    "dinov2-giant-registers": REGISTERS | sized(1536, 40, 24) | GIANT,
    "flash-base": FLASH | {"dim": 768, "depth": 24},
}  # fmt: skip


def create(name: str, **flags: Any) -> Configurable:
    """The model of a recipe (`xflash.recipes`), with flags of one's own in the place of its: `create('gpt2', depth=4)`.

    Its weights are random; those of a model that is known come from `xflash.convert.from_pretrained`. ValueError for a
    name that is no recipe.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be the name of a recipe, such as 'gpt2', not {shown(name)}")
    if name not in recipes:
        hint = nearest(name, recipes) or "; xflash.recipes has them all, and `python -m xflash list recipes` shows them"
        raise ValueError(f"name={shown(name)} is no recipe{hint}")
    try:
        return built(recipes[name], flags)
    except ValueError as error:
        raise ValueError(f"{error}{of_recipe(name, flags, str(error))}") from None


def built(recipe: Recipe, flags: Recipe) -> Configurable:
    """The model of a recipe's flags and these."""
    every = {**recipe, **flags}
    if any(flag.startswith(("enc_", "dec_")) for flag in recipe):
        return XTransformer(**every)
    kind = Decoder if every.pop("causal", True) else Encoder
    model = ViTransformerWrapper if "image_size" in recipe else TransformerWrapper
    known = [name for name in (*flags_of(model.Config), *kind.takes()) if name != "attn_layers"]
    for name in flags:
        if name not in known:
            raise TypeError(f"unknown flag {name!r}{meant(name, known, homes(but=model.__name__))}")
    own = {flag: value for flag, value in every.items() if flag in flags_of(model.Config)}
    stack = kind(**{flag: value for flag, value in every.items() if flag not in own})
    return model(attn_layers=stack, **own)


def of_recipe(name: str, flags: Recipe, said: str) -> str:
    """Which flags that an error speaks of are the recipe's, not the caller's, or ''."""
    words = re.findall(r"\w+", said)
    spoken = {flag: value for flag, value in recipes[name].items() if flag in words and flag not in flags}
    given = ", ".join(f"{flag}={shown(value)}" for flag, value in spoken.items())
    return f" ({given} {'is' if len(spoken) == 1 else 'are'} of the recipe {name!r})" if given else ""
