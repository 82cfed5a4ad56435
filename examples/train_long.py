"""Trains on whole documents, piece by piece with the state carried on, and shows what memory is worth.

    python examples/train_long.py                       (two models one after the other, about 5 minutes each)
    python examples/train_long.py --seconds 1800        (longer)
    python examples/train_long.py --resume              (after Ctrl-C: as if nothing had been)

A hybrid with FLASH and block-recurrent layers carries all it has read; softmax attention with Transformer-XL's memory
sees a bounded number of bytes back. Both read the same documents in the same order, each row of a batch its own, and
a row starts anew with each document. What counts is bits per byte by the place in the document: memory shows as a curve
that keeps falling. A run leaves runs/NAME/ with a folder for each model, result.json and places.png.
"""

import math
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

# Threads that wait without spinning: on a machine with anything else to do, steps are several times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn

from by_place import ByPlace, bits_by_place, report
from runs import Run, checkpoints, load, resume, start, train
from training import half_precision, learning_rate, read_command_line, split_flags, take_step, with_options
from xflash import Decoder, SegmentWrapper, TransformerWrapper, data

SCRIPT = "train_long"
HYBRID, XL = "hybrid", "xl"


@dataclass(frozen=True)
class Options:
    """Trains two byte-level models on whole documents; any flag of the hybrid can be added: --recurrent_gate lstm."""

    text: str | None = None
    """A file to train on (.gz, .bz2, .xz, .zip or plain). Without: data/enwik8.gz if there, else 6 MB of Wikipedia."""
    name: str | None = None
    """The run's folder in --runs. Without: a new one, or with --resume the one saved last."""
    resume: bool = False
    """Go on where the run stopped, with the options and flags it was started with."""
    seconds: float = 300.0
    """Training time of the hybrid to plan for; the other model gets as many steps."""
    steps: int | None = None
    """That many steps instead."""
    layers: str = "flash*3 recurrent ff"
    """The layout of the hybrid, repeated --depth times."""
    depth: int = 1
    xl_layers: str = "attn(dim_head=32) ff"
    """The layout of the model with Transformer-XL's memory, repeated --xl_depth times."""
    xl_depth: int = 3
    xl_mem_len: int = 128
    """Tokens of its memory."""
    dim: int = 128
    heads: int = 4
    seq_len: int = 128
    """Bytes in a segment."""
    segments: int = 4
    """Segments in a step: how far gradients reach."""
    batch: int = 4
    """Rows, each with documents of its own."""
    lr: float = 5e-3
    warmup: int = 40
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    valid_every: int = 50
    """Steps between looks at a small part of the validation documents."""
    valid_bytes: int = 300_000
    """How much of the validation documents the curves are measured on, at most."""
    save_every: float = 30.0
    """Seconds between checkpoints."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    runs: str = "runs"


# What may be said anew when a run is resumed; everything else would change its losses.
MAY_CHANGE = ("text", "name", "resume", "device", "runs", "save_every", "valid_bytes")
POSITIVE = ("seconds", "steps", "xl_mem_len", "seq_len", "segments", "batch", "lr", "clip", "valid_every")
# What the default hybrid is trained with; --layers starts from the defaults of the blocks.
RECIPE = {
    "flash_group_size": 64,
    "recurrent_block_width": 64,
    "recurrent_num_state_vectors": 32,
    "recurrent_dim_head": 32,
    "recurrent_kv_heads": 1,
    "rotary_pos_emb": True,
    "shift_tokens": 1,
}
LOOK = 32  # segments of each row that the looks on the way are taken at


class Documents(NamedTuple):
    """Rows to train on, rows of held-out documents, and the begin of those."""

    train: data.Rows
    held_out: data.Rows
    look: data.Rows


def build(part: str, options: Options, flags: dict[str, Any]) -> TransformerWrapper:
    """The hybrid, which flags are for, or the model with Transformer-XL's memory."""
    torch.manual_seed(options.seed)
    if part == XL:
        stack = Decoder(
            dim=options.dim,
            heads=options.heads,
            layers=options.xl_layers,
            depth=options.xl_depth,
            rotary_pos_emb=True,
            shift_tokens=1,
        )
        return TransformerWrapper(num_tokens=256, attn_layers=stack, max_mem_len=options.xl_mem_len)
    flags = {**RECIPE, **flags} if options.layers == Options.layers else flags
    outer, inner = split_flags(flags, TransformerWrapper)
    try:
        stack = Decoder(dim=options.dim, heads=options.heads, layers=options.layers, depth=options.depth, **inner)
    except TypeError as error:
        raise with_options(error, inner, Options) from None
    return TransformerWrapper(num_tokens=256, attn_layers=stack, **outer)


def wrap(net: nn.Module, options: Options) -> SegmentWrapper:
    return SegmentWrapper(net, options.seq_len)


def reach(options: Options) -> int:
    """How many bytes the model with Transformer-XL's memory can know of: a segment, and what each layer looks back."""
    stack = build(XL, options, {}).attn_layers
    layers = [stack.blocks()[i] for i in stack.order]
    # The token shift of each layer looks one byte further.
    return options.seq_len + sum(block.keeps_tokens for block in layers) * options.xl_mem_len + len(layers)


