"""`compare`: variants of a model trained side by side on the same data, and what came of each."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ..base.checks import check_switch, describe, integer
from ..flags.flag import build
from ..saving.store import check_device
from .bar import Bar
from .budget import Budget, read_budget
from .cache import Cache, default_folder, key_of
from .clock import flushed
from .comparison import Comparison
from .facts import decode_times, facts_of
from .lane import Lane, optimizer_of
from .matching import match_widths
from .misspelt import check_names, check_settings
from .results import rows_of
from .settings import Settings
from .tasks.choose import choose, is_own
from .tasks.task import Task
from .turns import one_line, train_in_turns
from .variants import Variant, read_rates, read_variants

__all__ = ["compare"]


def compare(
    variants: Any,
    data: Any = None,
    budget: str = "60s",
    *,
    seeds: int | tuple[int, ...] = 2,
    match: str | None = None,
    lr: float | tuple[float, ...] = (1e-3, 3e-3),
    folder: Any = None,
    progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Trains variants on the same data, in turns, and gives a table of what each costs and reaches.

    variants: flags by name, `{'softmax': dict(layers='attn ff'), 'FLASH': dict(layers='flash')}`, or a list of layouts.
    A variant's `lr` is its own. data: bytes, the path of a text, ids (n,), a pair of ids (sources, targets) padded with
    -100, images of `xflash.datasets` or 'digits', a probe, `(make_model, loss_fn)`, or None for the text that
    `xflash.datasets` finds. budget: of a run, '60s' (the device's own time), '2000 steps' or '5M tokens'.

    seeds: how many, or which. match: 'params' or 'flops' changes `dim` until each variant is within 2 % of the first.
    lr: the rates that each is trained with; the row has the best. folder: where runs are kept, and found again by the
    hash of config, data, budget and version (in ~/.cache/xflash/compare unless given). settings: those of `Settings`
    (seq_len=256, batch=8, kind='masked', device=, ...); every other keyword is a flag of all variants.

    A variant that fails or diverges says so in its row. TypeError or ValueError, before anything is trained, for flags
    that cannot be built, a budget that is none, a text that is too short, and data that a model cannot take.
    """
    limit, rates, numbers = read_budget(budget), read_rates(lr), read_seeds(seeds)
    check_switch("progress", progress)
    known = [field.name for field in fields(Settings)]
    chosen = build(Settings, {name: value for name, value in settings.items() if name in known})
    shared = {name: value for name, value in settings.items() if name not in known}
    check_names({} if is_own(data) else shared)
    device, task = device_of(chosen), choose(data, chosen)
    check_settings(settings, task.unused)
    read = read_variants(variants, shared, rates, task)
    changed = match_widths(read, match, task)
    bar, cache = Bar(progress), Cache(as_folder(folder))
    for line in changed:
        bar.say(line)
    with flushed(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        facts = known_facts(read, task, limit, device, cache)
        lanes = run_all(lanes_of(read, numbers, task, limit, device), facts, limit, cache, bar)
    about = caption(task, limit, len(numbers), device)
    return Comparison(rows_of(lanes, facts, task), lanes, task, about, changed)


def read_seeds(seeds: Any) -> tuple[int, ...]:
    """Which seeds, from how many or from themselves."""
    if isinstance(seeds, (tuple, list)):
        if not seeds:
            raise ValueError("seeds is empty: give how many, or which")
        return tuple(dict.fromkeys(integer("seeds", seed, 0) for seed in seeds))
    return tuple(range(integer("seeds", seeds, 1)))


def device_of(settings: Settings) -> torch.device:
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device, "compare")
    return torch.device(device)


def as_folder(folder: Any) -> Path:
    if folder is None:
        return default_folder()
    if not isinstance(folder, (str, Path)):
        raise TypeError(f"folder must be the path of a folder, not {describe(folder)}")
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError(f"folder={str(folder)!r} is a file: give a folder, which is made if there is none")
    return path


def lanes_of(
    variants: list[Variant], seeds: tuple[int, ...], task: Task, budget: Budget, device: torch.device
) -> list[Lane]:
    """A lane for each variant, rate and seed, those of a seed beside each other."""
    keys = {variant.name: key_of(variant, task, budget, device) for variant in variants}
    return [
        Lane(variant, rate, seed, task, device, keys[variant.name], total=budget.steps(task.units))
        for seed in seeds
        for variant in variants
        for rate in variant.rates
    ]


def known_facts(
    variants: list[Variant], task: Task, budget: Budget, device: torch.device, cache: Cache
) -> dict[str, dict[str, Any]]:
    """What is known of each variant without training, measured where it is not; `failed` says why there is none."""
    keys = {variant.name: key_of(variant, task, budget, device) for variant in variants}
    facts = {name: cache.read(key, "facts.json") for name, key in keys.items()}
    missing = [variant for variant in variants if facts[variant.name] is None]
    for variant in missing if task.settings.train else ():
        try:
            settings, rate = task.settings, variant.rates[0]
            facts[variant.name] = facts_of(variant, task, lambda m, r=rate, s=settings: optimizer_of(m, r, s), device)
        except (RuntimeError, NotImplementedError) as error:
            facts[variant.name] = {"failed": f"{type(error).__name__}: {one_line(error)}"}
    measured = [v for v in missing if "parameters" in (facts[v.name] or {})]
    for name, taken in decoded(measured, task, device).items():
        facts[name]["decode_ms"] = taken
    for variant in measured:
        cache.write(keys[variant.name], "facts.json", facts[variant.name])
    return {name: held or {} for name, held in facts.items()}


def decoded(variants: list[Variant], task: Task, device: torch.device) -> Mapping[str, float]:
    """Milliseconds of a decoded token, of those that decode."""
    nets = {variant.name: task.net(variant.built(task, device)) for variant in variants}
    nets = {name: net for name, net in nets.items() if net is not None}
    return decode_times(nets, task.row_tokens, device) if nets else {}


def run_all(
    lanes: list[Lane], facts: Mapping[str, Mapping[str, Any]], budget: Budget, cache: Cache, bar: Bar
) -> list[Lane]:
    """The lanes with their results: known ones, those of failed variants, and those that are trained now."""
    known = 0
    for lane in lanes:
        if cache.recall(lane) or not lane.task.settings.train:
            known += lane.score is not None or bool(lane.failed)
            continue
        if "failed" in facts[lane.name]:
            lane.failed = str(facts[lane.name]["failed"])
            continue
        lane.begin()
        cache.resume(lane)
        planned = cache.read(lane.key, "plan.json")
        lane.total = lane.total or (planned["total"] if planned else None)
    bar.say(f"{len(lanes)} runs, {known} of them known already")
    train_in_turns(lanes, budget, cache, bar)
    return lanes


def caption(task: Task, budget: Budget, seeds: int, device: torch.device) -> str:
    """What the table is of."""
    import xflash

    settings = task.settings
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    rows = f"{settings.batch} rows a step" if task.unit != "token" else f"{settings.batch} rows of {task.row_tokens:,}"
    return (
        f"{task.name}: {budget} a run, {seeds} seed{'s' * (seeds > 1)}, {rows}; xflash {xflash.__version__}, "
        f"torch {torch.__version__}, {where}"
    )
