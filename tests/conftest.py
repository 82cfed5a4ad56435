"""Counts the flag combinations that were tried, and prints them at the end of the run."""

import os

# Two test processes with spinning OpenMP threads each starve one another; read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_terminal_summary(terminalreporter):
    tried = wrong = refused = 0
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            properties = dict(getattr(report, "user_properties", ()))
            if "combination" in properties:
                tried += 1
                wrong += outcome == "failed"
            refused += properties.get("refused", 0)
    if tried:
        every = tried + refused
        terminalreporter.write_line(
            f"flag combinations: {every} tried, {refused} refused ({refused / every:.0%}), {wrong} wrong"
        )