def lay_out(options: Options, text: data.Text) -> Documents:
    """The documents of a text in rows; ValueError where there are too few."""
    parts = data.splits(text)
    pages, others = data.documents(parts.train), first_bytes(data.documents(parts.valid), options.valid_bytes)
    if len(pages) < options.batch:
        raise ValueError(f"--batch {options.batch}: {text.name} has only {len(pages)} documents to train on")
    if max(map(len, others), default=0) < 2:
        raise ValueError(f"{text.name} has no document left to validate on; give more text, or more --valid_bytes")
    rows = data.in_rows(pages, options.batch, options.seq_len, torch.Generator().manual_seed(options.seed))
    held_out = data.in_rows(others, min(options.batch, len(others)), options.seq_len)
    end = LOOK * options.seq_len
    look = data.Rows(*(t[:, :end] for t in held_out[:3]), held_out.starts[:, :LOOK])
    return Documents(rows, held_out, look)


def first_bytes(pages: Iterable[bytes], most: int) -> list[bytes]:
    """The first documents, `most` bytes of them; the last one may be cut."""
    kept: list[bytes] = []
    for page in pages:
        if most <= 0:
            break
        kept.append(page[:most])
        most -= len(page)
    return kept


def reading(rows: data.Rows, step: int, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """What a step reads: ids (b, n + 1), which of them are real, and which rows start anew with each segment."""
    targets, n = rows.ids.shape[1] - 1, options.segments * options.seq_len
    at = step % -(-targets // n) * n
    end = min(at + n, targets)
    real = rows.real[:, at : end + 1].clone()
    # The last column is a target only, and none where it begins a document: that has a reset in the next step.
    real[:, -1] &= rows.offset[:, end] > 0
    starts = rows.starts[:, at // options.seq_len : -(-end // options.seq_len)]
    return rows.ids[:, at : end + 1].long(), real, starts


def train_step(run: Run[Options], rows: data.Rows) -> dict[str, Any]:
    """One step on the next segments of every row; what the log says of it."""
    options = run.options
    rate = learning_rate(run.step, run.total, options)
    ids, real, starts = (t.to(options.device) for t in reading(rows, run.step, options))
    with half_precision(options.device):
        loss, state = run.model(ids, real, state=run.carried, reset=starts, return_state=True)
    take_step(run.optimizer, loss, rate, options.clip)
    run.carried = state.detach()
    run.step += 1
    return {"step": run.step, "bits": loss.item() / math.log(2), "lr": rate}


def prepare(options: Options, flags: dict[str, Any]) -> tuple[Run[Options], data.Text, Documents]:
    """The hybrid's run, new or resumed, and what it reads; whatever could be wrong for either model is found here."""
    if options.resume:
        options, saved = load(options, SCRIPT, HYBRID)
        text = data.text(options.text or saved["options"].get("text"))
        run = resume(options, flags, text, saved, MAY_CHANGE, wrap, HYBRID)
        return run, text, lay_out(run.options, text)
    text = data.text(options.text)
    documents = lay_out(options, text)
    wrap(build(XL, options, {}), options)
    run = start(SCRIPT, options, flags, text, wrap(build(HYBRID, options, flags), options), HYBRID)
    return run, text, documents


def rival(hybrid: Run[Options], text: data.Text) -> Run[Options]:
    """The run of the model with Transformer-XL's memory, new or resumed: as many steps on the same rows."""
    options = replace(hybrid.options, steps=hybrid.step)
    if options.resume and any(path.exists() for path in checkpoints(hybrid.folder.parent / XL)):
        return resume(options, {}, text, load(options, SCRIPT, XL)[1], MAY_CHANGE, wrap, XL)
    return start(SCRIPT, options, {}, text, wrap(build(XL, options, {}), options), XL)


def train_one(run: Run[Options], documents: Documents) -> ByPlace:
    """Trains a model; what it needs for the held-out documents."""
    net, options = cast(TransformerWrapper, run.model.net), run.options
    size = sum(p.numel() for p in net.parameters())
    print(f"{run.part}: {net.attn_layers.layout!r}, {size:,} parameters, on {options.device}")

    def look(run: Run[Options]) -> float:
        return bits_by_place(net, documents.look, options.seq_len, options.device).mean() or math.nan

    train(run, lambda run: train_step(run, documents.train), look)
    print(f"{run.part}: {run.step} steps in {run.seconds:.0f} s")
    return bits_by_place(net, documents.held_out, options.seq_len, options.device)


def main(arguments: Sequence[str]) -> None:
    try:
        options, flags = read_command_line(Options, arguments, POSITIVE)
        hybrid, text, documents = prepare(options, flags)
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    found = {HYBRID: train_one(hybrid, documents)}
    try:
        other = rival(hybrid, text)
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    found[XL] = train_one(other, documents)
    folder = hybrid.folder.parent
    report(found, reach(hybrid.options), folder)
    print(f"\n{folder} has result.json, places.png, and a folder for each model")


if __name__ == "__main__":
    main(sys.argv[1:])
