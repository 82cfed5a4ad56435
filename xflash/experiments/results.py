"""What came of each variant: a row, from its runs and from what is known without them."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .lane import Lane
from .tasks.task import Task

__all__ = ["Row", "rows_of"]


@dataclass
class Row:
    """A variant in the table.

    `score` is the mean over seeds at the best rate `lr`, `spread` half of what lies between the best and the worst
    seed, `scores` those of each seed, by rate. `flops` is of a forward, a unit; `speed` units a second of the device's
    own time; `steps` those of a run. `level`: whether its seeds' range meets that of the row above.
    """

    name: str
    layers: str
    dim: Any
    failed: str = ""
    score: float | None = None
    spread: float | None = None
    lr: float | None = None
    scores: dict[str, list[float]] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    steps: int | None = None
    speed: float | None = None
    level: bool = False
    parameters: int | None = None
    flops: float | None = None
    training_flops: float | None = None
    peak_bytes: int | None = None
    decode_ms: float | None = None
    state_bytes: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def rows_of(lanes: Sequence[Lane], facts: Mapping[str, Mapping[str, Any]], task: Task) -> list[Row]:
    """The rows, the best first, those without a score last."""
    names = list(dict.fromkeys([*(lane.name for lane in lanes)]))
    rows = [row_of([lane for lane in lanes if lane.name == name], facts.get(name, {}), task) for name in names]
    sign = 1 if task.better == "less" else -1
    rows.sort(key=lambda row: (row.score is None, 0.0 if row.score is None else sign * row.score))
    for above, below in itertools.pairwise(rows):
        below.level = meets(above, below)
    return rows


def row_of(lanes: list[Lane], facts: Mapping[str, Any], task: Task) -> Row:
    """One variant's."""
    flags = lanes[0].variant.flags
    row = Row(lanes[0].name, written(flags), flags.get("dim"))
    for name in ("parameters", "flops", "training_flops", "peak_bytes", "decode_ms", "state_bytes"):
        setattr(row, name, facts.get(name))
    done = [lane for lane in lanes if lane.score is not None]
    for lane in done:
        row.scores.setdefault(f"{lane.lr:g}", []).append(lane.score or 0.0)
    row.lost = {f"{lane.lr:g}, seed {lane.seed}": lane.failed for lane in lanes if lane.failed}
    stepped = [lane for lane in lanes if lane.step]
    if stepped:
        row.speed = task.units * sum(lane.step for lane in stepped) / max(1e-9, sum(lane.seconds for lane in stepped))
    if not done:
        row.failed = next((lane.failed for lane in lanes if lane.failed), str(facts.get("failed", "not trained yet")))
        return row
    chosen = best(row.scores, task)
    values = row.scores[chosen]
    row.score, row.spread = statistics.mean(values), (max(values) - min(values)) / 2 if len(values) > 1 else None
    row.lr = next(lane.lr for lane in done if f"{lane.lr:g}" == chosen)
    row.steps = next(lane.step for lane in done if f"{lane.lr:g}" == chosen)
    return row


def best(scores: Mapping[str, list[float]], task: Task) -> str:
    """The rate with the best mean, among those at which most seeds came to a score."""
    sign = 1 if task.better == "less" else -1
    return min(scores, key=lambda rate: (-len(scores[rate]), sign * statistics.mean(scores[rate])))


def meets(above: Row, below: Row) -> bool:
    """Whether two rows' seeds lie among each other; with one seed nobody can say."""
    if above.spread is None or below.spread is None or above.score is None or below.score is None:
        return False
    one, other = above.scores[f"{above.lr:g}"], below.scores[f"{below.lr:g}"]
    return max(min(one), min(other)) <= min(max(one), max(other))


def written(flags: Mapping[str, Any]) -> str:
    """The layout and how often it is repeated, of both sides where there are two."""
    said = []
    for prefix, usual in (("", "attn ff"), ("enc_", "attn ff"), ("dec_", "attn cross_attn ff")):
        if f"{prefix}depth" in flags:
            layout, depth = flags.get(f"{prefix}layers") or usual, flags[f"{prefix}depth"]
            said.append(f"{prefix}({layout}) x {depth}" if depth != 1 else f"{prefix}{layout}")
    return ", ".join(said)
