"""How the house is built: which rooms import which, how long files, functions and signatures are, where tests stand."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "xflash", ROOT / "tests"

# Each room imports from those before it; datasets from the first only. What starts the package or describes the whole
# of it (`xflash`, `python -m xflash`, `xflash.flops`) may import anything, and nothing imports it.
ROOMS = (
    *("base", "flags", "layers", "saving", "stack", "generation", "wrappers", "convert"),
    *("look", "probes", "experiments"),
)
DATASETS = ("base", "datasets")
# What trains needs data.
TRAINS = ("experiments",)
WHOLE = ("__init__", "__main__", "flops")
# Inside `layers`: kernels know no part; a part knows what it is built from and called with; blocks know parts; a branch
# holds a block and the parts around it. What is named neither here nor in `blocks` is a part.
LAYERS = ("kernels", "site", "blocks.block", "parts", "blocks", "branch")

LONGEST_FILE, LONGEST_TEST, LONGEST_FUNCTION, MOST_ARGUMENTS = 300, 400, 50, 10
# What users call with names of arguments, and what PyTorch calls with the tensors of a kernel.
PUBLIC = {"__init__", "forward", "step", "generate", "stream", "beam_search"}
KERNELS = PACKAGE / "layers" / "kernels"


# Until these are moved they may break the limits; a file that keeps them is taken off the list.
PENDING: set[str] = set()


class Module(NamedTuple):
    """A file of the package, its name inside it, what it imports of the package (`first`: at once), and its syntax."""

    path: Path
    name: str
    imports: frozenset[str]
    first: frozenset[str]
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.split(".")[0]


@functools.cache
def modules() -> dict[str, Module]:
    """Every module of the package by its name without `xflash.`."""
    paths = {name_of(path): path for path in PACKAGE.rglob("*.py")}
    return {name: read(name, path, paths) for name, path in sorted(paths.items())}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def read(name: str, path: Path, paths: dict[str, Path]) -> Module:
    tree = ast.parse(path.read_text())
    every, first = (
        frozenset(target for node in nodes for target in imported(node, path) if target in paths) - {name}
        for nodes in (ast.walk(tree), outside_functions(tree))
    )
    return Module(path, name, every, first, tree)


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported."""
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not for_types and not isinstance(child, (ast.FunctionDef, ast.Lambda)):
            yield child
            yield from outside_functions(child)


def imported(node: ast.AST, path: Path) -> list[str]:
    """The names, inside the package, of what an import may be of: a module, or the module that something is in."""
    if not isinstance(node, ast.ImportFrom):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        return [name.removeprefix("xflash.") for name in names if name.startswith("xflash.")]
    if node.level:
        here = path.relative_to(PACKAGE).parent.parts
        base = [*here[: len(here) - node.level + 1], *(node.module or "").split(".")]
    else:
        package, *base = (node.module or "").split(".")
        if package != "xflash":
            return []
    start = ".".join(part for part in base if part)
    inner = [f"{start}.{alias.name}" if start else alias.name for alias in node.names]
    # `from ..stack import face` is of the module alone, `from ..stack.face import Decoder` of what it is in.
    return [name for name in inner if (PACKAGE / name.replace(".", "/")).with_suffix(".py").exists()] or [start]


def functions(module: Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef)]


def none_of(wrong: list[tuple[str, str]]) -> None:
    """Fails for what breaks a limit, given by module, unless that is pending."""
    said = [f"{module} {what}" for module, what in wrong if module not in PENDING]
    assert not said, "\n".join(["", *said])


def test_rooms_import_those_before_them():
    wrong = []
    for module in modules().values():
        if module.room in WHOLE:
            continue
        order = DATASETS if module.room == "datasets" else ROOMS
        assert module.room in order, f"{module.name} is in no room"
        allowed = order[: order.index(module.room) + 1] + (DATASETS if module.room in TRAINS else ())
        wrong += [(module.name, f"imports {name}") for name in module.imports if name.split(".")[0] not in allowed]
    none_of(wrong)


