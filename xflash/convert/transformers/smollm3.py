"""SmolLM3 (https://huggingface.co/blog/smollm3): LLaMA of which some layers know no positions."""

from .family import Family, Flags, families
from .layers import attention, layered, types_of
from .llama import WEIGHTS, llama
from .settings import Settings

__all__ = ["smollm3"]


def smollm3(settings: Settings) -> Flags:
    flags = llama(settings)
    depth = flags.stack["depth"]
    interval = settings("no_rope_layer_interval", 4)
    turned = settings("no_rope_layers") or [(layer + 1) % interval for layer in range(depth)]
    window = settings("sliding_window") if settings("use_sliding_window", False) else None
    types = types_of(settings, depth)
    layers = [
        attention(window=window if kind == "sliding_attention" else None, pos=None if turn else "none") + " ff"
        for kind, turn in zip(types, turned, strict=True)
    ]
    flags.stack.update(layered(layers))
    flags.model["tie_embedding"] = settings("tie_word_embeddings", True)
    return flags


families["smollm3"] = Family(smollm3, WEIGHTS)
