"""What a decoded token of softmax attention costs at the least: its products and reads alone, beside the whole step.

    python benchmarks/floor.py

A token behind n others reads every weight and all n keys and values once; how fast memory is read then bounds every
implementation that keeps them in float32. One thread, unless --threads says otherwise.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from common import keep, median, show
from compare import COMPILED, OURS, tokens_in_turn
from contenders import DIM, HEADS, VOCABULARY, decoding, model

from xflash.experiments.clock import flushed

DEPTH = 4
# Of the matrices that a token is multiplied by.
SHAPES = [(3 * DIM, DIM), (DIM, DIM), (4 * DIM, DIM), (DIM, 4 * DIM)] * DEPTH + [(VOCABULARY, DIM)]


def parts(n: int, device: str) -> dict[str, Callable[[], Any]]:
    """What one token does at the least, each part for all layers."""
    chance = torch.Generator().manual_seed(0)
    width = DIM // HEADS

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance).to(device)

    weights = [numbers(*shape) for shape in SHAPES]
    tokens = {size: numbers(1, 1, size) for size in {shape[1] for shape in SHAPES}}
    q = numbers(1, HEADS, 1, width)
    held = [(numbers(1, HEADS, 2 * n, width), numbers(1, HEADS, 2 * n, width)) for _ in range(DEPTH)]
    # Views of buffers with room to grow, as in a state.
    views = [(k[:, :, :n], v[:, :, :n]) for k, v in held]

    def products() -> None:
        for weight in weights:
            F.linear(tokens[weight.shape[1]], weight)

    def attention() -> None:
        for k, v in views:
            F.scaled_dot_product_attention(q, k, v)

    def both() -> None:
        products()
        attention()

    return {
        "products with the weights": products,
        "attention": attention,
        "products and attention": both,
    }


def read_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 2048])
    parser.add_argument("--tokens", type=int, default=64, help="decoded in a row")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(words)


@flushed()
def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    options = read_options(words)
    torch.set_num_threads(options.threads)
    rows = []
    for n in options.contexts:
        sides = {"x-transformers": "softmax peer, attn_flash", OURS: f"softmax {OURS}", COMPILED: f"softmax {COMPILED}"}
        begin = {
            name: decoding(side, model(side, DEPTH, n + options.tokens + 2), n, options.device)
            for name, side in sides.items()
        }
        with torch.inference_mode():
            begin |= {name: lambda call=call: call for name, call in parts(n, options.device).items()}
            times = tokens_in_turn(begin, dict.fromkeys(begin, options.tokens), options.rounds, options.device)
        rows += [{"context": n, "what": name, "ms": median(taken)} for name, taken in times.items()]
    show(["what", "context", "ms a token"], [[row["what"], row["context"], row["ms"]] for row in rows])
    weights = sum(rows * columns for rows, columns in SHAPES)
    for n in options.contexts:
        kept = 2 * DEPTH * n * DIM
        print(f"behind {n:,} tokens: {4 * weights / 1e6:.1f} MB of weights, {4 * kept / 1e6:.1f} MB of keys and values")
    print(keep("floor", {"options": vars(options), "rows": rows}, options.device))
    return rows


if __name__ == "__main__":
    main()
