"""The cost of decoding one token behind more and more context: a FLASH stack beside softmax attention.

    python benchmarks/decode_cost.py

Both are read up to each context length through `step`, in pieces; then tokens are decoded one by one from there. The
state of a FLASH stack does not grow, so its line is flat; softmax attention looks at every token there was. The
lengths are measured in turn, several rounds of it, so that a busy moment of the machine hits all of them alike.
"""

import argparse
from typing import Any

import torch
from common import RESULTS, keep, median, milliseconds, show
from torch import Tensor

from xflash import Decoder, TransformerWrapper
from xflash.base.state import tensors
from xflash.experiments.clock import flushed

# About equal in parameters: two FLASH layers stand for attention and feed-forward.
STACKS: dict[str, dict[str, Any]] = {
    "flash": {"layers": "flash", "depth": 8, "flash_group_size": 128},
    "attn ff": {"layers": "attn ff", "depth": 4},
}
PIECE, WARM = 512, 4


def build(name: str, dim: int, device: str) -> TransformerWrapper:
    torch.manual_seed(0)
    stack = Decoder(dim=dim, heads=max(1, dim // 64), pos="rotary", **STACKS[name])
    return TransformerWrapper(num_tokens=256, attn_layers=stack, use_abs_pos_emb=False).to(device).eval()


def bytes_of(state: Any) -> int:
    """The memory a state holds, buffers with room to grow at their full size."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(state)}
    return sum(storages.values())


def prefill(model: TransformerWrapper, ids: Tensor, contexts: list[int]) -> dict[int, Any]:
    """The state behind the first c tokens, for every c; a state is a value, so that all of them can be kept."""
    states, state, at = {}, None, 0
    for end in contexts:
        while at < end:
            _, state = model.step(ids[:, at : min(at + PIECE, end)], state)
            at = min(at + PIECE, end)
        states[end] = state
    return states


def decode(model: TransformerWrapper, state: Any, token: Tensor, count: int, device: str) -> tuple[list[float], Any]:
    """Milliseconds for each of `count` tokens, one after another, and the state behind them."""
    times = []
    for i in range(WARM + count):
        box: list[Any] = []
        took = milliseconds(lambda s=state, box=box: box.extend(model.step(token, s)), device)
        state = box[1]
        if i >= WARM:
            times.append(took)
    return times, state


def measure(name: str, options: argparse.Namespace, ids: Tensor) -> list[dict[str, Any]]:
    """A row for every context length."""
    model = build(name, options.dim, options.device)
    states = prefill(model, ids, options.contexts)
    times: dict[int, list[float]] = {c: [] for c in options.contexts}
    held = {}
    for _ in range(options.rounds):
        for context in options.contexts:
            taken, after = decode(model, states[context], ids[:, :1], options.tokens, options.device)
            times[context] += taken
            held[context] = bytes_of(after)
    parameters = sum(p.numel() for p in model.parameters())
    return [
        {"stack": name, "parameters": parameters, "context": c, "ms": median(times[c]), "state_mb": held[c] / 2**20}
        for c in options.contexts
    ]


def plot(rows: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(7, 4.5), layout="constrained")).add_subplot()
    for name in STACKS:
        own = [row for row in rows if row["stack"] == name]
        axes.plot([row["context"] for row in own], [row["ms"] for row in own], "o-", label=repr(name))
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens of context", ylabel="ms a token (median)", ylim=(0, None))
    axes.legend()
    figure.savefig(RESULTS / "decode_cost.png", dpi=120)


def read_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[2**i for i in range(8, 15)])
    parser.add_argument("--tokens", type=int, default=128, help="decoded at each length in a round (a whole group)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(words)


@torch.inference_mode()
@flushed()
def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    options = read_options(words)
    options.contexts = sorted(options.contexts)
    ids = torch.randint(256, (1, options.contexts[-1]), generator=torch.Generator().manual_seed(0)).to(options.device)
    rows = [row for name in STACKS for row in measure(name, options, ids)]
    show(["stack", "parameters", "context", "ms a token", "state MB"], [list(row.values()) for row in rows])
    for name in STACKS:
        own = [row for row in rows if row["stack"] == name]
        first, last = own[0], own[-1]
        print(
            f"{name!r}: {last['ms'] / first['ms']:.2f} times as long at {last['context']:,} as at {first['context']:,}"
        )
    path = keep("decode_cost", {"options": vars(options), "rows": rows}, options.device)
    plot(rows)
    print(f"{path} and {RESULTS / 'decode_cost.png'}")
    return rows


if __name__ == "__main__":
    main()
