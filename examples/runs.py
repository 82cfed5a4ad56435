"""A training run that can be stopped at any moment and resumed exactly: its folder, checkpoints, log and loop."""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn
from tqdm.auto import tqdm

import xflash
from training import Diverged, check_device, free_name, make_optimizer, one_line
from xflash.base.files import replacing, write_whole
from xflash.base.registry import nearest
from xflash.datasets.sequences import Text
from xflash.experiments.clock import flushed
from xflash.saving.migrate import FORMAT

# What a checkpoint has of a run beside its options, model, optimizer and chance.
KEPT = ("script", "flags", "text_sha256", "step", "total", "seconds", "carried")
FIELDS = {*KEPT, "config", "model", "optimizer", "rng", "options"}
SKIPPED, TIMED = 3, 10  # how many fit into the time is read off the first steps, but for the very first


class Options(Protocol):
    """The options that a run needs, whatever else the script has."""

    __dataclass_fields__: Any
    text: str | None
    name: str | None
    seconds: float
    steps: int | None
    seed: int
    valid_every: int
    save_every: float
    device: str
    runs: str


O = TypeVar("O", bound=Options)  # noqa: E741


@dataclass
class Run(Generic[O]):
    """All that the next step depends on, and so all that a checkpoint holds.

    model: what trains the `net` in it.  part: which of the runs that share a name, '' where one has it alone.
    carried: what steps hand on.
    """

    script: str
    options: O
    flags: dict[str, Any]
    text_sha256: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    part: str = ""
    sampler: torch.Generator = field(default_factory=torch.Generator)
    step: int = 0
    total: int | None = None  # not known until the first steps have been timed
    seconds: float = 0.0
    carried: Any = None

    @property
    def folder(self) -> Path:
        return Path(self.options.runs, str(self.options.name), self.part)


def start(script: str, options: O, flags: dict[str, Any], text: Text, model: nn.Module, part: str = "") -> Run[O]:
    """A new run of a script, or of a part of it, in a folder of its own; ValueError if there is a run in it."""
    if options.name is None:
        options = replace(options, name=free_name(script.removeprefix("train_"), options.runs))
    sha = hashlib.sha256(text.data).hexdigest()
    model = model.to(options.device)
    run = Run(script, options, flags, sha, model, make_optimizer(model, options), part, total=options.steps)
    if any(path.exists() for path in checkpoints(run.folder)):
        raise ValueError(f"{run.folder} has a checkpoint: go on with --resume, or give another --name")
    run.folder.mkdir(parents=True, exist_ok=True)
    run.sampler.manual_seed(options.seed)
    (run.folder / "log.jsonl").write_text("")
    return run


def resume(
    given: O,
    flags: dict[str, Any],
    text: Text,
    saved: Mapping[str, Any],
    may_change: Collection[str],
    wrap: Callable[[nn.Module, O], nn.Module],
    part: str = "",
) -> Run[O]:
    """The run as it was saved; its log is cut back to that step.

    may_change: options that may be said anew; those that are not stay as they were.  wrap: what trains the net.
    """
    kind, folder = type(given), Path(given.runs, str(given.name), part)
    try:
        was = kind(**saved["options"])
    except TypeError as error:
        raise ValueError(f"the checkpoint in {folder} is of another version of the script: {one_line(error)}") from None
    for name in (f.name for f in fields(kind) if f.name not in may_change):
        if getattr(given, name) not in (getattr(kind, name), getattr(was, name)):
            raise ValueError(f"--{name} {getattr(given, name)}: the run has {getattr(was, name)}, and keeps it")
    if flags and flags != saved["flags"]:
        raise ValueError(f"the flags {flags}: the run has {saved['flags'] or 'none'}, and keeps them")
    if hashlib.sha256(text.data).hexdigest() != saved["text_sha256"]:
        raise ValueError(f"{text.name} is not the text that the run was trained on; give that with --text")
    said = {name: value for name in may_change if (value := getattr(given, name)) != getattr(kind, name)}
    # A folder may have been moved to another place, a run to another machine.
    here = {"runs": given.runs, "name": given.name, "device": was.device if has_device(was.device) else given.device}
    try:
        run = rebuilt(replace(was, **{**here, **said}), saved, wrap, part)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the checkpoint in {folder} cannot be gone on from: {one_line(error)}") from None
    kept = [entry for entry in read_log(run) if entry["step"] <= run.step]
    write_whole(run.folder / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in kept).encode())
    return run


def has_device(device: str) -> bool:
    try:
        check_device(device)
    except ValueError:
        return False
    return True


