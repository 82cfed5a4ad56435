"""What the import of xflash costs, as far as it can be counted."""

import subprocess
import sys

SCRIPT = """
import gc, sys
import torch
before = set(sys.modules)
looked = lambda: sum(generation["collections"] for generation in gc.get_stats())
gc.collect()
begun = looked()
import xflash
ended = looked()
assert gc.isenabled()
print(ended - begun)
print(*{name.split(".")[0] for name in set(sys.modules) - before})
"""
# What is read where it is first needed.
LATER = {"beartype", "einx", "torch", "matplotlib", "pandas", "safetensors", "transformers", "x_transformers", "triton"}


def test_nothing_is_read_that_is_not_needed_and_no_garbage_looked_for():
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    collections, modules = told.splitlines()
    # One or two beside it; fifty in it.
    assert int(collections) <= 3
    assert "xflash" in modules.split() and not LATER & set(modules.split())


def test_collecting_stays_off_where_it_was():
    script = "import gc; gc.disable(); import xflash; print(gc.isenabled())"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "False"
