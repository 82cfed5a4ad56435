"""What a training step's time goes to: its matrix products, its other operations, and what stands between them.

    python benchmarks/shares.py

The CPU time of a step of causal FLASH layers and of block-recurrent transformers, beside the peers, in turn; a ratio
is the median of the rounds' ratios. CPU time does not grow when others use the machine. Page faults do cost it: memory
that a step gives back to the system is cleared page by page when the next one takes it, which is most of what differs
from run to run. `MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=4000000000` in front of the command keeps it.
The shares are PyTorch's profiler's. `bound` is the ratio that there would be if xflash took no time but for its
products.
"""

import argparse
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import recurrent
import torch
from common import keep, median, show
from contenders import DIM, layer, training
from torch.profiler import ProfilerActivity, profile

OURS, PEER = "xflash", "peer"
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "_addmm_activation", "mkldnn_linear", "addmv", "mv"}


def shares(call: Callable[[], Any]) -> tuple[float, float, float]:
    """The parts of a call's time in products, in other operations of PyTorch's, and outside of them."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        call()
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    inside = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in events if "aten::" in event.key}
    products = sum(spent for name, spent in inside.items() if name.rstrip("_") in PRODUCTS or "attention" in name)
    return products / total, (sum(inside.values()) - products) / total, 1 - sum(inside.values()) / total


def spent(call: Callable[[], Any]) -> tuple[float, int]:
    """Milliseconds of this process's CPU time that a call takes, and the pages it makes the system find."""
    faults, begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
    call()
    took = 1000 * (time.process_time() - begun)
    return took, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


def cases(options: argparse.Namespace) -> dict[str, dict[str, Callable[[], Any]]]:
    """The calls of either side, by what they do."""
    found = {}
    for n, dtype in zip(options.lengths, options.dtypes, strict=True):
        label = f"causal FLASH layer, {n:,} tokens, {dtype}"
        found[label] = {side: training(layer(f"flash {side}"), n, dtype) for side in (PEER, OURS)}
    asked = ["--n", str(options.recurrent), "--block_width", str(options.block_width)]
    settings = recurrent.read_options([*asked, "--dim", str(DIM), "--depth", "2"])
    ids = torch.randint(256, (1, settings.n + 1), generator=torch.Generator().manual_seed(0))
    nets = {side: recurrent.build(side, settings).train() for side in (PEER, OURS)}
    found[f"block-recurrent transformer, {settings.n:,} tokens"] = {
        side: lambda net=net: recurrent.train_step(net, ids) for side, net in nets.items()
    }
    return found


def measured(what: str, calls: dict[str, Callable[[], Any]], rounds: int) -> list[dict[str, Any]]:
    """A row for each side."""
    times: dict[str, list[float]] = {side: [] for side in calls}
    faults: dict[str, list[int]] = {side: [] for side in calls}
    for i in range(rounds + 1):
        for side in list(calls) if i % 2 else list(calls)[::-1]:
            took, pages = spent(calls[side])
            if i:
                times[side].append(took)
                faults[side].append(pages)
    parts = {side: shares(call) for side, call in calls.items()}
    alone = median(times[OURS]) * parts[OURS][0]
    return [
        {
            "what": what,
            "side": side,
            "ms": median(times[side]),
            "ratio": median([took / ours for took, ours in zip(times[side], times[OURS], strict=True)]),
            "bound": median(times[side]) / alone,
            **dict(zip(("products", "others", "outside"), parts[side], strict=True)),
            "faults": median(faults[side]),
        }
        for side in calls
    ]


def read_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="*", default=[4096, 4096, 16_384])
    parser.add_argument("--dtypes", nargs="*", choices=["fp32", "bf16"], default=["fp32", "bf16", "fp32"])
    parser.add_argument("--recurrent", type=int, default=4096, help="tokens of the block-recurrent transformers")
    parser.add_argument("--block_width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    options = read_options(words)
    torch.set_num_threads(1)
    # The peer names a context manager that PyTorch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning)
    rows = [row for what, calls in cases(options).items() for row in measured(what, calls, options.rounds)]
    show(list(rows[0]), [list(row.values()) for row in rows])
    print("ratio: how many times the CPU time of xflash; bound: of xflash's products alone; faults: pages a step")
    print(keep("shares", {"options": vars(options), "rows": rows}))
    return rows


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    main()