def place_in_layers(name: str) -> int:
    """How far up a module of `layers` stands."""
    inner = name.removeprefix("layers.")
    known = next((part for part in LAYERS if inner == part or (inner + ".").startswith(part + ".")), "parts")
    return LAYERS.index(known)


def test_layers_import_what_is_below_them():
    inside = [module for module in modules().values() if module.name.startswith("layers.")]
    wrong = [
        (module.name, f"imports {name}")
        for module in inside
        for name in module.imports
        if name.startswith("layers.") and place_in_layers(name) > place_in_layers(module.name)
    ]
    none_of(wrong)


def test_no_import_goes_in_a_circle():
    """What a function imports when it is called may need the function: `model.save` is all there is of it."""
    left = {name: set(module.first) for name, module in modules().items()}
    while leaves := [name for name, imports in left.items() if not imports]:
        for name in leaves:
            del left[name]
        for imports in left.values():
            imports.difference_update(leaves)
    assert not left, f"a circle among {sorted(left)}"


def line_count(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_files_are_short():
    sizes = {module.name: line_count(module.path) for module in modules().values()}
    none_of([(name, f"has {lines} lines") for name, lines in sizes.items() if lines > LONGEST_FILE])
    tests = {path.relative_to(ROOT): line_count(path) for path in TESTS.rglob("*.py")}
    none_of([(str(path), f"has {lines} lines") for path, lines in tests.items() if lines > LONGEST_TEST])


def test_functions_are_short():
    found = [(module, node) for module in modules().values() for node in functions(module)]
    sizes = [(module.name, node.name, (node.end_lineno or 0) - node.lineno + 1) for module, node in found]
    none_of([(name, f"has {what} of {lines} lines") for name, what, lines in sizes if lines > LONGEST_FUNCTION])
    assert len(sizes) > 1000


def argument_count(node: ast.FunctionDef) -> int:
    given = node.args
    named = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(named) - (named[:1] in (["self"], ["cls"])) + (given.vararg is not None) + (given.kwarg is not None)


def test_signatures_are_short():
    wrong = [
        (module.name, f"has {node.name} of {argument_count(node)} arguments")
        for module in modules().values()
        if not module.path.is_relative_to(KERNELS)
        for node in functions(module)
        if node.name not in PUBLIC and argument_count(node) > MOST_ARGUMENTS
    ]
    none_of(wrong)


def test_tests_stand_where_their_room_is():
    folders = {path.parent.name for path in TESTS.rglob("test_*.py") if path.parent != TESTS}
    assert folders == {*ROOMS, "datasets", "examples"}
    # Of the house as a whole.
    assert {path.name for path in TESTS.glob("test_*.py")} == {"test_house.py"}


def test_the_page_of_the_house_is_of_this_house():
    """Its rooms are those above, in their order; every file and folder that it names is there."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE) == list(ROOMS)
    named = {word for word in re.findall(r"`([\w/.]+)`", page) if word.endswith((".py", "/"))}
    missing = [
        word
        for word in named
        if not any((top / word).exists() for top in (ROOT, PACKAGE, PACKAGE / "layers", PACKAGE / "stack"))
    ]
    assert not missing and len(named) > 20


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("stack/face.py", "from ..base.shapes import Tensor", ["base.shapes"]),
        ("stack/face.py", "from ..layers.blocks import block", ["layers.blocks.block"]),
        ("layers/blocks/gau.py", "from .block import Block, Site", ["layers.blocks.block"]),
        ("layers/blocks/gau.py", "from ...base.checks import shown", ["base.checks"]),
        ("stack/__init__.py", "from .face import Decoder", ["stack.face"]),
        ("flops.py", "from xflash.stack.face import Decoder", ["stack.face"]),
        ("flops.py", "import xflash.stack.face", ["stack.face"]),
        ("flops.py", "from torch import nn", []),
    ],
)
def test_imports_are_read_as_python_does(path, source, expected):
    assert imported(ast.parse(source).body[0], PACKAGE / path) == expected
