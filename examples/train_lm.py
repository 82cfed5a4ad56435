"""Trains a byte-level language model on real text and shows what it has learned.

    python examples/train_lm.py                                               (about 90 seconds on two CPU cores)
    python examples/train_lm.py --layers 'attn ff' --depth 4 --rotary_pos_emb (any flag of the model can be added)
    python examples/train_lm.py --resume                                      (after Ctrl-C: as if nothing had been)

A run leaves runs/NAME/ with checkpoint.pt, log.jsonl, loss.png and the table of all flags.
"""

import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

# Threads that wait without spinning: on a machine with anything else to do, steps are several times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from training import (
    free_name,
    half_precision,
    learning_rate,
    make_optimizer,
    read_command_line,
    split_flags,
    take_step,
    with_options,
)

import xflash
from xflash import AutoregressiveWrapper, Decoder, TransformerWrapper, data
from xflash.registry import nearest

# What the default layout is trained with; --layers starts from the defaults of the blocks.
RECIPE = {"flash_group_size": 64, "rotary_pos_emb": True, "shift_tokens": 1}
YARDSTICKS = {1: "unigram", 2: "bigram", 3: "trigram"}
SKIPPED, TIMED = 3, 10  # how many fit into the time is read off the first steps, but for the very first


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


@dataclass
class Run:
    """All that the next step depends on, and so all that a checkpoint holds."""

    options: Options
    flags: dict[str, Any]
    text_sha256: str
    model: AutoregressiveWrapper
    optimizer: torch.optim.Optimizer
    sampler: torch.Generator = field(default_factory=torch.Generator)
    step: int = 0
    total: int | None = None  # not known until the first steps have been timed
    seconds: float = 0.0

    @property
    def folder(self) -> Path:
        return Path(self.options.runs) / str(self.options.name)


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


def start(options: Options, flags: dict[str, Any], text: data.Text) -> Run:
    """A new run in a folder of its own."""
    if len(text.data) * 9 // 10 <= max(options.seq_len, 99):
        raise ValueError(f"{len(text.data)} bytes of text are too few for --seq-len {options.seq_len}")
    model = AutoregressiveWrapper(build(options, flags)).to(options.device)
    if options.name is None:
        options = replace(options, name=free_name("lm", options.runs))
    sha = hashlib.sha256(text.data).hexdigest()
    run = Run(options, flags, sha, model, make_optimizer(model, options), total=options.steps)
    if any(path.exists() for path in checkpoints(run.folder)):
        raise ValueError(f"{run.folder} has a checkpoint: go on with --resume, or give another --name")
    run.folder.mkdir(parents=True, exist_ok=True)
    run.sampler.manual_seed(options.seed)
    (run.folder / "flags.txt").write_text(str(model.net.flag_table()) + "\n")
    (run.folder / "log.jsonl").write_text("")
    return run


