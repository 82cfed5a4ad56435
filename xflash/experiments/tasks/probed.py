"""Probes: data that asks for one ability, with a score of its own."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import nn

from ...base.shapes import Tensor
from ...stack.stacks import Decoder, Encoder
from ...wrappers.transformer import TransformerWrapper
from ..settings import Settings
from .task import Task, device_of, split_flags

__all__ = ["Probe", "Probed"]

# The generator of held-out rows: no seed of a run.
HELD = 2**31 - 1


@runtime_checkable
class Probe(Protocol):
    """What is asked of a probe: rows with the answers that the logits at the same token must give, and their score."""

    name: str
    num_tokens: int
    seq_len: int
    causal: bool
    chance: float

    def draw(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...

    def score(self, logits: Tensor, labels: Tensor) -> float: ...

    def describe(self) -> dict[str, Any]: ...


class Probed(Task):
    """A model answers where the probe asks: a `Decoder` where only what stands before may answer, else an `Encoder`."""

    score_name, better = "right", "more"
    unused: Mapping[str, str] = {
        "seq_len": "a probe has a length of its own (probe.longer(...) gives another)",
        "num_tokens": "a probe has tokens of its own",
        "kind": "a probe says itself whether it is causal",
        "patch_size": "a probe has no patches",
    }

    def __init__(self, settings: Settings, probe: Probe):
        super().__init__(settings, f"{probe.name}, chance {probe.chance:.3g}")
        self.probe = probe

    @property
    def row_tokens(self) -> int:
        return self.probe.seq_len

    def describe(self) -> dict[str, Any]:
        return {"task": "Probed", "probe": self.probe.describe(), "causal": self.probe.causal}

    def build(self, flags: Mapping[str, Any]) -> nn.Module:
        outer, inner = split_flags(flags, TransformerWrapper, ("num_tokens", "max_seq_len", "attn_layers"))
        stack = (Decoder if self.probe.causal else Encoder)(**inner)
        sizes = {"num_tokens": self.probe.num_tokens, "max_seq_len": self.probe.seq_len}
        return TransformerWrapper(**sizes, attn_layers=stack, **outer)

    def batch(self, generator: torch.Generator) -> tuple[Any, ...]:
        return self.probe.draw(self.settings.batch, generator)

    def loss(self, model: nn.Module, batch: tuple[Any, ...]) -> Tensor:
        ids, labels = batch
        logits = model(ids)
        if labels.is_meta:
            return logits.float().mean()  # what is asked cannot be counted there
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())

    def score(self, model: nn.Module, look: bool) -> float:
        generator, device = torch.Generator().manual_seed(HELD), device_of(model)
        wanted = max(1, self.settings.held_out // self.probe.seq_len // (8 if look else 1))
        logits, labels = [], []
        for at in range(0, wanted, self.settings.batch):
            ids, asked = self.probe.draw(min(self.settings.batch, wanted - at), generator)
            logits.append(model(ids.to(device)).float().cpu())
            labels.append(asked)
        return float(self.probe.score(torch.cat(logits), torch.cat(labels)))

    def net(self, model: nn.Module) -> nn.Module | None:
        return model if self.probe.causal else None
