"""`from_timm`: a vision transformer of timm (made against 1.0.31) as the flags that it is, with its weights.

timm has no config of its models: what the flags are is read from their modules.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..base.checks import shown
from .transformers.family import Family, Flags, vision
from .transformers.fill import Plan
from .transformers.front import Front
from .transformers.names import places_of

__all__ = ["from_timm"]

WEIGHTS = """
    pos_embed                    embedding.pos_emb.weight
    patch_embed.proj.weight      embedding.patch_emb.project.weight
    patch_embed.proj.bias        embedding.patch_emb.project.bias
    blocks.{i}.norm1.weight      attn.before.gain
    blocks.{i}.norm1.bias        attn.before.bias
    blocks.{i}.norm1.weight      attn.after.gain
    blocks.{i}.norm1.bias        attn.after.bias
    blocks.{i}.attn.qkv.weight   attn.block.query_key_value.weight[q k v]
    blocks.{i}.attn.qkv.bias     attn.block.query_key_value.bias[q k v]
    blocks.{i}.attn.proj.weight  attn.block.to_out.weight
    blocks.{i}.attn.proj.bias    attn.block.to_out.bias
    blocks.{i}.ls1.gamma         attn.scale.layerscale.gain
    blocks.{i}.norm2.weight      ff.before.gain
    blocks.{i}.norm2.bias        ff.before.bias
    blocks.{i}.norm2.weight      ff.after.gain
    blocks.{i}.norm2.bias        ff.after.bias
    blocks.{i}.mlp.fc2.weight    ff.block.to_out.weight
    blocks.{i}.mlp.fc2.bias      ff.block.to_out.bias
    blocks.{i}.ls2.gamma         ff.scale.layerscale.gain
    norm_pre.weight              embedding.post_emb_norm.gain
    norm_pre.bias                embedding.post_emb_norm.bias
    norm.weight                  attn_layers.final_norm.gain
    norm.bias                    attn_layers.final_norm.bias
    fc_norm.weight               pool_norm.gain
    fc_norm.bias                 pool_norm.bias
    head.weight                  to_logits.weight
    head.bias                    to_logits.bias
    head.weight                  to_logits.first.weight
    head.bias                    to_logits.first.bias
    head_dist.weight             to_logits.second.weight
    head_dist.bias               to_logits.second.bias
"""
# The token has its own place in the stream here: it is taken from the offset of what it reads.
MAP = """
    attn_pool.latent             patch_pool.token[1 1]
    attn_pool.q.weight           patch_pool.attn_layers.branches.0.block.to_q.weight
    attn_pool.q.bias             patch_pool.attn_layers.branches.0.block.to_q.bias
    attn_pool.kv.weight          patch_pool.attn_layers.branches.0.block.key_value.weight[key value]
    attn_pool.kv.bias            patch_pool.attn_layers.branches.0.block.key_value.bias[key value]
    attn_pool.proj.weight        patch_pool.attn_layers.branches.0.block.to_out.weight
    attn_pool.proj.bias          patch_pool.attn_layers.branches.0.block.to_out.bias
    attn_pool.norm.weight        patch_pool.attn_layers.branches.1.before.gain
    attn_pool.norm.bias          patch_pool.attn_layers.branches.1.before.bias
    attn_pool.mlp.fc1.weight     patch_pool.attn_layers.branches.1.block.to_inner.weight
    attn_pool.mlp.fc1.bias       patch_pool.attn_layers.branches.1.block.to_inner.bias
    attn_pool.mlp.fc2.weight     patch_pool.attn_layers.branches.1.block.to_out.weight
    attn_pool.mlp.fc2.bias       patch_pool.attn_layers.branches.1.block.to_out.bias
