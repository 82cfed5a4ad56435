"""OLMo 2 (https://arxiv.org/abs/2501.00656): norms behind the blocks, and of all of a token's queries or keys."""

from .family import Family, Flags, families
from .llama import WEIGHTS, llama
from .qwen import QK_NORMS
from .settings import Settings

__all__ = ["olmo2"]

BEHIND = """
    layers.{i}.post_attention_layernorm.weight    attn.after.gain
    layers.{i}.post_feedforward_layernorm.weight  ff.after.gain
"""


def olmo2(settings: Settings) -> Flags:
    flags = llama(settings)
    flags.stack.update(norm_place="after", attn_qk_rmsnorm="width", attn_qk_rmsnorm_eps=flags.stack["norm_eps"])
    return flags


families["olmo2"] = Family(olmo2, WEIGHTS + QK_NORMS + BEHIND)
