"""Mistral (https://arxiv.org/abs/2310.06825): LLaMA with windows."""

from .family import Family, Flags, families
from .llama import WEIGHTS, llama
from .settings import Settings

__all__ = ["mistral"]


def mistral(settings: Settings) -> Flags:
    flags = llama(settings)
    flags.stack["attn_window"] = settings("sliding_window")
    return flags


families["mistral"] = Family(mistral, WEIGHTS)
