"""DeiT (https://arxiv.org/abs/2012.12877): ViT with a token for distillation."""

from .family import Flags, families
from .settings import Settings
from .vit import VIT, images, vit

__all__ = ["deit"]

TOKEN = "embeddings.distillation_token"
# A second class token where there are two heads; else nothing is read of it.
WEIGHTS = (
    VIT
    + f"""
    {TOKEN}                          embedding.register_tokens
    cls_classifier.weight            to_logits.first.weight
    cls_classifier.bias              to_logits.first.bias
    distillation_classifier.weight   to_logits.second.weight
    distillation_classifier.bias     to_logits.second.bias
"""
)
PAIR = {"ForImageClassificationWithTeacher": {"pool": "cls_pair", "num_register_tokens": 0}}


def deit(settings: Settings) -> Flags:
    flags = vit(settings)
    flags.model["num_register_tokens"] = 1
    return flags


family = images("deit", deit, WEIGHTS, TOKEN)
families["deit"] = family._replace(heads={**family.heads, **PAIR})
