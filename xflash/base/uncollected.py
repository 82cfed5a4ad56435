"""`uncollected`: a while in which Python looks for no garbage."""

import contextlib
import gc
from collections.abc import Generator

__all__ = ["uncollected"]


@contextlib.contextmanager
def uncollected() -> Generator[None]:
    """For imports, which make much and throw nothing away: looking through all that torch has made takes .1 s."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
