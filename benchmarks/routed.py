"""What a long memory costs: a stack that retrieves from up to 250,000 tokens, while it reads and while it decodes.

    python benchmarks/routed.py

Random ids are read in segments. At each length there is the time of the last segment, the time of tokens decoded one by
one from there, the memory that the state holds and the most that the process has held so far. The weights say nothing,
for what is found has no part in what it costs: every query and head finds its `retrieve` best, exactly.
"""

import argparse
import resource
import sys
from typing import Any

import torch
from common import keep, median, milliseconds, show

from xflash import Decoder, TransformerWrapper
from xflash.base.state import tensors
from xflash.experiments.clock import flushed

COLUMNS = ["tokens read", "s a segment", "ms a token", "state MB", "peak RSS MB"]


def build(options: argparse.Namespace) -> TransformerWrapper:
    torch.manual_seed(0)
    stack = Decoder(
        dim=options.dim,
        depth=1,
        heads=options.heads,
        layers="block_attn ff",
        pos="rotary",
        block_attn_block_width=options.block_width,
        block_attn_dim_head=options.dim // options.heads,
        block_attn_cosine=True,
        block_attn_retrieve=options.retrieve,
        # Room for every token, also where the last length is no whole number of blocks.
        block_attn_retrieve_len=-(-max(options.lengths) // options.block_width) * options.block_width,
    )
    return TransformerWrapper(num_tokens=256, attn_layers=stack, use_abs_pos_emb=False).to(options.device).eval()


def peak_rss() -> float:
    """The most memory the process has held, in MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def state_mb(state: Any) -> float:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(state)}
    return sum(storages.values()) / 2**20


def cut(lengths: list[int], segment: int) -> list[tuple[int, int]]:
    """Where segments begin and end, so that one ends at each length."""
    ends = sorted({*lengths, *range(segment, max(lengths), segment)})
    return list(zip([0, *ends], ends, strict=False))


def decode(model: TransformerWrapper, state: Any, count: int, device: str) -> float:
    """Milliseconds a token, the median; a state is a value, so that reading goes on from where it was."""
    times, token = [], torch.zeros(1, 1, dtype=torch.long, device=device)
    for _ in range(count):
        box: list[Any] = []
        times.append(milliseconds(lambda s=state, box=box: box.extend(model.step(token, s)), device))
        state = box[1]
    return median(times)


def read_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 16_384, 65_536, 250_000])
    parser.add_argument("--segment", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=33, help="decoded at each length")
    parser.add_argument("--retrieve", type=int, default=32)
    parser.add_argument("--block_width", type=int, default=512)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(words)


@torch.no_grad()
@flushed()
def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    options = read_options(words)
    model = build(options)
    ids = torch.randint(256, (1, max(options.lengths)), generator=torch.Generator().manual_seed(0)).to(options.device)
    rows: list[dict[str, Any]] = []
    state: Any = None
    for start, end in cut(options.lengths, options.segment):
        box: list[Any] = []
        piece = ids[:, start:end]
        took = milliseconds(lambda x=piece, s=state, box=box: box.extend(model.step(x, s)), options.device)
        state = box[1]
        if end in options.lengths:
            ms = decode(model, state, options.tokens, options.device)
            # Scaled to a whole segment, where a length cuts one short.
            whole = took * options.segment / (end - start)
            row = {"tokens": end, "segment_s": whole / 1000, "ms": ms, "state_mb": state_mb(state)}
            rows.append({**row, "peak_rss_mb": peak_rss()})
    show(COLUMNS, [list(row.values()) for row in rows])
    print(keep("routed", {"options": vars(options), "rows": rows}, options.device))
    return rows


if __name__ == "__main__":
    main()
