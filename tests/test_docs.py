"""The pages in docs/ say what the code does: their code runs, their tables are tried line by line."""

import ast
import re
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import code_blocks
import matrix
import xflash
from code_blocks import ROOT
from xflash import AttentionLayers, TransformerWrapper
from xflash import __main__ as command

DOCS = ROOT / "docs"
REFUSALS = DOCS / "refusals.md"
BASE = {"dim": 24, "heads": 4}


@pytest.mark.parametrize("page", ["state.md", "own_block.md"])
def test_the_code_runs(page):
    code_blocks.run(DOCS / page)


def test_the_flags_are_those_of_the_code():
    stale = "docs/flags.md is stale: python -m xflash docs-flags > docs/flags.md"
    assert (DOCS / "flags.md").read_text() == command.markdown(), stale


def build_stack(flags: dict) -> AttentionLayers:
    repeated = {} if "custom_layers" in flags else {"depth": 2}
    return AttentionLayers(**{**BASE, **repeated, **flags})


def build_model(arguments: dict) -> TransformerWrapper:
    stack = AttentionLayers(**BASE, depth=1, layers="attn ff")
    return TransformerWrapper(**{"num_tokens": 31, "max_seq_len": 48, "attn_layers": stack, **arguments})


def call(flags: str, words: str) -> Callable:
    """A line of the table of calls, with the names it uses."""
    stack = build_stack(code_blocks.flags(flags))
    names = {
        "stack": stack,
        "model": TransformerWrapper(num_tokens=31, max_seq_len=48, attn_layers=stack),
        "other": build_stack({"layers": "attn ff", "causal": True}),
        "x": torch.randn(2, 6, 24),
        "ids": torch.randint(31, (2, 6)),
        "square": torch.ones(6, 6).bool(),
        "docs": torch.tensor([0, 0, 0, 1, 1, 1]).expand(2, 6),
        "prefix": torch.randn(2, 3, 24),
    }
    return lambda: eval(words.strip("`"), names)


def pattern(cell: str) -> str:
    """A message of the table as a regular expression."""
    return ".*".join(re.escape(part) for part in cell.strip("`").split("..."))


def lines() -> list[tuple[str, Callable, str]]:
    """Every line of the page: how it is called, the call, the message it announces."""
    found = [(row[0], lambda r=row: build_stack(code_blocks.flags(r[0])), row[1]) for row in code_blocks.rows(REFUSALS, "Flags of a stack")]
    found += [(row[0], lambda r=row: build_model(code_blocks.flags(r[0])), row[1]) for row in code_blocks.rows(REFUSALS, "Arguments of the wrapper")]
    found += [(f"{row[0]} {row[1]}", lambda r=row: call(r[0], r[1])(), row[2]) for row in code_blocks.rows(REFUSALS, "Calls")]
    return found


def refusal(attempt: Callable) -> ValueError:
    with pytest.raises(ValueError) as caught:
        attempt()
    return caught.value


@pytest.mark.parametrize("attempt, message", [pytest.param(*line[1:], id=line[0]) for line in lines()])
def test_a_refusal_says_what_the_page_says(attempt, message):
    text = str(refusal(attempt))
    assert re.fullmatch(pattern(message), text), text


def test_every_refused_combination_of_the_matrix_is_on_the_page():
    patterns = [pattern(message) for _, _, message in lines()]
    unlisted = set()
    for kind, rows in matrix.stored().items():
        what, direction = kind.split()
        build = matrix.domain_of(what)[1]
        for row in rows["refused"]:
            text = matrix.refusal(build, direction == "causal", matrix.as_row(what, row))
            if not any(re.fullmatch(p, text) for p in patterns):
                unlisted.add(text)
    assert not unlisted, "docs/refusals.md has no line for these"


def building_sites() -> list[tuple[Path, ast.Raise]]:
    """Where the code refuses flags: ValueErrors of the stack's flags, and of parts and wrappers while they are built."""
    package = Path(xflash.__file__).parent
    found = []
    for path in (package / "stack_flags.py", package / "aliases.py", *(package / "layers").glob("*.py"), package / "wrappers" / "transformer.py"):
        for function in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)):
            given = {argument.arg for argument in function.args.args}
            if given & {"ctx", "x", "state"}:
                continue  # a call, not a construction
            for node in ast.walk(function):
                if isinstance(node, ast.Raise) and "ValueError" in ast.unparse(node):
                    found.append((path, node))
    return found


def test_every_refusal_of_flags_in_the_code_is_on_the_page():
    reached = set()
    for _, attempt, _ in lines():
        frame = traceback.extract_tb(refusal(attempt).__traceback__)[-1]
        reached.add((Path(frame.filename), frame.lineno))
    missing = [
        f"{path.name}:{node.lineno} {ast.unparse(node)}"
        for path, node in building_sites()
        if not any(path == p and node.lineno <= line <= (node.end_lineno or 0) for p, line in reached)
    ]
    assert not missing, "docs/refusals.md has no line for these"
