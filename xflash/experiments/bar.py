"""One bar for all runs of a comparison."""

import sys
import time

__all__ = ["Bar"]

WIDTH, EVERY = 30, 0.2
# Where lines cannot be written over, one is enough in so many seconds.
EVERY_LINE = 30.0


class Bar:
    """Says on standard error how far all is and what was done last; nothing when not `shown`."""

    def __init__(self, shown: bool):
        self.shown, self.begun, self.said = shown, time.monotonic(), 0.0
        self.over = sys.stderr.isatty()
        self.open = False

    def show(self, share: float, words: str) -> None:
        """The share of all that is done, and a few words."""
        now = time.monotonic()
        if not self.shown or now - self.said < (EVERY if self.over else EVERY_LINE):
            return
        self.said, self.open = now, self.over
        done = round(WIDTH * share)
        line = f"[{'#' * done}{'.' * (WIDTH - done)}] {share:4.0%} {now - self.begun:5.0f} s  {words}"
        sys.stderr.write(f"\r{line[:118]:118}" if self.over else f"{line}\n")
        sys.stderr.flush()

    def say(self, line: str) -> None:
        """A line of its own."""
        if self.shown:
            self.close()
            sys.stderr.write(f"{line}\n")

    def close(self) -> None:
        if self.open:
            sys.stderr.write("\n")
        self.open = False
