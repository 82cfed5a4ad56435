"""Real text to train on with nothing to fetch by hand.

`text()` finds some, `splits()` cuts it, `ngram_bits()` says how many bits a byte a mere table of counts would need.
"""

import bz2
import gzip
import hashlib
import lzma
import os
import re
import sysconfig
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..base.checks import check_call, check_count, check_generator, check_switch, describe, number, shown
from ..base.registry import nearest
from .fetch import Packaged, find

WIKI = Packaged(
    wheel="gensim==4.4.0",
    path="gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    sha256="a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
    kept_as="enwiki-2016-shortened.xml.bz2",
    label="text",
    what="6 MB of Wikipedia text (a 28 MB package, once)",
    # The wheel is only unzipped, never installed: one fixed build serves every Python and every system.
    tags=("--python-version=3.11", "--implementation=cp", "--abi=cp311", "--platform=manylinux_2_28_x86_64"),
)

ENWIK8 = ("enwik8", "enwik8.gz", "enwik8.zip")
SOURCES_CAP = 6_000_000


@dataclass(frozen=True)
class Text:
    """Bytes to train on, with where they come from and under which terms."""

    name: str
    licence: str
    source: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"text: {self.name}, {len(self.data):,} bytes, {self.licence}; from {self.source}"


def check_bytes(name: str, value: object) -> None:
    """TypeError unless it is bytes."""
    if not isinstance(value, (bytes, bytearray)):
        raise TypeError(f"{name} must be bytes, not {describe(value)}")


class Splits(NamedTuple):
    train: bytes
    valid: bytes
    test: bytes


def text(path: str | os.PathLike | None = None, *, download: bool = True, say: Callable[[str], object] = print) -> Text:
    """The given file, else enwik8 if it is there, else 6 MB of Wikipedia that a package carries, else Python sources.

    `path` may end in .gz, .bz2, .xz or .zip. enwik8 (or enwik8.gz, enwik8.zip) is looked for in the folder that the
    environment variable XFLASH_DATA names, then in ./data. With `download=False` nothing is fetched; without a network
    the search just goes on. `say` gets a line that names the text and its licence (and one for each failed source).
    """
    if not isinstance(path, (str, os.PathLike, type(None))):
        raise TypeError(f"path must be that of a file of text, not {describe(path)}")
    check_switch("download", download)
    check_call("say", say)
    found = _given(Path(path)) if path is not None else _enwik8(say) or _wiki(download, say) or _sources()
    say(str(found))
    return found


def splits(text: Text) -> Splits:
    """Train, validation and test part: enwik8's usual 90M / 5M / 5M bytes; any other text 90 / 10 and no test part."""
    if not isinstance(text, Text):
        raise TypeError(f"text must be what text() gave, a Text, not {describe(text)}")
    data = text.data
    if text.name == "enwik8" and len(data) > 90_000_000:
        return Splits(data[:90_000_000], data[90_000_000:95_000_000], data[95_000_000:])
    cut = len(data) * 9 // 10
    return Splits(data[:cut], data[cut:], b"")


def articles(data: bytes) -> list[bytes]:
    """The bodies of a MediaWiki dump's pages (enwik8, the Wikipedia extract) as they stand there: one document each."""
    check_bytes("data", data)
    found = re.findall(rb"<text[^>]*>(.*?)</text>", data, re.DOTALL)
    if not found:
        raise ValueError("no <text>...</text> in these bytes: articles() splits MediaWiki XML dumps such as enwik8")
    return found


class Rows(NamedTuple):
    """Documents laid out in rows that are read segment by segment; each begins with a segment, padded to its end.

    ids: (rows, t) bytes.  real: (rows, t), False where there is padding.  offset: (rows, t) each byte's distance from
    the start of its document.  starts: (rows, segments) where a document begins.
    """

    ids: Tensor
    real: Tensor
    offset: Tensor
    starts: Tensor


def documents(data: bytes, longest: int = 1 << 16) -> list[bytes]:
    """The pages of a MediaWiki dump, else the bytes in parts of `longest`."""
    check_count("longest", longest)
    check_bytes("data", data)
    try:
        return [page for page in articles(data) if page]
    except ValueError:
        return [data[at : at + longest] for at in range(0, len(data), longest)]


