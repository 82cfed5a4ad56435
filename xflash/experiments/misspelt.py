"""What a keyword of `compare` was meant as that is neither a setting nor a flag."""

import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from ..base.checks import shown
from ..base.registry import nearest
from .settings import Settings

__all__ = ["as_setting", "check_names", "check_settings"]

SETTINGS = tuple(field.name for field in fields(Settings))
# What other trainers call them, and what says the same here.
ELSEWHERE = {
    **dict.fromkeys(("batch_size", "bs", "per_device_train_batch_size"), "batch={}"),
    **dict.fromkeys(("steps", "max_steps", "num_steps", "num_train_steps", "iterations"), "budget='{} steps'"),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs"), "budget='2000 steps'"),
    **dict.fromkeys(("seed", "random_seed"), "seeds=({},)"),
    **dict.fromkeys(("num_seeds", "n_seeds"), "seeds={}"),
    **dict.fromkeys(("seq_length", "sequence_length", "context_length", "block_size", "ctx_len"), "seq_len={}"),
    **dict.fromkeys(("learning_rate", "lrs", "rate", "rates"), "lr={}"),
    **dict.fromkeys(("wd",), "weight_decay={}"),
    **dict.fromkeys(("warmup_steps", "num_warmup_steps"), "warmup={}"),
    **dict.fromkeys(("grad_clip", "max_grad_norm", "gradient_clip_val"), "clip={}"),
    **dict.fromkeys(("adam_beta2",), "beta2={}"),
}


def check_names(given: Mapping[str, Any]) -> None:
    """TypeError for a setting that is called otherwise here."""
    for name, value in given.items():
        if name in ELSEWHERE:
            raise TypeError(f"compare has no setting {name!r}: write {ELSEWHERE[name].format(value)}")


def check_settings(given: Collection[str], unused: Mapping[str, str]) -> None:
    """ValueError for a setting that data of this kind have no use for, with the reason."""
    for name in given:
        if name in unused:
            raise ValueError(f"{name} is set, but {unused[name]}: leave it out")


def as_setting(error: Exception) -> str:
    """What an unknown flag may have been meant as, among the settings of a comparison; a near one stands alone."""
    text = str(error)
    unknown = re.match(r"(?:.*: )?unknown flag '(\w+)'", text)
    meant = nearest(unknown[1], SETTINGS) if unknown else ""
    if not unknown or not meant or meant in text:
        return text
    return f"{shown(unknown[1])} is no flag, and no setting of compare{meant}"
