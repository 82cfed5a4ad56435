"""A needle across blocks: does what was stored many blocks ago come back when it is asked for?

    python examples/needle.py                                   (LSTM gates, 300 seconds of one core)
    python examples/needle.py --variants xl fixed lstm port --seeds 0 1 2

Rows of noise in blocks of 16 tokens. At a random place of the first block stands STORE and four symbols; some blocks
later stands QUERY, and the model, which sees two blocks at a time, has to give the four symbols. It is trained on gaps
of 1 to 5 blocks; longer ones ask whether the state vectors hold what they were never trained to hold for so long.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xflash import Decoder, TransformerWrapper, probes
from xflash.experiments.clock import flushed
from xflash.probes import Probe

GAPS = (1, 2, 3, 4, 5, 15, 31, 63)
# What each variant's layers beside the feed-forward ones are.
VARIANTS = {
    "xl": ("block_attn ff block_attn ff", {}),
    "fixed": ("block_attn ff recurrent ff", {}),
    "lstm": ("block_attn ff recurrent ff", {"recurrent_gate": "lstm"}),
    "gru": ("block_attn ff recurrent ff", {"recurrent_gate": "gru"}),
    "single": ("block_attn ff recurrent ff", {"recurrent_update": "single"}),
    "dual": ("block_attn ff recurrent ff", {"recurrent_update": "dual"}),
    "window": ("block_attn ff recurrent ff", {"recurrent_write_from": "window"}),
    "unscaled": ("block_attn ff recurrent ff", {"recurrent_cosine_scale": 16**-0.5}),
}
PORT = "port"


def needle(options: argparse.Namespace, gap: int | None = None) -> Probe:
    """Asked for `gap` blocks later, or for as many as training has, from one on."""
    blocks, gaps = (options.blocks, (1, options.blocks - 1)) if gap is None else (gap + 1, None)
    return probes.needle(seq_len=blocks * options.width, segment=options.width, gap=gaps)


def build(variant: str, options: argparse.Namespace) -> nn.Module:
    """Two layers of attention in blocks, one recurrent where the variant says so; `port` is the peer's model."""
    if variant == PORT:
        import block_recurrent_transformer_pytorch as peer

        return peer.BlockRecurrentTransformer(
            num_tokens=needle(options).num_tokens,
            dim=options.dim,
            depth=2,
            dim_head=16,
            heads=4,
            max_seq_len=max(GAPS) * options.width + options.width,
            block_width=options.width,
            num_state_vectors=options.states,
            recurrent_layers=(2,),
        )
    layers, flags = VARIANTS[variant]
    # The peer's sizes and feed-forward layers.
    sizes = {"block_width": options.width, "dim_head": 16, "kv_heads": 1}
    feed_forward = {"ff_glu": True, "ff_no_bias": True, "ff_dim": options.dim * 8 // 3}
    flags = {f"block_attn_{name}": value for name, value in sizes.items()} | flags
    if "recurrent" in layers:
        flags = {f"recurrent_{name}": value for name, value in sizes.items()} | flags
        flags["recurrent_num_state_vectors"] = options.states
    stack = Decoder(dim=options.dim, depth=1, heads=4, layers=layers, pos="rotary", **feed_forward, **flags)
    return TransformerWrapper(num_tokens=needle(options).num_tokens, attn_layers=stack)


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    out = model(ids)
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def accuracy(model: nn.Module, options: argparse.Namespace) -> dict[int, float]:
    """The share of symbols that are right, by gap; rows are as long as the gap asks for."""
    chance = torch.Generator().manual_seed(4321)
    model.eval()
    found = {}
    for gap in GAPS[: options.gaps]:
        probe = needle(options, gap)
        ids, labels = probe.draw(options.test_rows, chance)
        found[gap] = probe.score(logits_of(model, ids), labels)
    model.train()
    return found


@flushed()
def train(variant: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run of a variant: steps, and accuracy by gap."""
    torch.manual_seed(seed)
    model, probe = build(variant, options), needle(options)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    chance = torch.Generator().manual_seed(seed)
    begun, steps, loss = time.process_time(), 0, torch.tensor(0.0)
    while steps < options.steps if options.steps else time.process_time() - begun < options.seconds:
        ids, labels = probe.draw(options.batch, chance)
        asked = labels >= 0
        loss = F.cross_entropy(logits_of(model, ids)[asked], labels[asked])
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not norm.isfinite():
            sys.exit(f"error: the loss of {variant} is {loss.item():.3g} at step {steps + 1}; give a smaller --lr")
        optimizer.step()
        steps += 1
    return {
        "variant": variant,
        "seed": seed,
        "steps": steps,
        "loss": loss.item(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": accuracy(model, options),
    }


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    known = [*VARIANTS, PORT]
    parser.add_argument("--variants", nargs="+", default=["lstm"], choices=known, help=f"{PORT}: the peer's model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="of one core's time to train each")
    parser.add_argument("--steps", type=int, default=0, help="that many steps instead")
    for name, value in {"dim": 64, "width": 16, "states": 16, "blocks": 6, "batch": 16, "test_rows": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--gaps", type=int, default=len(GAPS), help=f"how many of the gaps {GAPS} are tested")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", default="runs/needle.json")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    options = read_options(words)
    out = Path(options.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: {error}")
    found = []
    print(f"{'variant':10} {'seed':>6} {'steps':>6}  gap " + " ".join(f"{gap:>5}" for gap in GAPS[: options.gaps]))
    for variant in options.variants:
        for seed in options.seeds:
            found.append(train(variant, seed, options))
            line = " ".join(f"{share:5.3f}" for share in found[-1]["accuracy"].values())
            print(f"{variant:10} {seed:>6} {found[-1]['steps']:>6}      {line}", flush=True)
        runs = [run["accuracy"] for run in found if run["variant"] == variant]
        if len(runs) > 1:
            middle = " ".join(f"{median(run[gap] for run in runs):5.3f}" for gap in runs[0])
            print(f"{variant:10} {'median':>6} {'':>6}      {middle}")
    print(f"chance is {needle(options).chance:.3f}; a stack without state vectors sees gaps of 1 and 2 only")
    out.write_text(json.dumps({"options": vars(options), "runs": found}, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main()