def rebuilt(options: O, saved: Mapping[str, Any], wrap: Callable[[nn.Module, O], nn.Module], part: str) -> Run[O]:
    """All that the next step depends on, out of a checkpoint; ValueError where the optimizer's part cannot be read."""
    if saved["config"].get("format", 1) != FORMAT:
        raise ValueError("what the optimizer remembers lies in the order of another version's weights")
    net = xflash.from_config(saved["config"])
    net.load_state_dict(saved["model"])
    model = wrap(net, options).to(options.device)
    optimizer = make_optimizer(model, options)
    run = Run(saved["script"], options, saved["flags"], saved["text_sha256"], model, optimizer, part)
    run.optimizer.load_state_dict(saved["optimizer"])
    run.step, run.total, run.seconds = saved["step"], saved["total"], saved["seconds"]
    run.carried = None if saved["carried"] is None else saved["carried"].to(options.device)
    run.sampler.set_state(saved["rng"]["sampler"])
    torch.set_rng_state(saved["rng"]["torch"])
    if saved["rng"]["cuda"] and options.device.startswith("cuda"):
        torch.cuda.set_rng_state_all(saved["rng"]["cuda"])
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
        **{name: getattr(run, name) for name in KEPT},
    }
    newest, previous = checkpoints(run.folder)
    with replacing(run.folder, newest.name) as half:
        torch.save(content, half / newest.name)
        if newest.exists():
            os.replace(newest, previous)


def load(options: O, script: str, part: str = "") -> tuple[O, dict[str, Any]]:
    """The newest checkpoint that can be read, of the named run or of the one of this script that was saved last."""
    runs = Path(options.runs)
    names = [options.name]
    if options.name is None:
        found = runs.glob(str(Path("*", part, "checkpoint*.pt")))
        newest_first = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
        names = list(dict.fromkeys(path.relative_to(runs).parts[0] for path in newest_first))
    for name in names:
        saved = read_checkpoint(runs / str(name) / part)
        if saved is not None and saved["script"] == script:
            return replace(options, name=name), saved
        if saved is not None and options.name is not None:
            raise ValueError(f"{runs / name} is a run of {saved['script']}.py, not of {script}.py")
    if options.name is None:
        raise ValueError(f"nothing to resume: no run of {script}.py in {runs} has a checkpoint")
    known = [path.name for path in runs.iterdir() if path.is_dir()] if runs.is_dir() else []
    raise ValueError(f"nothing to resume in {runs / options.name}{nearest(options.name, known)}")


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """What can be read of the newest checkpoint, else of the one before; None without any."""
    newest, previous = checkpoints(folder)
    for path in (newest, previous):
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            check_fields(saved)
        except Exception as error:  # a damaged file fails in many ways, and the one before it may be whole
            print(f"cannot read {path}: {one_line(error)}", file=sys.stderr)
            continue
        if path == previous and newest.exists():
            newest.rename(newest.with_suffix(".damaged"))  # or it would take the good one's place at the next save
        return saved
    return None


def kept_of(run: Run) -> str:
    """What there is of a run that cannot go on."""
    newest, _ = checkpoints(run.folder)
    return f"whose {newest.name} is of a step before" if newest.exists() else "which has no checkpoint yet"


def check_fields(saved: Any) -> None:
    """ValueError unless it is what `save` writes."""
    if not isinstance(saved, dict):
        raise ValueError(f"it holds a {type(saved).__name__}, not a run")
    if FIELDS - saved.keys():
        raise ValueError(f"it has no {', '.join(sorted(FIELDS - saved.keys()))}")


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


@flushed()
def train(run: Run, step: Callable[[Run], dict[str, Any]], look: Callable[[Run], float]) -> None:
    """Steps until the run is complete or told to stop; saved in either case.

    `step` makes one and gives what the log says of it ('bits' among it), `look` the validation bits on the way.
    """
    times: list[float] = []
    saved = time.monotonic()
    bar = tqdm(total=run.total, initial=run.step, desc=str(run.folder), unit="step", dynamic_ncols=True)
    with Stop() as stop, bar, (run.folder / "log.jsonl").open("a") as log:
        while not stop.signum and (run.total is None or run.step < run.total):
            begun = time.monotonic()
            try:
                entry = step(run)
            except Diverged as error:
                raise Diverged(f"{error} (at step {run.step + 1} of {run.folder}, {kept_of(run)})") from None
            times.append(time.monotonic() - begun)
            run.seconds += times[-1]
            if run.total is None and len(times) == SKIPPED + TIMED:
                left = run.options.seconds - run.seconds
                run.total = bar.total = run.step + max(0, round(left / (sum(times[SKIPPED:]) / TIMED)))
            entry["seconds"] = round(run.seconds, 3)
            if run.step % run.options.valid_every == 0:
                entry["valid_bits"] = look(run)
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
