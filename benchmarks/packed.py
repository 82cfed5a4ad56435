"""What packed documents cost: a training step of rows that hold several, beside one of rows that are one document each.

    python benchmarks/packed.py

The same tokens in the same stacks, with `doc_ids` and without; the two are timed in turn, several rounds of it, so that
a busy moment of the machine hits both alike. Documents end by chance, as many in each row as the options say.
"""

import argparse
from typing import Any

import torch
from common import keep, median, milliseconds, show
from torch import Tensor

from xflash import Decoder
from xflash.experiments.clock import flushed

LAYOUTS = ("attn ff", "gau", "flash", "block_attn ff", "recurrent ff")


def build(layers: str, options: argparse.Namespace) -> Decoder:
    torch.manual_seed(0)
    widths = {"flash": "group_size", "block_attn": "block_width", "recurrent": "block_width"}
    flags: dict[str, Any] = {f"{n}_{w}": options.width for n, w in widths.items() if n in layers.split()}
    if "recurrent" in layers:
        flags["recurrent_num_state_vectors"] = options.width
    stack = Decoder(
        dim=options.dim, depth=options.depth, heads=max(1, options.dim // 64), layers=layers, pos="rotary", **flags
    )
    return stack.to(options.device)


def documents(options: argparse.Namespace) -> Tensor:
    """The numbers of documents that end by chance."""
    chance = torch.Generator().manual_seed(1)
    ends = torch.rand(options.rows, options.n - 1, generator=chance).argsort(1)[:, : options.documents - 1]
    starts = torch.zeros(options.rows, options.n, dtype=torch.long).scatter(1, ends + 1, 1)
    return starts.cumsum(1).to(options.device)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    x, ids = torch.randn(options.rows, options.n, options.dim, device=options.device), documents(options)
    rows = []
    for layers in LAYOUTS:
        stack = build(layers, options)

        def train_step(stack: Decoder = stack, **beside: Tensor) -> None:
            stack.zero_grad(set_to_none=True)
            stack(x, **beside).square().mean().backward()

        took: dict[bool, list[float]] = {False: [], True: []}
        for i in range(options.rounds + 1):
            for packed, times in took.items():
                beside = {"doc_ids": ids} if packed else {}
                ms = milliseconds(lambda b=beside, t=train_step: t(**b), options.device)
                if i:
                    times.append(ms)
        ratio = median([packed / whole for whole, packed in zip(took[False], took[True], strict=True)])
        rows.append({"layers": layers, "ms": median(took[False]), "packed_ms": median(took[True]), "ratio": ratio})
    return rows


def read_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    sizes = {"n": 2048, "rows": 2, "documents": 8, "dim": 256, "depth": 2, "width": 128, "rounds": 5}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(words)


@flushed()
def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    options = read_options(words)
    rows = measure(options)
    show(
        ["layers", "one document, ms", f"{options.documents} documents, ms", "ratio"],
        [list(row.values()) for row in rows],
    )
    print("ratio: how many times as long with documents, the median over rounds")
    print(keep("packed", {"options": vars(options), "rows": rows}, options.device))
    return rows


if __name__ == "__main__":
    main()
