"""A block-recurrent transformer beside block-recurrent-transformer-pytorch: a training step, and a generated token.

    python benchmarks/recurrent.py

Both have the same layers and numbers of channels (the peer a little more parameters: two maps in a row where one is
enough). The peer is timed with its own attention, which is its default, and with PyTorch's fused kernel. All are timed
in turn, several rounds of it, so that a busy moment of the machine hits all of them alike. The cost of a token is that
of `generate` for some tokens less that for one, so that reading the prompt is not counted.
"""

import argparse
import warnings
from typing import Any

import torch
from common import keep, median, milliseconds, show
from torch import Tensor, nn

from xflash import BlockRecurrentTransformer
from xflash.experiments.clock import flushed

OURS, PEER, FUSED = "xflash", "peer", "peer, fused attention"


def build(name: str, options: argparse.Namespace) -> nn.Module:
    from block_recurrent_transformer_pytorch import BlockRecurrentTransformer as Peer

    torch.manual_seed(0)
    flags: dict[str, Any] = {
        "num_tokens": 256,
        "dim": options.dim,
        "depth": options.depth,
        "heads": max(1, options.dim // 64),
        "dim_head": 64,
        "max_seq_len": options.n,
        "block_width": options.block_width,
    }
    model = BlockRecurrentTransformer(**flags) if name == OURS else Peer(**flags, use_flash_attn=name == FUSED)
    return model.to(options.device)


def train_step(model: nn.Module, ids: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    out = model(ids, return_loss=True)
    (out[0] if isinstance(out, tuple) else out).backward()


def generated(model: nn.Module, prime: Tensor, count: int, device: str) -> float:
    """Milliseconds of making `count` tokens behind the prime."""
    return milliseconds(lambda: model.generate(prime, prime.shape[1] + count), device)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    ids = torch.randint(256, (1, options.n + 1), generator=torch.Generator().manual_seed(0)).to(options.device)
    models = {name: build(name, options) for name in (OURS, PEER, FUSED)}
    steps: dict[str, list[float]] = {name: [] for name in models}
    tokens: dict[str, list[float]] = {name: [] for name in models}
    for i in range(options.rounds + 1):
        for name, model in models.items():
            took = milliseconds(lambda m=model: train_step(m.train(), ids), options.device)
            if i:
                steps[name].append(took)
    for _ in range(options.rounds):
        for name, model in models.items():
            prime, count = ids[:, : options.prompt], options.tokens if name == OURS else options.peer_tokens
            one, all_of_them = (generated(model.eval(), prime, c, options.device) for c in (1, 1 + count))
            tokens[name].append((all_of_them - one) / count)
    return [
        {
            "model": name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "step_ms": median(steps[name]),
            "times_as_long": median([theirs / ours for theirs, ours in zip(steps[name], steps[OURS], strict=True)]),
            "token_ms": median(tokens[name]),
            "token_times": median([theirs / ours for theirs, ours in zip(tokens[name], tokens[OURS], strict=True)]),
        }
        for name, model in models.items()
    ]


def read_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n", type=int, default=4096, help="tokens of a training step")
    sizes = {"dim": 256, "depth": 4, "block_width": 256, "prompt": 960, "tokens": 64, "peer_tokens": 8, "rounds": 5}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(words)


@flushed()
def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    options = read_options(words)
    # The peer names a context manager that PyTorch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning)
    rows = measure(options)
    show(
        ["model", "parameters", f"step of {options.n:,}, ms", "ratio", f"token after {options.prompt}, ms", "ratio"],
        [list(row.values()) for row in rows],
    )
    print("ratio: how many times as long as xflash, the median over rounds")
    print(keep("recurrent", {"options": vars(options), "rows": rows}, options.device))
    return rows


if __name__ == "__main__":
    main()
