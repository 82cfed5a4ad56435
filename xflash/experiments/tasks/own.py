"""Models and losses of one's own: any function that makes a module, any that makes its loss."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ...base.checks import describe
from ...base.shapes import Tensor
from ..settings import Settings
from .task import Task, weighted

__all__ = ["Own", "source_of"]

DRAWS, HELD = 32, 2**31 - 1


class Own(Task):
    """`make_model(**flags)` makes a variant's module, `loss_fn(model, generator)` the mean loss of a batch it draws.

    The score is the mean loss, without dropout, of 32 batches that a generator of its own draws (a look: of 4).
    """

    flags: Mapping[str, Any] = {}
    prefixes = ()
    unit = "step"
    unused: Mapping[str, str] = dict.fromkeys(
        ("seq_len", "batch", "kind", "num_tokens", "num_layers", "patch_size", "held_out"),
        "loss_fn draws its batches",
    )
    on_meta = False

    def __init__(self, settings: Settings, make_model: Callable[..., nn.Module], loss_fn: Callable[..., Tensor]):
        super().__init__(settings, getattr(loss_fn, "__name__", type(loss_fn).__name__))
        self.make_model, self.loss_fn = make_model, loss_fn

    @property
    def units(self) -> int:
        return 1

    def describe(self) -> dict[str, Any] | None:
        sources = [source_of(self.make_model), source_of(self.loss_fn)]
        return None if None in sources else {"task": "Own", "sources": sources}

    def build(self, flags: Mapping[str, Any]) -> nn.Module:
        made = self.make_model(**flags)
        if not isinstance(made, nn.Module):
            raise TypeError(f"make_model must give a module, not {describe(made)}")
        return made

    def batch(self, generator: torch.Generator) -> tuple[Any, ...]:
        return (generator,)

    def loss(self, model: nn.Module, batch: tuple[Any, ...]) -> Tensor:
        loss = self.loss_fn(model, *batch)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise TypeError(f"loss_fn must give a tensor of one number, not {describe(loss)}")
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise TypeError("loss_fn must give a loss that depends on the model's parameters: this one has no gradient")
        return loss

    def score(self, model: nn.Module, look: bool) -> float:
        generator = torch.Generator().manual_seed(HELD)
        return weighted((self.loss(model, (generator,)), 1) for _ in range(DRAWS // 8 if look else DRAWS))


def source_of(made: Any) -> str | None:
    """A fingerprint of how a function or class is written; None where that is not known."""
    try:
        return hashlib.sha256(inspect.getsource(made).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return None
