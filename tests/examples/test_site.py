"""What the site is made of: reference pages that leave nothing out, signatures as the source has them, notebooks.

That it builds and its links lead somewhere is seen in `.ci/run`.
"""

import re
import sys

import pytest
import torch
from code_blocks import ROOT
from jaxtyping import Float, Int
from torch import Tensor

import xflash
from xflash import convert, probes

sys.path.append(str(ROOT / "docs" / "site"))

import notebook_pages
import reference

PAGES = sorted((ROOT / "docs" / "site" / "api").glob("*.md"))


def listed() -> list[tuple[str, str]]:
    """The lines of the reference pages, each with the module it is of."""
    return [
        (module, line)
        for page in PAGES
        for module, lines in re.findall(
            r"^```\{reference\} (\S+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
        )
        for line in lines.splitlines()
    ]


def names(module: str) -> list[str]:
    return sorted(line.partition(":")[0] for home, line in listed() if home == module)


def test_everything_that_is_exported_stands_on_one_page():
    later = {name for name in xflash.LATER if name not in ("convert", "probes")}
    assert names("xflash") == sorted({*xflash.__all__} | later)
    assert names("xflash.convert") == sorted(convert.__all__)
    assert names("xflash.probes") == sorted(probes.__all__)


@pytest.mark.parametrize(("module", "line"), listed())
def test_each_has_a_signature_and_words(module, line):
    """Methods that there are, and nothing that would read as the memory of a machine."""
    (text,) = reference.entries(module, [line])
    assert text.count("{py:method}") == len(line.partition(":")[2].split())
    assert "<class" not in text and "object at 0x" not in text and "jaxtyping" not in text


class Sample:
    """Does a thing (https://arxiv.org/abs/1706.03762), and [another](https://arxiv.org/abs/2202.10447)."""

    @classmethod
    def made(cls, activation=torch.relu) -> "Sample":
        """One of these."""

    def called(self, x: Float[Tensor, "b n d"], ids: Int[Tensor, "*b n"] | None = None, *, rate: float = 0.5) -> Tensor:
        """The sum.

        x: (b, n, d) what is summed,
        ids: (b, n) which of it.
        """


def test_signatures_are_those_of_the_source():
    given = "x: Float[Tensor, 'b n d'], ids: Int[Tensor, '*b n'] | None = None, *, rate: float = 0.5"
    assert reference.signature(Sample.called, bound=True) == f"({given}) -> Tensor"
    assert reference.signature(Sample.called) == f"(self, {given}) -> Tensor"
    assert reference.signature(Sample.made) == "(activation=relu) -> Sample"


def test_a_stack_shows_its_first_flags_and_no_table():
    assert reference.signature(xflash.Decoder).endswith("causal=True, layers=None, **flags)")
    assert reference.words(xflash.Decoder) == "A causal stack: no token sees a later one, and `step` decodes."


def test_docstrings_become_markdown():
    link = "[another](https://arxiv.org/abs/2202.10447)"
    assert reference.words(Sample) == f"Does a thing (<https://arxiv.org/abs/1706.03762>), and {link}."
    # Two blanks at the end of a line break it.
    assert reference.words(Sample.called).endswith("\nx: (b, n, d) what is summed,  \nids: (b, n) which of it.")
    text = reference.described(sys.modules[__name__], "Sample", ["made", "called"])
    assert text.count("{py:method}") == 2 and text.count(":classmethod:") == 1


def test_what_has_no_docstring_is_refused():
    with pytest.raises(ValueError, match="is listed, but has no docstring"):
        reference.words(lambda: None)


def test_a_notebook_is_the_markdown_it_stands_for():
    picture = {"output_type": "display_data", "data": {"image/png": "iVBO\nRw0K", "text/plain": ["<Figure>"]}}
    table = {"output_type": "execute_result", "data": {"text/html": ["<b>", "1</b>"], "text/plain": "1"}}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {"cell_type": "code", "source": "f()", "outputs": [picture, table, {"output_type": "stream", "text": ["a\n"]}]},
    ]
    fence = notebook_pages.FENCE
    assert notebook_pages.as_markdown({"cells": cells}).split("\n\n") == [
        "# Title\nwords",
        f"{fence}python\nf()\n{fence}",
        "![](data:image/png;base64,iVBORw0K)",
        f"{fence}{{raw}} html\n<b>1</b>\n{fence}",
        f"{fence}text\na\n{fence}",
    ]
