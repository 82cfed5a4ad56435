"""Bits per byte by the place of a byte in its document: memory shows as a curve that keeps falling."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from training import half_precision
from xflash import TransformerWrapper
from xflash.datasets.sequences import Rows

OCTAVES = 32


class ByPlace(NamedTuple):
    """The summed bits of the bytes in each octave of places (1, 2 to 3, 4 to 7 ...), and how many there are."""

    bits: Tensor
    count: Tensor

    def mean(self, octaves: slice = slice(None)) -> float | None:
        """Bits per byte of some octaves together; None where there are no bytes."""
        count = float(self.count[octaves].sum())
        return float(self.bits[octaves].sum()) / count if count else None


@torch.no_grad()
def bits_by_place(net: TransformerWrapper, rows: Rows, seq_len: int, device: str) -> ByPlace:
    """Reads documents segment by segment as in training; every byte but a document's first is predicted once."""
    found = ByPlace(*torch.zeros(2, OCTAVES, dtype=torch.float64))
    borders = 2 ** torch.arange(1, OCTAVES)
    net.eval()
    state = None
    for number, begins in enumerate(rows.starts.unbind(1)):
        here = slice(number * seq_len, (number + 1) * seq_len)
        reset = begins.to(device) if state is not None and begins.any() else None
        ids, real = rows.ids[:, here].long().to(device), rows.real[:, here].to(device)
        with half_precision(device):
            logits, state = net.step(ids, state, real, reset=reset)
        state = net.remember(state)
        # The byte behind each of the segment, if it is one of the same document.
        after = slice(here.start + 1, here.stop + 1)
        targets, offset = rows.ids[:, after].long(), rows.offset[:, after]
        counts = offset > 0
        lost = F.cross_entropy(logits[:, : targets.shape[1]].float().cpu().transpose(1, 2), targets, reduction="none")
        octave = torch.bucketize(offset[counts], borders, right=True)
        found.bits.index_add_(0, octave, lost[counts].double() / math.log(2))
        found.count.index_add_(0, octave, torch.ones_like(octave, dtype=torch.float64))
    net.train()
    return found


def report(found: Mapping[str, ByPlace], reach: int, folder: Path) -> None:
    """Both curves, and what the first model gains on the second where that knows of `reach` bytes at most."""
    first, second = found
    print(f"\nbits per byte of held-out documents, by place ({second} knows of the last {reach:,} bytes at most):")
    print(f"{'place':>20} {'bytes':>9} {first:>8} {second:>8} {'gap':>7}")
    for octave in range(OCTAVES):
        here, span = slice(octave, octave + 1), f"{2**octave:,} to {2 ** (octave + 1) - 1:,}"
        if found[first].mean(here) is not None:
            print(line(span, found, here))
    # The first octave whose every byte has more than that in front of it.
    beyond = slice(reach.bit_length(), None)
    print(line("all", found, slice(None)))
    result: dict[str, Any] = {"reach": reach, "octaves": {}, "all": {}, "beyond": {}}
    for name, curve in found.items():
        result["octaves"][name] = [curve.mean(slice(i, i + 1)) for i in range(OCTAVES)]
        result["all"][name], result["beyond"][name] = curve.mean(), curve.mean(beyond)
    result["gap_beyond"] = gap(found, beyond)
    if result["gap_beyond"] is None:
        print(f"no document reaches beyond the {reach:,} bytes that {second} can know of")
    else:
        print(line(f"from {2**beyond.start:,} on", found, beyond))
        print(f"beyond the reach of {second}, {first} needs {result['gap_beyond']:.3f} bits a byte less")
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    plot(found, reach, folder / "places.png")


def line(label: str, found: Mapping[str, ByPlace], octaves: slice) -> str:
    """A line of the table."""
    values = " ".join(f"{curve.mean(octaves):8.3f}" for curve in found.values())
    count = int(next(iter(found.values())).count[octaves].sum())
    return f"{label:>20} {count:>9,} {values} {gap(found, octaves):7.3f}"


def gap(found: Mapping[str, ByPlace], octaves: slice) -> float | None:
    """How many bits a byte the first model needs less than the second; None where there are no bytes."""
    first, second = (curve.mean(octaves) for curve in found.values())
    return None if first is None or second is None else second - first


def plot(found: Mapping[str, ByPlace], reach: int, file: Path) -> None:
    """Bits per byte against the place in the document."""
    from matplotlib.figure import Figure  # slow to import, and only needed now

    axes = (figure := Figure(figsize=(8, 5), layout="constrained")).add_subplot()
    for name, (bits, count) in found.items():
        there = count > 0
        axes.plot(2.0 ** (torch.arange(OCTAVES)[there] + 0.5), (bits / count)[there], "o-", label=name)
    axes.axvline(reach, ls=":", color="gray", label=f"reach of {list(found)[1]}")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="place in the document, bytes", ylabel="bits per byte")
    axes.legend()
    figure.savefig(file, dpi=120)