def resume(given: Options, flags: dict[str, Any], text: data.Text, saved: dict[str, Any]) -> Run:
    """The run as it was saved; its log is cut back to that step."""
    was = Options(**saved["options"])
    for name in (f.name for f in fields(Options) if f.name not in MAY_CHANGE):
        if getattr(given, name) not in (getattr(Options, name), getattr(was, name)):
            raise ValueError(f"--{name} {getattr(given, name)}: the run has {getattr(was, name)}, and keeps it")
    if flags and flags != saved["flags"]:
        raise ValueError(f"the flags {flags}: the run has {saved['flags'] or 'none'}, and keeps them")
    if hashlib.sha256(text.data).hexdigest() != saved["text_sha256"]:
        raise ValueError(f"{text.name} is not the text that the run was trained on; give that with --text")
    options = replace(was, **{name: getattr(given, name) for name in MAY_CHANGE})
    model = AutoregressiveWrapper(xflash.from_config(saved["config"])).to(options.device)
    model.net.load_state_dict(saved["model"])
    run = Run(options, saved["flags"], saved["text_sha256"], model, make_optimizer(model, options))
    run.optimizer.load_state_dict(saved["optimizer"])
    run.step, run.total, run.seconds = saved["step"], saved["total"], saved["seconds"]
    run.sampler.set_state(saved["rng"]["sampler"])
    torch.set_rng_state(saved["rng"]["torch"])
    if saved["rng"]["cuda"] and options.device.startswith("cuda"):
        torch.cuda.set_rng_state_all(saved["rng"]["cuda"])
    kept = [entry for entry in read_log(run) if entry["step"] <= run.step]
    (run.folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    return run


def read_log(run: Run) -> list[dict[str, Any]]:
    """What each step left; a last line without its end was being written when the process was killed."""
    log = run.folder / "log.jsonl"
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def checkpoints(folder: Path) -> tuple[Path, Path]:
    """The newest, and the one before it."""
    return folder / "checkpoint.pt", folder / "checkpoint.previous.pt"


def save(run: Run) -> None:
    """Written beside the old ones and moved into place when it is whole: no moment is without a good checkpoint."""
    rng = {
        "sampler": run.sampler.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    content = {
        "config": run.model.net.to_config(),
        "model": run.model.net.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "rng": rng,
        "options": asdict(run.options),
        **{name: getattr(run, name) for name in ("flags", "text_sha256", "step", "total", "seconds")},
    }
    newest, previous = checkpoints(run.folder)
    half = newest.with_suffix(".half")
    with half.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    if newest.exists():
        os.replace(newest, previous)
    os.replace(half, newest)


def load(options: Options) -> tuple[Options, dict[str, Any]]:
    """The newest checkpoint that can be read, of the named run or of the one saved last."""
    runs = Path(options.runs)
    if options.name is None:
        found = sorted(runs.glob("*/checkpoint*.pt"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise ValueError(f"nothing to resume: no run in {runs} has a checkpoint")
        options = replace(options, name=found[-1].parent.name)
    newest, previous = checkpoints(runs / str(options.name))
    for path in (newest, previous):
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file fails in many ways, and the one before it may be whole
            print(f"cannot read {path}: {next(iter(str(error).splitlines()), type(error).__name__)}", file=sys.stderr)
            continue
        if path == previous and newest.exists():
            newest.rename(newest.with_suffix(".damaged"))  # or it would take the good one's place at the next save
        return options, saved
    known = [path.name for path in runs.iterdir() if path.is_dir()] if runs.is_dir() else []
    raise ValueError(f"nothing to resume in {newest.parent}{nearest(str(options.name), known)}")


class Stop:
    """Notes Ctrl-C and SIGTERM while it is entered, so that a step can end and be saved; a second one stops at once."""

    signum = 0

    def __enter__(self) -> "Stop":
        self.before = {s: signal.signal(s, self.note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)

    def note(self, signum: int, frame: object) -> None:
        self.signum = signum
        self.__exit__()


def train_step(run: Run, ids: Tensor) -> dict[str, Any]:
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
def bits_per_byte(run: Run, ids: Tensor, progress: bool = False) -> float:
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


def train(run: Run, ids: Tensor, look: Tensor) -> None:
    """Steps until the run is complete or told to stop; saved in either case."""
    times: list[float] = []
    saved = time.monotonic()
    bar = tqdm(total=run.total, initial=run.step, desc=str(run.folder), unit="step", dynamic_ncols=True)
    with Stop() as stop, bar, (run.folder / "log.jsonl").open("a") as log:
        while not stop.signum and (run.total is None or run.step < run.total):
            begun = time.monotonic()
            entry = train_step(run, ids)
            times.append(time.monotonic() - begun)
            run.seconds += times[-1]
            if run.total is None and len(times) == SKIPPED + TIMED:
                left = run.options.seconds - run.seconds
                run.total = bar.total = run.step + max(0, round(left / (sum(times[SKIPPED:]) / TIMED)))
            entry["seconds"] = round(run.seconds, 3)
            if run.step % run.options.valid_every == 0:
                entry["valid_bits"] = bits_per_byte(run, look)
                bar.write(
                    f"step {run.step}: training {entry['bits']:.3f}, validation {entry['valid_bits']:.3f} bits a byte"
                )
            log.write(json.dumps(entry) + "\n")
            log.flush()
            bar.update()
            bar.set_postfix_str(f"{entry['bits']:.3f} bits a byte")
            if time.monotonic() - saved > run.options.save_every:
                save(run)
                saved = time.monotonic()
        save(run)
    if stop.signum:
        print(f"saved at step {run.step}; go on with --resume --name {run.options.name}", file=sys.stderr)
        sys.exit(128 + stop.signum)  # what a shell reports of a process that a signal ended


def report(run: Run, parts: data.Splits) -> None:
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


def show_sample(run: Run, text: bytes) -> None:
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


def plot(run: Run, lines: dict[str, float], bits: float) -> None:
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


def main(arguments: Sequence[str]) -> None:
    try:
        options, flags = read_command_line(Options, arguments, POSITIVE)
        saved: dict[str, Any] = {}
        if options.resume:
            options, saved = load(options)
            options = replace(options, text=options.text or saved["options"]["text"])
        text = data.text(options.text)
        run = resume(options, flags, text, saved) if saved else start(options, flags, text)
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    parts = data.splits(text)
    size = sum(p.numel() for p in run.model.parameters())
    print(f"model: {run.options.layers!r} x {run.options.depth}, {size:,} parameters, on {run.options.device}")
    train(run, data.to_ids(parts.train), data.to_ids(parts.valid[: 32 * run.options.seq_len + 1]))
    report(run, parts)
    print(f"\n{run.folder} has checkpoint.pt, log.jsonl, result.json, flags.txt and loss.png")


if __name__ == "__main__":
    main(sys.argv[1:])
