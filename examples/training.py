"""What the training scripts beside this file share: command line, folders, optimizer, steps, and images that move."""

import ast
import inspect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from xflash.base.registry import nearest
from xflash.base.roles import param_groups

O = TypeVar("O")  # noqa: E741


class Recipe(Protocol):
    """The options that the optimizer and its learning rate are made of."""

    lr: float
    warmup: int
    weight_decay: float


def read_command_line(kind: type[O], arguments: Sequence[str], positive: Iterable[str]) -> tuple[O, dict[str, Any]]:
    """The options, and whatever else is written `--flag value`: flags of the model, which checks them itself.

    ValueError for a word that belongs to nothing, when one of the options `positive` is not above 0, for a --name that
    is no name of a folder, and for a --device that there is not.
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
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} must be above 0, not {value}")
    check_name(getattr(options, "name", None))
    check_device(getattr(options, "device", "cpu"))
    return options, flags


def check_name(name: str | None) -> None:
    """ValueError for a run's name that is no folder of its own in --runs."""
    if name is not None and (Path(name).parts != (name,) or name == ".." or "\0" in name):
        raise ValueError(f"--name {name!r} must be the name of a folder in --runs, not a path")


def check_device(device: str) -> None:
    """ValueError for a device that there is not."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    """What an error says, on one line and not for long; its name where it says nothing."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def literal(word: str) -> Any:
    """A Python value where it reads as one (3, 0.5, True, None, (1, 2)), else the text itself."""
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


def split_flags(flags: Mapping[str, Any], wrapper: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The flags that are arguments of the wrapper, and all others, which are the stack's."""
    known = inspect.signature(wrapper).parameters
    outer = {name: flags[name] for name in flags if name in known}
    return outer, {name: flags[name] for name in flags if name not in outer}


def free_name(prefix: str, runs: str) -> str:
    """The first of PREFIX-1, PREFIX-2 ... that is no folder in `runs` yet."""
    names = (f"{prefix}-{i}" for i in itertools.count(1))
    return next(name for name in names if not (Path(runs) / name).exists())


def with_options(error: TypeError, flags: Iterable[str], kind: type) -> TypeError:
    """The stack's error about an unknown flag, which may have been meant as an option of the script."""
    unknown = next((name for name in flags if f"unknown flag {name!r}" in str(error)), "")
    meant = nearest(unknown, [f.name for f in fields(kind)])
    if meant in str(error):
        return error
    return TypeError(f"{error}{meant and ' (or, among the options of this script' + meant + ')'}")


def make_optimizer(model: nn.Module, options: Recipe) -> torch.optim.Optimizer:
    """AdamW; weight decay for what multiplies only: gains, biases, positions and the like have no reason to be zero."""
    return torch.optim.AdamW(param_groups(model, options.weight_decay), lr=options.lr, betas=(0.9, 0.98))


def learning_rate(step: int, total: int | None, options: Recipe) -> float:
    """Up in a line, then down a cosine to a tenth: a function of the step alone, so that a resumed run has the same."""
    if total is None or step < options.warmup:
        return options.lr * min(1.0, (step + 1) / max(1, options.warmup))
    done = (step - options.warmup) / max(1, total - options.warmup)
    return options.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done))))


def half_precision(device: str) -> torch.autocast:
    """bfloat16 where it is fast; on a CPU everything stays in float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device.startswith("cuda"))


class Diverged(SystemExit):
    """Ends a script with a sentence where the numbers have come to nothing."""


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, clip: float) -> None:
    """One step down the loss's gradient, which is cut to the norm `clip`; `Diverged` where it is not finite."""
    optimizer.zero_grad()
    loss.backward()
    used = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(used, clip)
    if not norm.isfinite():
        raise Diverged(
            f"error: the loss is {loss.item():.3g} and its gradient {norm.item():.3g}; begin anew with a smaller --lr "
            "or a longer --warmup"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def patch_side(patch: int | None, side: int) -> int:
    """The side of a patch: what was asked for, else a quarter of the image's."""
    return patch or max(1, side // 4)


def moved(img: Tensor, amount: float, chance: torch.Generator) -> Tensor:
    """Each image turned, resized and shifted a little, by `amount` of 10 degrees, 10 % and 2 / 28 of its side."""
    if not amount:
        return img
    turn, size, right, down = (2 * torch.rand(4, len(img), generator=chance) - 1) * amount
    angle, scale = turn * torch.pi / 18, 1 + size / 10
    reach = 2 * 2 / 28  # the image goes from -1 to 1
    first = torch.stack((scale * angle.cos(), -scale * angle.sin(), right * reach), -1)
    second = torch.stack((scale * angle.sin(), scale * angle.cos(), down * reach), -1)
    grid = F.affine_grid(torch.stack((first, second), 1), list(img.shape), align_corners=False)
    return F.grid_sample(img, grid, align_corners=False)
