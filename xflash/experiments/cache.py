"""What is known already: results, plans and checkpoints, each a whole file under the hash of all it depends on."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch

from ..base.files import write_whole
from ..base.registry import blocks, joins, norms, positions, reads, scales, scores
from ..datasets.fetch import cache_folder
from ..saving.store import own_parts
from .budget import Budget
from .lane import KEPT, Lane
from .settings import SHOWN_ONLY
from .tasks.own import source_of
from .tasks.task import Task
from .variants import Variant

__all__ = ["Cache", "key_of"]

SHOWN = 500


def key_of(variant: Variant, task: Task, budget: Budget, device: torch.device) -> str | None:
    """The hash of a variant's config, the data, the budget, the settings and the versions; None where it has none.

    Parts of one's own count as their source is written. Without a key nothing is kept.
    """
    import xflash

    data = task.describe()
    model = described(variant, task)
    if data is None or model is None:
        return None
    settings = {name: value for name, value in vars(task.settings).items() if name not in SHOWN_ONLY}
    about = {"model": model, "data": data, "budget": str(budget), "settings": settings, "device": device.type}
    about |= {"xflash": xflash.__version__, "torch": torch.__version__}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:20]


def described(variant: Variant, task: Task) -> Any:
    """A variant's model as JSON, with the source of parts that are not xflash's; None where that is not known."""
    if not task.on_meta:
        try:
            return json.loads(json.dumps(variant.flags, sort_keys=True))
        except TypeError:
            return None
    try:
        config = variant.built(task, "meta").to_config()
    except TypeError:
        return None
    sources = [source_of(part) for name in own_parts(config) for part in registered(name)]
    return None if None in sources else {"config": config, "sources": sources}


def registered(name: str) -> list[Any]:
    """The parts, and classes, of a name."""
    from ..saving.classes import CLASSES

    return [kind[name] for kind in (blocks, norms, positions, scores, reads, scales, joins, CLASSES) if name in kind]


class Cache:
    """The folder in which runs are kept; without one, or without a key, nothing is."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    def path(self, key: str | None, name: str) -> Path | None:
        return None if key is None or self.folder is None else self.folder / key / name

    def read(self, key: str | None, name: str) -> Any:
        """What was written, or None."""
        path = self.path(key, name)
        return json.loads(path.read_text()) if path is not None and path.is_file() else None

    def write(self, key: str | None, name: str, value: Any) -> None:
        if (path := self.path(key, name)) is not None:
            write_whole(path, (json.dumps(value) + "\n").encode())

    def recall(self, lane: Lane) -> bool:
        """Whether the lane's result is known, which it then has."""
        known = self.read(lane.key, f"{run_name(lane)}.json")
        if known is None:
            return False
        for name in KEPT:
            setattr(lane, name, known[name])
        return True

    def resume(self, lane: Lane) -> None:
        """Goes on from the lane's last checkpoint, if there is one."""
        path = self.path(lane.key, f"{run_name(lane)}.pt")
        if path is None or not path.is_file():
            return
        held = torch.load(path, map_location=lane.device, weights_only=True)
        lane.model.load_state_dict(held["model"])
        lane.optimizer.load_state_dict(held["optimizer"])
        lane.chance.set_state(held["chance"].cpu())
        lane.noise = [state.cpu() for state in held["noise"]]
        for name in (*KEPT, "paces"):
            setattr(lane, name, held[name])

    def checkpoint(self, lane: Lane) -> None:
        path = self.path(lane.key, f"{run_name(lane)}.pt")
        if path is None:
            return
        held = {name: getattr(lane, name) for name in (*KEPT, "paces", "noise")}
        held |= {"model": lane.model.state_dict(), "optimizer": lane.optimizer.state_dict()}
        torch.save({**held, "chance": lane.chance.get_state()}, buffer := io.BytesIO())
        write_whole(path, buffer.getvalue())

    def finish(self, lane: Lane) -> None:
        """Keeps a result, its losses thinned out; an error that is no divergence may be gone next time."""
        if not lane.failed or lane.failed.startswith("diverged"):
            lane.losses = lane.losses[:: max(1, len(lane.losses) // SHOWN)]
            about = {"variant": lane.name, "lr": lane.lr, "seed": lane.seed}
            self.write(lane.key, f"{run_name(lane)}.json", {**about, **{name: getattr(lane, name) for name in KEPT}})
        path = self.path(lane.key, f"{run_name(lane)}.pt")
        if path is not None:
            path.unlink(missing_ok=True)


def run_name(lane: Lane) -> str:
    return f"run-{lane.lr:g}-{lane.seed}"


def default_folder() -> Path:
    return cache_folder() / "compare"
