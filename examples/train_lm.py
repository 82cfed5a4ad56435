"""Trains a byte-level language model on real text and shows what it has learned.

    python examples/train_lm.py                                               (about 90 seconds on two CPU cores)
    python examples/train_lm.py --layers 'attn ff' --depth 4 --rotary_pos_emb (any flag of the model can be added)
    python examples/train_lm.py --resume                                      (after Ctrl-C: as if nothing had been)

A run leaves runs/NAME/ with checkpoint.pt, log.jsonl, loss.png and the table of all flags.
"""

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Threads that wait without spinning: on a machine with anything else to do, steps are several times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from runs import Run, load, read_log, resume, start, train
from training import half_precision, learning_rate, read_command_line, split_flags, take_step, with_options
from xflash import AutoregressiveWrapper, Decoder, TransformerWrapper, data

# What the default layout is trained with; --layers starts from the defaults of the blocks.
RECIPE = {"flash_group_size": 64, "rotary_pos_emb": True, "shift_tokens": 1}
YARDSTICKS = {1: "unigram", 2: "bigram", 3: "trigram"}
SCRIPT = "train_lm"


@dataclass(frozen=True)
class Options:
    """Trains a byte-level language model on real text; any flag of the model can be added: --flash_group_size 64."""

    text: str | None = None
    """A file to train on (.gz, .bz2, .xz, .zip or plain). Without: data/enwik8.gz if there, else 6 MB of Wikipedia."""
    name: str | None = None
    """The run's folder in --runs. Without: a new one, or with --resume the one saved last."""
    resume: bool = False
    """Go on where the run was saved, to the same losses as if it had never stopped."""
    seconds: float = 90.0
    """Training time to plan for; how many steps that makes is measured in the first few."""
    steps: int | None = None
    """That many steps instead."""
    layers: str = "flash*3 attn ff"
    """The layout, repeated --depth times."""
    dim: int = 128
    depth: int = 1
    heads: int = 4
    seq_len: int = 256
    batch: int = 8
    lr: float = 5e-3
    warmup: int = 20
    """Steps to the full learning rate; from there a cosine takes it down to a tenth."""
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    valid_every: int = 50
    """Steps between looks at a small part of the validation text."""
    valid_bytes: int = 1_000_000
    """How much of the validation text the final figure is measured on, at most."""
    save_every: float = 30.0
    """Seconds between checkpoints."""
    sample: int = 400
    """Bytes to generate at the end."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    runs: str = "runs"


# What may be said anew when a run is resumed; everything else would change its losses.
MAY_CHANGE = ("text", "name", "resume", "device", "runs", "save_every", "valid_bytes", "sample")
POSITIVE = ("seconds", "steps", "seq_len", "batch", "lr", "clip", "valid_every", "valid_bytes")


def build(options: Options, flags: dict[str, Any]) -> TransformerWrapper:
    """The model; a flag of the wrapper goes to the wrapper, every other one to the stack."""
    flags = {**RECIPE, **flags} if options.layers == Options.layers and "custom_layers" not in flags else flags
    outer, inner = split_flags(flags, TransformerWrapper)
    column = {} if "custom_layers" in inner else {"layers": options.layers, "depth": options.depth}
    torch.manual_seed(options.seed)
    try:
        stack = Decoder(dim=options.dim, heads=options.heads, **column, **inner)
    except TypeError as error:
        raise with_options(error, inner, Options) from None
    return TransformerWrapper(num_tokens=256, max_seq_len=options.seq_len, attn_layers=stack, **outer)


def train_step(run: Run[Options], ids: Tensor) -> dict[str, Any]:
    """One step on random windows of the text; what the log says of it."""
    options = run.options
    rate = learning_rate(run.step, run.total, options)
    starts = torch.randint(len(ids) - options.seq_len, (options.batch, 1), generator=run.sampler)
    batch = ids[starts + torch.arange(options.seq_len + 1)].long().to(options.device)
    with half_precision(options.device):
        loss = run.model(batch)
    take_step(run.optimizer, loss, rate, options.clip)
    run.step += 1
    return {"step": run.step, "bits": loss.item() / math.log(2), "lr": rate}


@torch.no_grad()
def bits_per_byte(run: Run[Options], ids: Tensor, progress: bool = False) -> float:
    """Window after window of full forward passes; every byte but the first is predicted once."""
    n, net = run.options.seq_len, run.model.net
    whole = (len(ids) - 1) // n * n
    inputs, targets = ids[:whole].view(-1, n), ids[1 : whole + 1].view(-1, n)
    pieces = list(zip(inputs.split(run.options.batch), targets.split(run.options.batch), strict=True)) if whole else []
    if whole < len(ids) - 1:
        pieces.append((ids[None, whole:-1], ids[None, whole + 1 :]))
    net.eval()
    nats = 0.0
    for x, y in tqdm(pieces, desc="validation", leave=False, disable=not progress):
        with half_precision(run.options.device):
            logits = net(x.long().to(run.options.device))
        nats += F.cross_entropy(logits.float().transpose(1, 2), y.long().to(logits.device), reduction="sum").item()
    net.train()
    return nats / math.log(2) / (len(ids) - 1)


def report(run: Run[Options], parts: data.Splits) -> None:
    """The figure that counts beside what counting alone would reach, the speed, a sample and the curve."""
    valid = parts.valid[: run.options.valid_bytes]
    bits = bits_per_byte(run, data.to_ids(valid), progress=True)
    lines = {name: data.ngram_bits(parts.train, valid, order) for order, name in YARDSTICKS.items()}
    speed = run.step * run.options.batch * run.options.seq_len / max(run.seconds, 1e-9)
    print(f"\nbits per byte on {len(valid):,} bytes of validation text (less is better):")
    for name, value in sorted({**lines, "this model": bits}.items(), key=lambda line: -line[1]):
        print(f"  {name:10}  {value:.3f}")
    print(f"{run.step} steps in {run.seconds:.0f} s, {speed:,.0f} tokens/s")
    if bits >= lines["bigram"]:
        print("WARNING: not better than the table of byte pairs; train longer or change --lr", file=sys.stderr)
    with (run.folder / "result.json").open("w") as file:
        json.dump({"bits": bits, **lines, "steps": run.step, "tokens_per_second": speed}, file, indent=2)
    show_sample(run, parts.valid)
    plot(run, lines, bits)


def show_sample(run: Run[Options], text: bytes) -> None:
    """Validation text, and how the model goes on from there."""
    begin = text.find(b"\n\n") + 2  # where a paragraph starts, if there are any
    prompt = text[begin : begin + max(1, run.options.seq_len // 4)]
    count = min(run.options.sample, run.options.seq_len - len(prompt))
    if count < 1:
        return
    ids = data.to_ids(prompt).long().to(run.options.device)
    chance = torch.Generator(run.options.device).manual_seed(run.options.seed)
    begun = time.monotonic()
    made = run.model.generate(
        ids, count, temperature=0.8, filter_logits_fn="top_p", filter_kwargs={"thres": 0.9}, generator=chance
    )
    took = 1000 * (time.monotonic() - begun) / count
    print(f"\na sample ({took:.1f} ms a token), after the prompt in brackets:")
    print(f"[{prompt.decode(errors='replace')}]{bytes(made.tolist()).decode(errors='replace')}")


def plot(run: Run[Options], lines: dict[str, float], bits: float) -> None:
    """The loss curve from the log, with the yardsticks."""
    from matplotlib.figure import Figure  # slow to import, and only needed now

    log = read_log(run)
    looks = [entry for entry in log if "valid_bits" in entry]
    axes = (figure := Figure(figsize=(8, 5), layout="constrained")).add_subplot()
    axes.plot([entry["step"] for entry in log], [entry["bits"] for entry in log], lw=0.8, label="training, each step")
    axes.plot([e["step"] for e in looks], [e["valid_bits"] for e in looks], "o-", label="validation, a small part")
    axes.plot(run.step, bits, "*", ms=14, label=f"validation at the end: {bits:.3f}")
    for name, value in lines.items():
        axes.axhline(value, ls=":", color="gray")
        axes.annotate(f"{name} {value:.3f}", (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axes.set(
        xlabel="step",
        ylabel="bits per byte",
        title=f"{run.options.layers} x {run.options.depth}, dim {run.options.dim}",
    )
    axes.legend()
    figure.savefig(run.folder / "loss.png", dpi=120)


def prepare(arguments: Sequence[str]) -> tuple[Run[Options], data.Text]:
    """The run that the command line asks for, new or resumed, and its text."""
    options, flags = read_command_line(Options, arguments, POSITIVE)
    if options.resume:
        options, saved = load(options, SCRIPT)
        text = data.text(options.text or saved["options"].get("text"))
        return resume(options, flags, text, saved, MAY_CHANGE, lambda net, _: AutoregressiveWrapper(net)), text
    text = data.text(options.text)
    if len(text.data) * 9 // 10 <= max(options.seq_len, 99):
        raise ValueError(f"{len(text.data)} bytes of text are too few for --seq-len {options.seq_len}")
    model = AutoregressiveWrapper(build(options, flags))
    run = start(SCRIPT, options, flags, text, model)
    (run.folder / "flags.txt").write_text(str(model.net.flag_table()) + "\n")
    return run, text


def main(arguments: Sequence[str]) -> None:
    try:
        run, text = prepare(arguments)
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    parts = data.splits(text)
    size = sum(p.numel() for p in run.model.parameters())
    print(f"model: {run.options.layers!r} x {run.options.depth}, {size:,} parameters, on {run.options.device}")
    ids, look = data.to_ids(parts.train), data.to_ids(parts.valid[: 32 * run.options.seq_len + 1])
    train(run, lambda run: train_step(run, ids), lambda run: bits_per_byte(run, look))
    report(run, parts)
    print(f"\n{run.folder} has checkpoint.pt, log.jsonl, result.json, flags.txt and loss.png")


if __name__ == "__main__":
    main(sys.argv[1:])
