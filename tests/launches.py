"""What a layer costs a GPU, counted on the stand-in device: launches and megabytes, for tests/stack/test_device.py.

    python tests/launches.py            prints the table that tests/launches.json holds
    python tests/launches.py --write    writes it anew, which is to be done on purpose only

Every registered block by itself, and the ways that differ on a GPU: a training step on 8 rows of 2,048 tokens in
bfloat16 at dim 1024, and a token of 64 rows of unlike lengths. Each is a stack of one layer, with its positions and its
last norm. A process of its own, as tests/on_device.py.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from cases import COMPANY
from roofline_device import DEVICE, moved
from roofline_run import simulated

from xflash import AttentionLayers
from xflash.base.registry import blocks

TABLE = Path(__file__).parent / "launches.json"
DIM, HEADS, CONTEXT = 1024, 16, 512
TRAIN, TOKEN = (8, 2048), (64, 520)
# Rows of what goes through a text block after block: two blocks tell as much as four.
SHORTER = {"recurrent": (8, 1024), "state_read": (8, 1024)}
Row = list[float]

# Ways of attention that a GPU has other kernels for, and of what works in blocks: layout, flags, what is given beside.
WAYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "attn, rotary": ("attn", {"pos": "rotary"}, ""),
    "attn, window": ("attn", {"attn_window": 512}, ""),
    "attn, alibi": ("attn", {"pos": "alibi"}, ""),
    "attn, rel_pos": ("attn", {"pos": "rel_pos"}, ""),
    "attn, documents": ("attn", {}, "doc_ids"),
    "attn, padded": ("attn", {}, "mask"),
    "attn, both ways, padded": ("attn", {"causal": False}, "mask"),
    "flash, rotary": ("flash", {"pos": "rotary"}, ""),
    "flash, documents": ("flash", {"flash_max_documents": 4}, "doc_ids"),
    "flash, both ways": ("flash", {"causal": False}, ""),
    "block_attn, documents": ("block_attn", {}, "doc_ids"),
}


def stack_of(layers: str, causal: bool = True, **flags: Any) -> AttentionLayers:
    wide = {f"{name}_dim_context": DIM for name in ("cross_attn", "cross_gau") if name in layers}
    with torch.device("meta"):
        return AttentionLayers(dim=DIM, depth=1, heads=HEADS, layers=layers, causal=causal, **wide, **flags)


def there(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE)


def beside(stack: AttentionLayers, rows: int) -> dict[str, Any]:
    wanted = any(block.context_width() for block in stack.blocks())
    return {"context": there((rows, CONTEXT, DIM), torch.bfloat16)} if wanted else {}


def trained(stack: AttentionLayers, given: str) -> Callable[[], Any]:
    rows, n = next((size for name, size in SHORTER.items() if name in stack.arguments["layers"]), TRAIN)
    more = {given: there((rows, n), torch.bool if given == "mask" else torch.long)} if given else {}

    def step() -> None:
        x = there((rows, n, DIM), torch.bfloat16).requires_grad_()
        stack.train()(x, **beside(stack, rows), **more).backward(torch.empty_like(x))

    return step


@torch.no_grad()
def decoded(stack: AttentionLayers, given: str) -> Callable[[], Any]:
    rows, n = TOKEN
    mask, token = there((rows, n), torch.bool), there((rows, 1, DIM), torch.bfloat16)
    _, state = stack.eval().step(there((rows, n, DIM), torch.bfloat16), None, mask, **beside(stack, rows))
    _, state = stack.step(token, state)
    return torch.no_grad()(lambda: stack.step(token, state))


def costs(layers: str, flags: dict[str, Any], prepared: Callable[..., Callable[[], Any]], given: str = "") -> Row:
    """Launches and megabytes."""
    stack: nn.Module = stack_of(layers, **flags)
    with simulated(memory=False) as run:
        call = prepared(moved(stack, torch.bfloat16), given)
        with run.counted() as count:
            call()
    return [count.launches, round(count.bytes / 1e6, 2)]


def table() -> Iterator[tuple[str, Row]]:
    for name in blocks:
        layers = COMPANY.get(name, name)
        yield name, costs(layers, {}, trained)
        yield f"{name}, a token", costs(layers, {}, decoded)
    for name, (layers, flags, given) in WAYS.items():
        yield name, costs(layers, flags, trained, given)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"to {TABLE.name}")
    options = parser.parse_args(words)
    warnings.filterwarnings("ignore")
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in table()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if options.write:
        TABLE.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
