"""Trains runs in turns, a slice of the one that is behind, so that what disturbs the machine disturbs all alike."""

import statistics
import time
from collections.abc import Iterable

from .bar import Bar
from .budget import Budget
from .cache import Cache
from .lane import Lane

__all__ = ["train_in_turns"]

# The slices that tell a variant's speed, and those before them, in which everything is done for the first time.
SKIPPED, TIMED = 1, 2


def train_in_turns(lanes: list[Lane], budget: Budget, cache: Cache, bar: Bar) -> None:
    """Trains all that run; each ends with a score or says why there is none, and stops no other.

    An interrupt is handed on when everything is kept.
    """
    saved = {id(lane): time.monotonic() for lane in lanes}
    try:
        while running := [lane for lane in lanes if lane.running]:
            lane = min(running, key=lambda lane: lane.progress)
            # A budget that the first slices have used up leaves the others of a variant nothing to do.
            if not lane.done:
                take_turn(lane)
                plan([other for other in lanes if other.name == lane.name], budget, cache)
            if lane.failed or lane.done:
                finish(lane, cache)
            elif time.monotonic() - saved[id(lane)] > lane.task.settings.save_every:
                cache.checkpoint(lane)
                saved[id(lane)] = time.monotonic()
            bar.show(overall(lanes), f"{lane.name}, lr {lane.lr:g}, seed {lane.seed}: {last(lane)}")
    except KeyboardInterrupt:
        for lane in lanes:
            if lane.running and lane.step:
                cache.checkpoint(lane)
        raise
    finally:
        bar.close()


def take_turn(lane: Lane) -> None:
    """A slice, and a look where one is due."""
    before = lane.step
    try:
        lane.advance()
        if not lane.failed and is_due(lane, before):
            lane.measure(look=True)
    except Exception as error:  # whatever a model does: the others go on
        lane.failed = f"{type(error).__name__}: {one_line(error)}"


def is_due(lane: Lane, before: int) -> bool:
    """Whether a look stands between step `before` and now: they part the whole into equal parts."""
    parts = lane.task.settings.looks + 1
    if not lane.total or lane.step >= lane.total:
        return False
    return lane.step * parts // lane.total > before * parts // lane.total


def plan(same: Iterable[Lane], budget: Budget, cache: Cache) -> None:
    """The number of steps of a variant's lanes, once their speed is known: one number for all its rates and seeds.

    A lane that joins later, another day even, takes as many as those before it.
    """
    waiting = [lane for lane in same if lane.running and lane.total is None]
    timed = [lane for lane in same if not lane.failed and lane.paces]
    if not waiting or any(len(lane.paces) < SKIPPED + TIMED for lane in waiting):
        return
    pace = statistics.median(pace for lane in timed for pace in lane.paces[SKIPPED : SKIPPED + TIMED])
    total = max(waiting[0].step, round(budget.amount / pace))
    for lane in waiting:
        lane.total = total
        cache.write(lane.key, "plan.json", {"total": total, "seconds_a_step": pace})


def finish(lane: Lane, cache: Cache) -> None:
    """The score of a run that is at its end."""
    if not lane.failed:
        try:
            lane.measure(look=True)
            score = lane.measure(look=False)
            lane.score = score if abs(score) != float("inf") else None
            lane.failed = "" if lane.score is not None else "diverged: the held-out score is not finite"
        except Exception as error:
            lane.failed = f"{type(error).__name__}: {one_line(error)}"
    cache.finish(lane)
    lane.end()


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


def overall(lanes: list[Lane]) -> float:
    return statistics.mean(1.0 if not lane.running else lane.progress for lane in lanes)


def last(lane: Lane) -> str:
    return lane.failed or (f"loss {lane.losses[-1][1]:.3f}" if lane.losses else "")