def in_rows(documents: Sequence[bytes], rows: int, segment: int, generator: torch.Generator | None = None) -> Rows:
    """The documents, in an order drawn from `generator` if there is one, each put behind the row that is shortest.

    ValueError when there are fewer documents than rows, for then a row would have none.
    """
    check_count("rows", rows)
    check_count("segment", segment)
    check_generator(generator)
    if not isinstance(documents, (list, tuple)):
        raise TypeError(f"documents must be a list of bytes, not {describe(documents)}")
    for i, document in enumerate(documents):
        check_bytes(f"documents[{i}]", document)
    if len(documents) < rows:
        raise ValueError(f"{len(documents)} documents cannot fill {rows} rows")
    order = range(len(documents)) if generator is None else torch.randperm(len(documents), generator=generator).tolist()
    held: list[list[bytes]] = [[] for _ in range(rows)]
    taken = [0] * rows
    for i in order:
        row = taken.index(min(taken))
        held[row].append(documents[i])
        taken[row] += -(-len(documents[i]) // segment)
    shape = rows, max(taken) * segment
    laid = Rows(
        torch.zeros(shape, dtype=torch.uint8),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape, dtype=torch.int32),
        torch.zeros(rows, max(taken), dtype=torch.bool),
    )
    for row, own in enumerate(held):
        at = 0
        for document in own:
            span = slice(at, at + len(document))
            laid.ids[row, span] = to_ids(document)
            laid.real[row, span] = True
            laid.offset[row, span] = torch.arange(len(document), dtype=torch.int32)
            laid.starts[row, at // segment] = True
            at += -(-len(document) // segment) * segment
    return laid


def to_ids(data: bytes) -> Tensor:
    """Bytes as a uint8 tensor: one byte, one token (`.long()` a batch of it, not the whole)."""
    # frombuffer shares memory and wants it writable, hence the copy.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def ngram_bits(train: bytes, valid: bytes, order: int, *, add: float = 0.1) -> float:
    """Bits per byte on `valid` of an n-gram model counted on `train`, with `add` added to each count.

    1, 2 and 3 are the yardsticks unigram, bigram and trigram: a trained model has to be below them.
    """
    if type(order) is not int or order not in (1, 2, 3):
        raise ValueError(
            f"order is {shown(order)}; possible are 1, 2 and 3 (the table of counts has 256**order entries)"
        )
    if not number("add", add) > 0:
        raise ValueError(f"add is {add}; it must be above 0, or what was never seen costs infinitely many bits")
    for name, data in (("train", train), ("valid", valid)):
        check_bytes(name, data)
        if len(data) < order:
            raise ValueError(f"{name} has {len(data)} bytes; an n-gram of order {order} needs at least {order}")
    counts = torch.zeros(256**order, dtype=torch.long)
    for grams in _ngrams(train, order):
        counts += torch.bincount(grams, minlength=len(counts))
    totals = counts.view(-1, 256).sum(1)
    bits = 0.0
    for grams in _ngrams(valid, order):
        p = (counts[grams] + add) / (totals[grams // 256] + 256 * add)
        bits -= p.double().log2().sum().item()
    return bits / (len(valid) - order + 1)


def _ngrams(data: bytes, order: int, chunk: int = 1 << 23):
    """Every run of `order` bytes as one number, in pieces (enwik8 at once would need gigabytes)."""
    ids = to_ids(data)
    for start in range(0, len(ids) - order + 1, chunk):
        piece = ids[start : start + chunk + order - 1].long()
        width = len(piece) - order + 1
        number = piece[:width]
        for at in range(1, order):
            number = number * 256 + piece[at : at + width]
        yield number


def _given(path: Path) -> Text:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file of text (plain, .gz, .bz2, .xz or .zip)")
    if not path.exists():
        here = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"no text at {path}{nearest(path.name, here)} ({path.parent} holds {len(here)} files)")
    data = _unpack(path)
    if not data:
        raise ValueError(f"{path} holds no bytes")
    name = path.name.split(".")[0] if path.name in ENWIK8 else path.name
    licence = "CC BY-SA (Wikipedia)" if name == "enwik8" else "licence: yours to know"
    return Text(name, licence, str(path), data)


def _unpack(path: Path) -> bytes:
    stored, suffix = path.read_bytes(), path.suffix.lower()
    plain = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
    try:
        if suffix == ".zip":
            return _only_member(path)
        return plain[suffix](stored) if suffix in plain else stored
    except (OSError, EOFError, RuntimeError, lzma.LZMAError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as {suffix}: {error}") from error


def _only_member(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        files = [info.filename for info in archive.infolist() if not info.is_dir()]
        if len(files) != 1:
            raise ValueError(f"{path} holds {len(files)} files {files[:5]}; a zipped text holds exactly one")
        return archive.read(files[0])


def _enwik8(say: Callable[[str], object]) -> Text | None:
    folders = [Path("data")]
    if named := os.environ.get("XFLASH_DATA"):
        folders.insert(0, Path(named))
        if not folders[0].is_dir():
            raise ValueError(f"XFLASH_DATA is {named!r}, which is no folder")
        if not any((folders[0] / name).exists() for name in ENWIK8):
            say(f"text: XFLASH_DATA ({named}) has none of {', '.join(ENWIK8)}; looking on")
    return next((_given(folder / name) for folder in folders for name in ENWIK8 if (folder / name).exists()), None)


def _wiki(download: bool, say: Callable[[str], object]) -> Text | None:
    found = find(WIKI, download, say)
    if found is None:
        return None
    return Text("English Wikipedia, 206 pages of 2016", "CC BY-SA (Wikipedia)", found[1], bz2.decompress(found[0]))


def _sources() -> Text:
    """Python's own modules and torch's: on every machine that can import this one.

    Files stand in the order of a hash of their path: the same everywhere, and no package ends up in one split only.
    """
    roots = {"python": Path(sysconfig.get_paths()["stdlib"]), "torch": Path(torch.__file__).parent}
    files = {}
    for label, root in roots.items():
        for file in root.rglob("*.py"):
            inside = file.relative_to(root)
            if not {"site-packages", "dist-packages", "test", "tests"} & set(inside.parts):
                files[f"{label}/{inside.as_posix()}"] = file
    data = bytearray()
    for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(data) >= SOURCES_CAP:
            break
        data += files[name].read_bytes()
    licence = "PSF-2.0 (Python) and BSD-3-Clause (torch)"
    return Text("Python sources", licence, "the installed packages", bytes(data[:SOURCES_CAP]))