"""
# The first map of each kind of feed-forward block.
INNER = {
    "Mlp": """
    blocks.{i}.mlp.fc1.weight    ff.block.to_inner.weight
    blocks.{i}.mlp.fc1.bias      ff.block.to_inner.bias
    """,
    "GluMlp": """
    blocks.{i}.mlp.fc1.weight    ff.block.to_inner.weight[gate up]
    blocks.{i}.mlp.fc1.bias      ff.block.to_inner.bias[gate up]
    """,
    "SwiGLU": """
    blocks.{i}.mlp.fc1_g.weight  ff.block.to_inner.weight[gate]
    blocks.{i}.mlp.fc1_g.bias    ff.block.to_inner.bias[gate]
    blocks.{i}.mlp.fc1_x.weight  ff.block.to_inner.weight[up]
    blocks.{i}.mlp.fc1_x.bias    ff.block.to_inner.bias[up]
    """,
}
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu", "Swish": "silu"}
ACTIVATIONS |= {"ReLU": "relu", "Mish": "mish", "Tanh": "tanh"}
KINDS = ("VisionTransformer", "VisionTransformerDistilled")
POOLS = {"token": "cls", "avg": "mean", "map": "map", "max": "max", "avgmax": "mean_max"}
# How many tokens a head reads.
READ = {"cls": 1, "cls_pair": 2}
ABSENT = ("Identity",)
# Where the norms of each kind of block stand.
BLOCKS = {"Block": "pre", "ResPostBlock": "after"}
NORMS = ("LayerNorm", "LayerNormFp32")


def from_timm(model: nn.Module) -> Any:
    """The `ViTransformerWrapper` with the weights and outputs of a VisionTransformer of timm (vit_*, deit_*, deit3_*).

    A VisionTransformerDistilled is one too: its logits are the mean of those of its two heads, in training as well.

    It shares nothing with the old model, and has its dtype, device and mode. Images of other sizes are taken too, as
    timm takes them with dynamic_img_size=True. Dropout of updates, of patches and of the head is left out; it acts in
    training alone. TypeError for what is no such model; ValueError, with the name of the module or the setting, for
    what has no counterpart.
    """
    if not isinstance(model, nn.Module) or kind(model) not in KINDS:
        raise TypeError(
            "from_timm takes a VisionTransformer of timm, such as timm.create_model('vit_base_patch16_224'), not "
            f"{type(model).__module__}.{type(model).__qualname__}"
        )
    flags, front, table = read_model(model)
    family = Family(lambda settings: flags, table, vision, prefix="", tied={}, made=front.made)
    with torch.device("meta"):
        ours = vision(flags)
    plan = Plan(family, flags, ours, places_of(table, ours))
    weights = model.state_dict()
    if flags.model["pool"] == "map":
        weights["attn_pool.proj.bias"] = weights["attn_pool.proj.bias"] - weights["attn_pool.latent"][0, 0]
    laid = plan.laid(weights)
    plan.check(laid)
    main = plan.main_of(weights)
    return plan.filled(laid, main.device, main.dtype).train(model.training)


def kind(module: Any) -> str:
    """The name of a module's class."""
    return type(module).__name__


def among(name: str, module: Any, known: Any) -> str:
    """The name of a module's class; ValueError for one that is not known."""
    if kind(module) not in known:
        raise ValueError(
            f"{name} is a {kind(module)}, which has no counterpart in xflash; known are {', '.join(known)}"
        )
    return kind(module)


def setting(name: str, value: Any, *possible: Any) -> Any:
    """A setting; ValueError for one that has none of these values."""
    if value not in possible:
        known = " or ".join(map(repr, possible))
        raise ValueError(f"{name}={shown(value)} of a VisionTransformer has no counterpart in xflash; only {known} has")
    return value


def read_model(model: Any) -> tuple[Flags, Front, str]:
    """The flags of a model, what is in front of its layers, and the names of its weights."""
    pool = POOLS[setting("global_pool", model.global_pool, *POOLS)]
    tokens = [name for name in ("cls_token", "dist_token", "reg_token") if getattr(model, name, None) is not None]
    pool = "cls_pair" if "dist_token" in tokens else pool
    others = model.num_prefix_tokens - READ.get(pool, 0)
    if pool not in READ and tokens:
        setting("pool_include_prefix", model.pool_include_prefix, False)
    stack, inner = read_blocks(model.blocks)
    norms = {name: among(name, getattr(model, name), NORMS + ABSENT) != "Identity" for name in ("norm", "fc_norm")}
    if norms["norm"] and read_norm("norm", model.norm) != {name: stack[f"norm_{name}"] for name in ("eps", "bias")}:
        raise ValueError("norm has another eps or bias than those of the blocks, which has no counterpart in xflash")
    stack["final_norm"] = norms["norm"]
    head = {"pool": pool, "num_register_tokens": others}
    before = among("norm_pre", model.norm_pre, NORMS + ABSENT) != "Identity"
    if before:
        head |= {"post_emb_norm": True} | named("post_emb_norm", read_norm("norm_pre", model.norm_pre))
    if pool == "map":
        head["pool_layers"] = read_map(model.attn_pool)
    if norms["fc_norm"]:
        head |= {"pool_norm": True} | named("pool_norm", read_norm("fc_norm", model.fc_norm))
    if among("head", model.head, ("Linear", "Identity")) == "Linear":
        head["num_classes"] = model.head.out_features
    lines = [f"{tokens[0]} pooled.cls_tokens.tokens"] if pool in READ else []
    lines += [f"{tokens[-1]} embedding.register_tokens"] if others else []
    placed = 0 if model.no_embed_class else None
    front = Front(tuple(tokens), "pos_embed", "patch_embed.proj.weight", placed, "norm_pre" if before else None)
    return Flags(stack, read_inputs(model) | head), front, "\n".join([*lines, WEIGHTS, INNER[inner], MAP])


def read_inputs(model: Any) -> dict[str, Any]:
    """The flags of patches and their positions."""
    patches = model.patch_embed
    among("patch_embed", patches, ("PatchEmbed",))
    among("patch_embed.norm", patches.norm, ABSENT)
    setting("dynamic_img_pad", patches.dynamic_img_pad, False)
    learned = model.pos_embed is not None
    return {
        # What is beyond the last whole patch is not looked at there.
        "image_size": tuple(grid * patch for grid, patch in zip(patches.grid_size, patches.patch_size, strict=True)),
        "patch_size": tuple(patches.patch_size),
        "channels": patches.proj.in_channels,
        "patch_norm": False,
        "patch_bias": patches.proj.bias is not None,
        "pos_emb": "learned" if learned else None,
        "pos_emb_antialias": learned,
        "emb_dropout": model.pos_drop.p,
    }


