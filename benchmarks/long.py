"""How far a FLASH stack reaches on one machine: a million tokens read in one pass, and a training step of 65,536.

    python benchmarks/long.py

Reading goes by `step`, a segment at a time, without gradients: the state says all there is of what was read, so that
memory stays what it was. The training step keeps each layer's input (`grad_checkpoint`) and makes logits a few tokens
at a time (`loss_chunk`), and stands beside one without. Each is a process of its own, so that its peak is its own.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch
from common import keep, show
from peak import forget_peak, peak_mb
from routed import cut, state_mb

from xflash import AutoregressiveWrapper, Decoder, TransformerWrapper
from xflash.experiments.clock import flushed

VOCABULARY = 256
WAYS: dict[str, dict[str, Any]] = {"plain": {}, "checkpoint, chunks": {"grad_checkpoint": True}}


def build(options: argparse.Namespace, **flags: Any) -> TransformerWrapper:
    torch.manual_seed(0)
    stack = Decoder(dim=options.dim, depth=options.depth, layers="flash", pos="rotary", shift_tokens=1, **flags)
    return TransformerWrapper(num_tokens=VOCABULARY, attn_layers=stack, use_abs_pos_emb=False).to(options.device)


@torch.no_grad()
def read(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row at each of the lengths: the time so far, and what state and process hold."""
    model, chance = build(options).eval(), torch.Generator().manual_seed(0)
    rows, state = [], None
    model.step(torch.zeros(1, options.segment, dtype=torch.long, device=options.device))
    before, begun = peak_mb(), time.perf_counter()
    for start, end in cut(options.read, options.segment):
        ids = torch.randint(VOCABULARY, (1, end - start), generator=chance).to(options.device)
        _, state = model.step(ids, state)
        if end in options.read:
            row = {"tokens": end, "seconds": time.perf_counter() - begun, "state_mb": state_mb(state)}
            rows.append(row | {"more_mb": peak_mb() - before})
    return rows


def train(options: argparse.Namespace) -> dict[str, Any]:
    """The time of one training step, forward and backward, and the memory it takes beyond what there was."""
    way = WAYS[options.way]
    model = AutoregressiveWrapper(build(options, **way), **({"loss_chunk": options.chunk} if way else {}))
    ids = torch.randint(VOCABULARY, (1, options.tokens + 1), generator=torch.Generator().manual_seed(0))
    forget_peak()
    before, begun = peak_mb(), time.perf_counter()
    loss = model(ids.to(options.device))
    loss.backward()
    return {"seconds": time.perf_counter() - begun, "peak_mb": peak_mb() - before, "loss": loss.item()}


def apart(words: list[str]) -> Any:
    """What a process of its own finds."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def read_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--read", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="lengths to read")
    parser.add_argument("--segment", type=int, default=8192)
    parser.add_argument("--train", type=int, nargs="*", default=[16_384, 65_536], help="lengths to train at")
    parser.add_argument("--chunk", type=int, default=2048, help="tokens whose logits are made at once")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=("read", "train"), help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(words)


@flushed()
def main(words: list[str] | None = None) -> dict[str, Any]:
    options = read_options(words)
    if options.only:
        print(json.dumps(read(options) if options.only == "read" else train(options)))
        return {}
    same = [f"--{name}={getattr(options, name)}" for name in ("segment", "chunk", "dim", "depth", "device")]
    rows = apart([*same, "--only=read", "--read", *map(str, options.read)]) if options.read else []
    show(
        ("tokens read", "seconds", "tokens/s", "state MB", "more MB"),
        [(f"{r['tokens']:,}", r["seconds"], r["tokens"] / r["seconds"], r["state_mb"], r["more_mb"]) for r in rows],
    )
    steps = [
        {"way": way, "tokens": n, **apart([*same, "--only=train", f"--way={way}", f"--tokens={n}"])}
        for n in options.train
        for way in WAYS
    ]
    show(
        ("training step", "tokens", "seconds", "peak MB", "loss"),
        [(r["way"], r["tokens"], r["seconds"], r["peak_mb"], r["loss"]) for r in steps],
    )
    result = {"options": vars(options), "read": rows, "train": steps}
    print(keep("long", result, options.device))
    return result


if __name__ == "__main__":
    main()
