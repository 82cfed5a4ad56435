"""Encoder-decoders: a target told from its source."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ...base.shapes import Int, Tensor
from ...wrappers.xtransformer import XTransformer
from ..settings import Settings
from .rows import Rows
from .task import Task, device_of, digest, moved, weighted

__all__ = ["Halves", "Pairs"]

SIDES = {"enc_heads": 4, "dec_heads": 4}
DECIDED = ("num_tokens", "max_seq_len")
PAD = -100


def build(flags: Mapping[str, Any], tokens: tuple[int, int], lengths: tuple[int, int]) -> XTransformer:
    """The model, of vocabularies and lengths that the data has."""
    sizes = {}
    for prefix, count, length in zip(("enc_", "dec_"), tokens, lengths, strict=True):
        sizes |= {f"{prefix}num_tokens": count, f"{prefix}max_seq_len": length}
    for name in sizes:
        if name in flags:
            raise ValueError(f"{name}={flags[name]!r} is the data's to say: leave it out")
    return XTransformer(**sizes, **flags)


class Halves(Rows):
    """An encoder reads the first half of each row, a decoder tells the second, from its second token on."""

    flags: Mapping[str, Any] = {"dim": 128, **SIDES}
    prefixes = ("enc_", "dec_")

    def build(self, flags: Mapping[str, Any]) -> nn.Module:
        first = self.row // 2
        return build(flags, (self.num_tokens, self.num_tokens), (first, self.row - first))

    def given(self, batch: tuple[Any, ...]) -> tuple[Tensor, ...]:
        (ids,) = batch
        return ids[:, : self.row // 2], ids[:, self.row // 2 :]


class Pairs(Task):
    """Sources (rows, c) and targets (rows, n) of ids, padded with -100; the last tenth of the rows is held out."""

    flags: Mapping[str, Any] = {"dim": 128, **SIDES}
    prefixes = ("enc_", "dec_")
    unused: Mapping[str, str] = {
        "seq_len": "pairs are as long as they are",
        "kind": "pairs are for encoder-decoders",
        "patch_size": "pairs have no patches",
    }

    def __init__(self, settings: Settings, name: str, source: Int[Tensor, "r c"], target: Int[Tensor, "r n"]):
        super().__init__(settings, name)
        if len(source) != len(target) or len(source) < 10:
            raise ValueError(
                f"data has {len(source)} sources and {len(target)} targets; as many of both are needed, 10 at least"
            )
        for ids, which in ((source, "source"), (target, "target")):
            if not bool((ids != PAD).any()):
                raise ValueError(f"every {which} is padding (-100): there is nothing to train on")
        self.both = source.cpu(), target.cpu()
        self.train = len(source) * 9 // 10

    @property
    def row_tokens(self) -> int:
        return sum(ids.shape[1] for ids in self.both)

    def describe(self) -> dict[str, Any]:
        return {"task": "Pairs", "parts": [digest(part) for part in self.both]}

    def build(self, flags: Mapping[str, Any]) -> nn.Module:
        counts = [int(ids.max()) + 1 for ids in self.both]
        return build(flags, (counts[0], counts[1]), (self.both[0].shape[1], self.both[1].shape[1]))

    def batch(self, generator: torch.Generator) -> tuple[Any, ...]:
        return self.at(torch.randint(self.train, (self.settings.batch,), generator=generator))

    def at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.both[0][rows].long(), self.both[1][rows].long()

    def loss(self, model: nn.Module, batch: tuple[Any, ...], **options: Any) -> Any:
        source, target = batch
        mask = source != PAD
        return model(source.masked_fill(~mask, 0), target, mask=mask, tgt_mask=target != PAD, **options)

    def held(self, look: bool) -> Iterator[tuple[Any, ...]]:
        rows = torch.arange(self.train, len(self.both[0]))
        rows = rows[: max(1, self.settings.held_out // self.both[1].shape[1])]
        for part in (rows[: max(1, len(rows) // 8)] if look else rows).split(self.settings.batch):
            yield self.at(part)

    def score(self, model: nn.Module, look: bool) -> float:
        device = device_of(model)
        batches = (moved(batch, device) for batch in self.held(look))
        return weighted(self.loss(model, batch, reduction="sum", return_count=True) for batch in batches)
