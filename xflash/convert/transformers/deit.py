"""DeiT (https://arxiv.org/abs/2012.12877): ViT with a token for distillation."""

from .family import Flags, families
from .settings import Settings
from .vit import VIT, images, vit

__all__ = ["deit"]

TOKEN = "embeddings.distillation_token"


def deit(settings: Settings) -> Flags:
    """ViT with a token for distillation, of which nothing is read here."""
    flags = vit(settings)
    flags.model["num_register_tokens"] = 1
    return flags


families["deit"] = images("deit", deit, f"{TOKEN} embedding.register_tokens\n{VIT}", TOKEN)
