"""How long `import xflash` takes once torch is there, beside torch itself.

    python benchmarks/imports.py

Each import is a process of its own, in turns; bytecode is kept, as it is in an installed package. Seconds are those of
the processor, of which a busy machine takes none away.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

from common import keep, median, show

SCRIPT = """
import json, sys, time
begun = time.process_time()
import torch
there = time.process_time()
import xflash
print(json.dumps([there - begun, time.process_time() - there]))
"""


def seconds(folder: str) -> tuple[float, float]:
    """What torch and xflash took in one process, whose bytecode is in that folder."""
    changed = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env={**os.environ, **changed}, capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


def main(given: list[str] | None = None) -> list[tuple[str, float, float]]:
    """The rows of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=9, help="processes")
    times = parser.parse_args(given).times
    with tempfile.TemporaryDirectory() as folder:
        # The first writes the bytecode.
        seconds(folder)
        found = [seconds(folder) for _ in range(times)]
    by_package = zip(*found, strict=True)
    rows = [(name, median(took), min(took)) for name, took in zip(("torch", "xflash"), by_package, strict=True)]
    show(("import", "seconds, median", "least"), rows)
    print("written to", keep("imports", {"seconds": found}))
    return rows


if __name__ == "__main__":
    main()
