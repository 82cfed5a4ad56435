"""What the training scripts beside this file share: their command line, the optimizer and its learning rate."""

import ast
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, Protocol, TypeVar

import torch
import tyro
from torch import nn

from xflash.registry import nearest

O = TypeVar("O")  # noqa: E741


class Recipe(Protocol):
    """The options that the optimizer and its learning rate are made of."""

    lr: float
    warmup: int
    weight_decay: float


def read_command_line(kind: type[O], arguments: Sequence[str], positive: Iterable[str]) -> tuple[O, dict[str, Any]]:
    """The options, and whatever else is written `--flag value`: flags of the model, which checks them itself.

    ValueError for a word that belongs to nothing, or when one of the options `positive` is not above 0.
    """
    options, rest = tyro.cli(kind, args=arguments, return_unknown_args=True)
    flags: dict[str, Any] = {}
    words = list(itertools.chain.from_iterable(word.split("=", 1) if word[:2] == "--" else [word] for word in rest))
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"cannot place {word!r}: options and flags are written --name value")
        bare = not words or words[0].startswith("--")
        flags[word[2:].replace("-", "_")] = True if bare else literal(words.pop(0))
    for name in positive:
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            raise ValueError(f"--{name} must be above 0, not {getattr(options, name)}")
    return options, flags


def literal(word: str) -> Any:
    """A Python value where it reads as one (3, 0.5, True, None, (1, 2)), else the text itself."""
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


def with_options(error: TypeError, flags: Iterable[str], kind: type) -> TypeError:
    """The stack's error about an unknown flag, which may have been meant as an option of the script."""
    unknown = next((name for name in flags if f"unknown flag {name!r}" in str(error)), "")
    meant = nearest(unknown, [f.name for f in fields(kind)])
    return TypeError(f"{error}{meant and ' (or, among the options of this script' + meant + ')'}")


def make_optimizer(model: nn.Module, options: Recipe) -> torch.optim.Optimizer:
    """AdamW; weight decay for matrices only, since norms, biases and scales have no reason to be near zero."""
    used = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in used if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in used if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98))


def learning_rate(step: int, total: int | None, options: Recipe) -> float:
    """Up in a line, then down a cosine to a tenth: a function of the step alone, so that a resumed run has the same."""
    if total is None or step < options.warmup:
        return options.lr * min(1.0, (step + 1) / max(1, options.warmup))
    done = (step - options.warmup) / max(1, total - options.warmup)
    return options.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done))))


def half_precision(device: str) -> torch.autocast:
    """bfloat16 where it is fast; on a CPU everything stays in float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device.startswith("cuda"))
