"""One run: a variant, a rate and a seed."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..base.roles import param_groups
from .clock import seconds_of
from .settings import Settings
from .tasks.task import Task, moved
from .variants import Variant

__all__ = ["KEPT", "Lane", "optimizer_of"]

# What a checkpoint and a result have of a lane, beside its tensors.
KEPT = ("step", "total", "seconds", "losses", "looks", "score", "failed")
SLICE = 4


def optimizer_of(model: nn.Module, lr: float, settings: Settings) -> torch.optim.Optimizer:
    """AdamW; what multiplies decays, what does not stays."""
    groups = param_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, settings.beta2))


@dataclass
class Lane:
    """A run and how far it is: all that its next step depends on.

    `total` steps, None until the speed is known; `paces` are the seconds of a step, by slices; `losses` and `looks`
    have a step and a value each, `score` is that of all held-out data at the end. `failed` says why there is none.
    """

    variant: Variant
    lr: float
    seed: int
    task: Task
    device: torch.device
    key: str | None = None
    step: int = 0
    total: int | None = None
    seconds: float = 0.0
    paces: list[float] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    looks: list[tuple[int, float]] = field(default_factory=list)
    score: float | None = None
    failed: str = ""
    model: Any = None
    optimizer: Any = None
    chance: Any = None
    noise: Any = None

    @property
    def name(self) -> str:
        return self.variant.name

    @property
    def running(self) -> bool:
        return not self.failed and self.score is None and self.model is not None

    @property
    def done(self) -> bool:
        """Whether all its steps are taken; it may still lack its score."""
        return self.total is not None and self.step >= self.total

    @property
    def progress(self) -> float:
        """The share that is done: as good as nothing until it is known how much there is."""
        return self.step / self.total if self.total else self.step * 1e-9

    def begin(self) -> None:
        """The model of this seed, and the data's order, the same for all variants."""
        torch.manual_seed(self.seed)
        self.model = self.variant.built(self.task).to(self.device)
        self.noise = self.drawn()
        self.optimizer = optimizer_of(self.model, self.lr, self.task.settings)
        self.chance = torch.Generator().manual_seed(self.seed)

    def end(self) -> None:
        """Lets go of what only a run needs."""
        self.model = self.optimizer = self.chance = self.noise = None

    @property
    def gpus(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def drawn(self) -> list[torch.Tensor]:
        """Where torch's own chance is, of which dropout is drawn."""
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in self.gpus)]

    def advance(self) -> None:
        """A slice of steps, timed; what is not finite is found behind it, so that a GPU is waited for but once."""
        count = min(SLICE, self.total - self.step) if self.total else SLICE
        torch.set_rng_state(self.noise[0])
        for gpu, state in zip(self.gpus, self.noise[1:], strict=True):
            torch.cuda.set_rng_state(state, gpu)
        losses, seconds = seconds_of(lambda: [self.train() for _ in range(count)], self.device)
        self.noise = self.drawn()
        self.seconds += seconds
        self.paces.append(seconds / count)
        values = torch.stack(losses).tolist()
        self.losses += zip(range(self.step - count + 1, self.step + 1), values, strict=True)
        for step, value in self.losses[-count:]:
            if not math.isfinite(value):
                self.failed = f"diverged: the loss of step {step} is {value}"
                return

    def train(self) -> torch.Tensor:
        """One step."""
        settings = self.task.settings
        loss = self.task.loss(self.model, moved(self.task.batch(self.chance), self.device))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * share(self.step, self.total, settings.warmup)
        self.optimizer.step()
        self.step += 1
        return loss.detach().float()

    @torch.no_grad()
    def measure(self, look: bool) -> float:
        """The held-out score; a look, on a small part of it, is noted with its step."""
        self.model.eval()
        score = self.task.score(self.model, look)
        self.model.train()
        if look:
            self.looks.append((self.step, score))
        return score


def share(step: int, total: int | None, warmup: int) -> float:
    """Of the full rate: up in a line, then down a cosine to a tenth."""
    if total is None or step < warmup:
        return min(1.0, (step + 1) / max(1, warmup))
    done = (step - warmup) / max(1, total - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done)))
