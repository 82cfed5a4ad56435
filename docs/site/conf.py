"""The site: the pages of this checkout where they stand, the reference and the notebooks.

`python -m sphinx -W --keep-going -c docs/site . build/site` builds it; a dead link or a page that is left out fails.
The checkout itself is the source, so that a link between two pages is the same in both.
"""

import json
import sys
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parent))

import notebook_pages
import reference

project = "xflash"
html_title = "xflash"
html_theme = "furo"
html_show_sphinx = False
extensions = ["myst_parser"]
myst_heading_anchors = 4
python_maximum_signature_line_length = 100
smartquotes = False

root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/site/api/*.md", "benchmarks/README.md", "examples/*.ipynb"]
exclude_patterns = [".*", "venv*", "build", "runs"]
html_copy_source = False

# Every page, in the order of reading; one that is not here is a warning.
PAGES = {
    "Guide": ["docs/state", "docs/training", "docs/own_block", "docs/arguments", "docs/refusals"],
    "Experiments": ["docs/compare", "docs/probes", "docs/look"],
    "Notebooks": ["examples/first_stack", "examples/own_parts", "examples/attention", "examples/comparing"],
    "Known models": ["docs/recipes", "docs/models", "docs/coming_from", "docs/settings"],
    "Reference": [
        "docs/flags",
        *(f"docs/site/api/{page}" for page in ("stacks", "models", "training", "parts", "experiments", "tools")),
    ],
    "What holds": ["docs/laws", "docs/figures", "benchmarks/README"],
    "The project": ["docs/architecture", "CONTRIBUTING", "CHANGELOG"],
}


def contents(app, name, source):
    """Behind the README, which says nothing of the site, stand its contents."""
    if name == root_doc:
        for caption, pages in PAGES.items():
            source[0] += "\n".join(["\n```{toctree}", ":hidden:", f":caption: {caption}", *pages, "```\n"])


def front(app, error):
    """The README is what a folder's address shows."""
    if error is None:
        (Path(app.outdir) / "index.html").write_text(f'<meta http-equiv="refresh" content="0; url={root_doc}.html">\n')


class Reference(SphinxDirective):
    """What a module exports, by its names."""

    has_content, required_arguments = True, 1

    def run(self):
        text = "\n".join(reference.entries(self.arguments[0], list(self.content)))
        found = nodes.Element()
        self.state.nested_parse(StringList(text.split("\n"), "docs/site/reference.py"), self.content_offset, found)
        return found.children


class NotebookParser(MystParser):
    """Reads a notebook as the Markdown that it stands for."""

    supported = ("notebook",)

    def parse(self, inputstring, document):
        super().parse(notebook_pages.as_markdown(json.loads(inputstring)), document)


def setup(app):
    app.add_directive("reference", Reference)
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    app.connect("source-read", contents)
    app.connect("build-finished", front)
