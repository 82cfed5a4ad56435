"""Whether a model learns to look content up: random tokens repeated with a period that differs from row to row.

    python benchmarks/recall.py

A row is 20 to 59 random symbols, over and over; from the second time on the next one can be known, but only by finding
where the present ones stood before: position alone does not tell, for the period is not known. n is the group size,
so that in FLASH the quadratic part has to do it. Lines beside xflash's: flash_pytorch's defaults, of the same size.
"""

import argparse
import json
import time
from typing import Any

import torch
import torch.nn.functional as F
from common import keep, median, show
from torch import Tensor, nn

from xflash import Decoder, FLASHTransformer, TransformerWrapper
from xflash.experiments.clock import flushed

PEER = "flash_pytorch"
OURS = "FLASHTransformer"


def build(name: str, options: argparse.Namespace) -> nn.Module:
    """A FLASHTransformer, theirs or ours, or an xflash stack of the layout `name`; sizes alike, defaults their own."""
    sizes = {"num_tokens": options.symbols, "dim": options.dim, "depth": options.depth, "group_size": options.n}
    if name == PEER:
        import flash_pytorch

        return flash_pytorch.FLASHTransformer(**sizes, causal=True)
    if name == OURS:
        return FLASHTransformer(**sizes, causal=True, **options.flags)
    stack = {"norm": "scalenorm", "pos": "rotary", "shift_tokens": 1, "layers": name, "depth": options.depth}
    if "flash" in name:
        stack["flash_group_size"] = options.n
    return TransformerWrapper(
        num_tokens=options.symbols,
        attn_layers=Decoder(dim=options.dim, **{**stack, **options.flags}),
        **options.wrapper_flags,
    )


def batch(rows: int, options: argparse.Namespace, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids (b, n), and where (b, n - 1) the next one is a repetition."""
    low, high = options.periods
    period = torch.randint(low, high + 1, (rows, 1), generator=chance)
    once = torch.randint(options.symbols, (rows, high), generator=chance)
    where = torch.arange(options.n)
    return once.gather(1, where % period), (where[1:] >= period)


@torch.no_grad()
def accuracy(model: nn.Module, options: argparse.Namespace) -> float:
    """The share of repeated tokens that are foretold, on rows that training has not seen."""
    chance = torch.Generator().manual_seed(12345)
    model.eval()
    right = total = 0
    for _ in range(8):
        ids, known = batch(options.batch, options, chance)
        hits = model(ids)[:, :-1].argmax(-1) == ids[:, 1:]
        right, total = right + hits[known].sum().item(), total + known.sum().item()
    model.train()
    return right / total


def train(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run: its accuracy at each of the steps asked for, and what it took."""
    torch.manual_seed(seed)
    model = build(name, options)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    chance = torch.Generator().manual_seed(seed)
    reached, begun = {}, time.perf_counter()
    for step in range(1, max(options.steps) + 1):
        ids, _ = batch(options.batch, options, chance)
        loss = F.cross_entropy(model(ids)[:, :-1].transpose(1, 2), ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in options.steps:
            reached[step] = accuracy(model, options)
    seconds = time.perf_counter() - begun
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"model": name, "seed": seed, "accuracy": reached, "parameters": parameters, "seconds": seconds}


def read_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="*", default=[OURS, PEER], help=f"{OURS}, {PEER} or layouts")
    for name, value in {"dim": 128, "depth": 4, "n": 128, "symbols": 64, "batch": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--periods", type=int, nargs=2, default=[20, 59], help="shortest and longest")
    parser.add_argument("--steps", type=int, nargs="+", default=[450, 750], help="where accuracy is measured")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--flags", type=json.loads, default={}, help="more flags of xflash's stack, as JSON")
    parser.add_argument("--wrapper_flags", type=json.loads, default={}, help="and of its TransformerWrapper")
    return parser.parse_args(words)


@flushed()
def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    options = read_options(words)
    rows = []
    for seed in options.seeds:
        for name in options.models:
            rows.append(train(name, seed, options))
            found = ", ".join(f"{share:.3f} after {step} steps" for step, share in rows[-1]["accuracy"].items())
            print(f"{name}, seed {seed}: {found} ({rows[-1]['seconds']:.0f} s)", flush=True)
    show(
        ["model", "seed", *(f"after {step}" for step in options.steps), "parameters", "seconds"],
        [[r["model"], r["seed"], *r["accuracy"].values(), r["parameters"], r["seconds"]] for r in rows],
    )
    last = max(options.steps)
    medians = {name: median([r["accuracy"][last] for r in rows if r["model"] == name]) for name in options.models}
    for name, value in medians.items():
        print(f"{name}: median {value:.3f} after {last} steps (chance is {1 / options.symbols:.3f})")
    print(keep("recall", {"options": vars(options), "medians": medians, "rows": rows}))
    return rows


if __name__ == "__main__":
    main()
