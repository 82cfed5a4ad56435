"""The rows of `compare.py` on a device, and what `roofline.py` predicts of what `on_gpu.py` measures there.

Predictions need no device: they are counted on a stand-in by the CPU, while others compare numbers.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import compare
import contenders
from gpu_models import models, scale_of
from on_gpu_decode import decoded, said, sizes

__all__ = ["cases", "drawn", "joined", "predicted"]

# In the order of their worth.
PARTS = ("flash", "gau", "softmax", "decode", "paper", "recurrent")
Row = dict[str, Any]
Cases = Iterator[tuple[str, Callable[[], Iterator[Row]]]]


def compared(part: str, options: Any) -> Iterator[Row]:
    sizes = ["--rounds", "3", "--tokens", "32", "--lengths", "512", "2048", "8192"]
    small = ["--rounds", "1", "--tokens", "3", "--lengths", "16", "32"]
    words = [part, *(small if options.tiny else sizes), "--device", options.device]
    with contextlib.ExitStack() as stack:
        if options.tiny:
            stack.enter_context(mock.patch.object(contenders, "DIM", 32))
            stack.enter_context(mock.patch.object(compare, "TOKENS", 32))
        for row in compare.PARTS[part](compare.read_options(words)):
            yield {name: value for name, value in row._asdict().items() if name != "part"}


def cases(options: Any) -> Cases:
    """xflash beside each library that is there."""
    for part in ("paper",) if options.tiny else PARTS:
        yield part, functools.partial(compared, part, options)


def row_of(count: Callable[[], Any], **more: Any) -> Iterator[Row]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = count()
    yield {"ms": row.ms, "host_ms": row.host_ms, "launches": row.launches, "peak_gb": row.peak_gb, **more}


def predicted(options: Any) -> Cases:
    """What the other parts measure, by the same names."""
    from roofline_rows import FLOOR, Model, Plain, Rows

    scale = scale_of(options)
    rows = Rows(scale)
    for b, n in scale.sizes:
        for name, model in {"floor": Model(Plain), **models()}.items():
            yield f"{b}x{n} {name}", functools.partial(row_of, functools.partial(rows.trained, name, model, b, n))
    for b, n, ragged in sizes(options):
        for name, kind in decoded().items():
            if kind.ragged or not ragged:
                count = functools.partial(rows.token, FLOOR if name == "floor" else name, b, n, ragged)
                size = said(b, n, ragged)
                yield f"{name}, {size}", functools.partial(row_of, count, of=name, size=size)


def joined(rows: list[Row]) -> list[tuple[str, float, float | None]]:
    """Everything that was timed, in ms, and what was predicted of it."""
    timed = [row for row in rows if "ms" in row and "depth" not in row]
    known = {(row.get("of", row["case"]), row.get("size")): row["ms"] for row in timed if row["part"] == "predicted"}
    measured = [row for row in timed if row["part"] in ("speed", "decode")]
    return [
        (", ".join(filter(None, (row["case"], row.get("size")))), row["ms"], known.get((row["case"], row.get("size"))))
        for row in measured
    ]


def drawn(rows: list[Row], path: Any) -> None:
    """A picture: each row's time as a bar, its prediction as a mark on it."""
    from matplotlib.figure import Figure

    found = joined(rows)[::-1]
    axes = (figure := Figure(figsize=(9, 1 + 0.2 * len(found)), layout="constrained")).add_subplot()
    axes.barh([name for name, _, _ in found], [ms for _, ms, _ in found], color="tab:blue", label="measured")
    marks = [(name, ms) for name, _, ms in found if ms is not None]
    axes.plot([ms for _, ms in marks], [name for name, _ in marks], "|", color="black", markersize=9, label="predicted")
    axes.set(xscale="log", xlabel="ms")
    axes.legend()
    figure.savefig(path, dpi=120)
