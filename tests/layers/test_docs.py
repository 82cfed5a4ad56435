"""The pages in docs/ say what the code does: their code runs, their tables are tried line by line."""

import ast
import importlib
import re
import traceback
from collections.abc import Callable
from pathlib import Path

import code_blocks
import covering
import matrix
import pytest
import test_flash
import test_gau
import torch
from code_blocks import ROOT
from quick import quick

import xflash
from xflash import AttentionLayers, TransformerWrapper
from xflash import __main__ as command
from xflash.convert import from_flash_pytorch

DOCS = ROOT / "docs"
REFUSALS = DOCS / "refusals.md"
BASE = {"dim": 24, "heads": 4}


PAGES = ["state.md", "own_block.md", "coming_from.md", "training.md", "look.md"]


@pytest.mark.parametrize("page", quick(PAGES, lambda page, _: page != "state.md"))
def test_the_code_runs(page):
    if page == "coming_from.md":
        importlib.import_module("x_transformers_cases")  # skips where the peer is missing
    code_blocks.run(DOCS / page)


def test_the_flags_are_those_of_the_code():
    stale = "docs/flags.md is stale: python -m xflash docs-flags > docs/flags.md"
    assert (DOCS / "flags.md").read_text() == command.markdown(), stale


def build_stack(flags: dict) -> AttentionLayers:
    repeated = {} if "custom_layers" in flags else {"depth": 2}
    return AttentionLayers(**{**BASE, **repeated, **flags})


def build_model(arguments: dict) -> TransformerWrapper:
    own = {"layers": "attn ff", "causal": False}
    stack = AttentionLayers(**BASE, depth=1, **{name: arguments.pop(name, value) for name, value in own.items()})
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
    found = [
        (row[0], lambda r=row: build_stack(code_blocks.flags(r[0])), row[1])
        for row in code_blocks.rows(REFUSALS, "Flags of a stack")
    ]
    found += [
        (row[0], lambda r=row: build_model(code_blocks.flags(r[0])), row[1])
        for row in code_blocks.rows(REFUSALS, "Arguments of the wrapper")
    ]
    found += [
        (f"{row[0]} {row[1]}", lambda r=row: call(r[0], r[1])(), row[2]) for row in code_blocks.rows(REFUSALS, "Calls")
    ]
    return found


def refusal(attempt: Callable) -> ValueError:
    try:
        attempt()
    except ValueError as error:
        return error
    raise AssertionError("nothing is refused")


@pytest.mark.parametrize(("attempt", "message"), [pytest.param(*line[1:], id=line[0]) for line in lines()])
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
            text = covering.refusal(build, direction == "causal", matrix.as_row(what, row))
            if not any(re.fullmatch(p, text) for p in patterns):
                unlisted.add(text)
    assert not unlisted, "docs/refusals.md has no line for these"


WITH_REFUSALS = ("transformer", "stream_input", "input_embedding", "token_head", "pooled_output", "pooling", "patches")


def building_sites() -> list[tuple[Path, ast.Raise]]:
    """Where the code refuses flags: ValueErrors of the stack's flags, and of parts and wrappers while being built."""
    package = Path(xflash.__file__).parent
    found = []
    for path in (
        package / "stack" / "config.py",
        *(package / "stack" / f"{name}.py" for name in ("held", "around", "layers", "resolve")),
        package / "flags" / "aliases.py",
        *(path for path in (package / "layers").rglob("*.py") if path.parent.name != "kernels"),
        *(package / "wrappers" / f"{name}.py" for name in WITH_REFUSALS),
    ):
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


# The test that compares a line of settings.md with its formula, and what it is called with.
FORMULAS = {
    "GAU as xflash starts it": (test_gau, "test_what_it_starts_with", ()),
    "GAU, the paper's formula": (test_gau, "test_the_papers_formula", ()),
    "GAU, the paper's appendix": (test_gau, "test_the_papers_appendix", (True,)),
    "GAU, a tutorial's code": (test_gau, "test_the_tutorials_code", ()),
    "FLASH-Quad with the length it was trained for": (
        test_gau,
        "test_flash_quad_with_the_length_it_was_trained_for",
        (),
    ),
    "GAU-alpha": (test_gau, "test_gau_alpha", ()),
    "FLASH, the paper's appendix": (test_flash, "test_the_papers_appendix", (True,)),
}
# What the formula tests choose for themselves, beside a norm at the end.
SIZES = {"gau_fixed_length", "gau_toeplitz_length"}


def flags_compared(module, name: str, arguments: tuple, monkeypatch) -> list[dict]:
    """The flags of everything that a formula test builds and compares."""
    seen = []

    def watched(build, prefix):
        def wrapper(causal=True, dim=None, depth=None, **flags):
            seen.append({prefix + flag: value for flag, value in flags.items()})
            sizes = {name: size for name, size in (("dim", dim), ("depth", depth)) if size is not None}
            return build(causal, **sizes, **flags)

        return wrapper

    prefix = "gau_" if module is test_gau else "flash_"
    monkeypatch.setattr(module, "build", watched(module.build, ""))
    monkeypatch.setattr(module, "block", watched(module.block, prefix))
    getattr(module, name)(*arguments)
    return seen


def without_sizes(flags: dict) -> dict:
    return {flag: None if flag in SIZES else value for flag, value in flags.items() if flag != "final_norm"}


@pytest.mark.parametrize("model", FORMULAS)
def test_the_settings_are_those_that_are_compared_with_their_formula(model, monkeypatch):
    row = next(row for row in code_blocks.rows(DOCS / "settings.md", "Which flags are which model") if row[0] == model)
    written = without_sizes(code_blocks.flags(row[1]))
    compared = flags_compared(*FORMULAS[model], monkeypatch)
    assert compared
    for flags in compared:
        assert without_sizes(flags) == written


# How the lines of FLASH-pytorch are built there.
PEERS = {
    "FLASH-pytorch's FLASHTransformer, causal": ("FLASHTransformer", {"num_tokens": 31, "depth": 2, "causal": True}),
    "FLASH-pytorch's FLASHTransformer, bidirectional": ("FLASHTransformer", {"num_tokens": 31, "depth": 2}),
    "FLASH-pytorch's GAU": ("GAU", {}),
}


@pytest.mark.parametrize("model", PEERS)
def test_the_settings_of_flash_pytorch_are_what_its_weights_are_converted_to(model):
    peers = pytest.importorskip("flash_pytorch")
    name, arguments = PEERS[model]
    converted = from_flash_pytorch(getattr(peers, name)(dim=26, **arguments))
    stack = converted.attn_layers if name == "FLASHTransformer" else converted.stack
    row = next(row for row in code_blocks.rows(DOCS / "settings.md", "Which flags are which model") if row[0] == model)
    layers = {"layers": "gau" if name == "GAU" else "flash", "causal": stack.causal, "depth": arguments.get("depth", 1)}
    written = AttentionLayers(dim=26, **layers, **code_blocks.flags(row[1]))
    assert written.to_config() == {**stack.to_config(), "class": "AttentionLayers", "causal": stack.causal}


def test_every_setting_is_compared():
    rows = {row[0] for row in code_blocks.rows(DOCS / "settings.md", "Which flags are which model")}
    assert rows == {*FORMULAS, *PEERS}
