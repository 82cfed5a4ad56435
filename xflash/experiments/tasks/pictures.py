"""Vision transformers: which class an image is of."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...base.shapes import Tensor
from ...datasets.images import Images
from ...stack.stacks import Encoder
from ...wrappers.vit import ViTransformerWrapper
from ..settings import Settings
from .task import Task, device_of, digest, split_flags

__all__ = ["Pictures"]


class Pictures(Task):
    """An `Encoder` of patches tells the class of an image; of each class a fifth is held out."""

    unit, score_name, better = "image", "accuracy", "more"
    unused: Mapping[str, str] = dict.fromkeys(("seq_len", "num_tokens", "kind"), "images have no tokens of a text")

    def __init__(self, settings: Settings, images: Images):
        super().__init__(settings, images.name)
        train, test = images.split()
        self.images, self.labels = train.scaled(), train.labels
        self.tests, self.answers = test.scaled()[: settings.held_out], test.labels[: settings.held_out]
        self.classes, self.side = images.classes, images.pixels.shape[-1]

    @property
    def units(self) -> int:
        return self.settings.batch

    @property
    def patch(self) -> int:
        """The side of a patch."""
        return self.settings.patch_size or max(1, self.side // 4)

    def describe(self) -> dict[str, Any]:
        parts = (self.images, self.labels, self.tests, self.answers)
        return {"task": "Pictures", "parts": [digest(part) for part in parts]}

    def build(self, flags: Mapping[str, Any]) -> nn.Module:
        given = ("image_size", "patch_size", "channels", "num_classes", "attn_layers")
        outer, inner = split_flags(flags, ViTransformerWrapper, given)
        sizes = {"image_size": self.side, "patch_size": self.patch, "channels": 1, "num_classes": self.classes}
        return ViTransformerWrapper(**sizes, attn_layers=Encoder(**inner), **outer)

    def batch(self, generator: torch.Generator) -> tuple[Any, ...]:
        rows = torch.randint(len(self.images), (self.settings.batch,), generator=generator)
        return self.images[rows], self.labels[rows]

    def loss(self, model: nn.Module, batch: tuple[Any, ...]) -> Tensor:
        img, labels = batch
        return F.cross_entropy(model(img), labels)

    def score(self, model: nn.Module, look: bool) -> float:
        device, step = device_of(model), 8 if look else 1
        images, labels = self.tests[::step], self.answers[::step]
        told = [model(part.to(device)).argmax(1).cpu() for part in images.split(max(self.settings.batch, 64))]
        return (torch.cat(told) == labels).double().mean().item()