def read_blocks(blocks: Any) -> tuple[dict[str, Any], str]:
    """The flags of the stack, and the kind of its feed-forward blocks; ValueError where blocks differ."""
    if not len(blocks):
        raise ValueError("the VisionTransformer has no blocks")
    found = [read_block(f"blocks.{i}", block) for i, block in enumerate(blocks)]
    for i, other in enumerate(found):
        names = [name for name, value in other[0].items() if value != found[0][0][name]]
        if names or other[1] != found[0][1]:
            raise ValueError(f"blocks.{i} differs from blocks.0 in {', '.join(names) or 'the kind of its mlp'}")
    stack, inner = found[0]
    return {**stack, "depth": len(blocks), "layers": "attn ff", "norm": "layernorm"}, inner


def read_block(name: str, block: Any) -> tuple[dict[str, Any], str]:
    """The flags of one block, and the kind of its feed-forward block."""
    place = BLOCKS[among(name, block, BLOCKS)]
    attn, mlp = block.attn, block.mlp
    among(f"{name}.attn", attn, ("Attention",))
    for part in ("q_norm", "k_norm", "norm"):
        among(f"{name}.attn.{part}", getattr(attn, part), ABSENT)
    if getattr(attn, "gate", None) is not None:
        raise ValueError(f"{name}.attn.gate has no counterpart in xflash")
    inner = among(f"{name}.mlp", mlp, INNER)
    among(f"{name}.mlp.norm", mlp.norm, ABSENT)
    if inner == "GluMlp":
        setting(f"{name}.mlp.gate_last", mlp.gate_last, False)
    norms = [read_norm(f"{name}.{part}", getattr(block, part)) for part in ("norm1", "norm2")]
    scaled = [(part, getattr(block, part, nn.Identity())) for part in ("ls1", "ls2")]
    scales = [among(f"{name}.{part}", scale, ("LayerScale", *ABSENT)) for part, scale in scaled]
    first = mlp.fc1_g if inner == "SwiGLU" else mlp.fc1
    biases = [layer.bias is not None for layer in (first, mlp.fc2)]
    if norms[0] != norms[1] or scales[0] != scales[1] or biases[0] != biases[1]:
        raise ValueError(f"{name} has norms, scales or biases of mlp that differ, which has no counterpart in xflash")
    flags = {
        "dim": attn.qkv.in_features,
        "heads": attn.num_heads,
        "norm_eps": norms[0]["eps"],
        "norm_bias": norms[0]["bias"],
        "norm_place": place,
        "scale": "layerscale" if scales[0] == "LayerScale" else None,
        "attn_dim_head": attn.head_dim,
        "attn_score_scale": None if attn.scale == attn.head_dim**-0.5 else attn.scale,
        "attn_qkv_bias": attn.qkv.bias is not None,
        "attn_out_bias": attn.proj.bias is not None,
        "attn_dropout": attn.attn_drop.p,
        "ff_dim": mlp.fc2.in_features,
        "ff_glu": inner != "Mlp",
        "ff_activation": read_activation(f"{name}.mlp.act", mlp.act),
        "ff_no_bias": not biases[0],
    }
    return flags, inner


def read_map(pool: Any) -> dict[str, Any]:
    """The flags of the stack by which a learned token reads the patches."""
    setting("attn_pool.latent_len", pool.latent_len, 1)
    setting("attn_pool.pool", pool.pool, "token")
    for part in ("q_norm", "k_norm"):
        among(f"attn_pool.{part}", getattr(pool, part), ABSENT)
    norm = read_norm("attn_pool.norm", pool.norm)
    return {
        "dim": pool.kv.in_features,
        "depth": 1,
        "heads": pool.num_heads,
        "layers": "cross_attn(norm=none) ff",
        "norm": "layernorm",
        "norm_eps": norm["eps"],
        "norm_bias": norm["bias"],
        "final_norm": False,
        "cross_attn_dim_head": pool.head_dim,
        "cross_attn_qkv_bias": pool.kv.bias is not None,
        "cross_attn_out_bias": True,
        "ff_dim": pool.mlp.fc2.in_features,
        "ff_activation": read_activation("attn_pool.mlp.act", pool.mlp.act),
    }


def read_activation(name: str, module: Any) -> str:
    """The name of an activation."""
    known: Mapping[str, str] = ACTIVATIONS
    found = known[among(name, module, known)]
    return "gelu_tanh" if found == "gelu" and getattr(module, "approximate", "none") == "tanh" else found


def named(prefix: str, flags: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in flags.items()}


def read_norm(name: str, module: Any) -> dict[str, Any]:
    """The eps of a LayerNorm, and whether it has a bias."""
    among(name, module, NORMS)
    if module.weight is None:
        raise ValueError(f"{name} has no weight, which has no counterpart in xflash")
    return {"eps": module.eps, "bias": module.bias is not None}
