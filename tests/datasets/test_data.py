import bz2
import gzip
import hashlib
import lzma
import math
import subprocess
import sys
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from xflash.datasets import fetch
from xflash.datasets import sequences as data

WORDS = b"the quick brown fox jumps over the lazy dog. " * 40


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty folder, an empty cache, no gensim, and a pip that must not be called."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("XFLASH_DATA", raising=False)
    monkeypatch.setattr(fetch, "find_spec", lambda name: None)
    monkeypatch.setattr(fetch.subprocess, "run", lambda *a, **k: pytest.fail("a test went to the network"))


@pytest.fixture
def lines():
    return []


@pytest.fixture
def small_wiki(monkeypatch):
    """A small text in the place of the Wikipedia extract, checksums included; returns it packed."""
    packed = bz2.compress(WORDS)
    monkeypatch.setattr(data, "WIKI", replace(data.WIKI, sha256=hashlib.sha256(packed).hexdigest()))
    return packed


def pip_that_brings(packed, calls):
    def run(command, **options):
        calls.append(command)
        folder = command[command.index("-d") + 1]
        with zipfile.ZipFile(f"{folder}/some.whl", "w") as wheel:
            wheel.writestr(data.WIKI.path, packed)

    return run


PACK = {"": bytes, ".txt": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("suffix", PACK)
def test_a_given_file_is_read_by_its_suffix(suffix, tmp_path, lines):
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(PACK[suffix](WORDS))
    found = data.text(path, say=lines.append)
    assert found.data == WORDS
    assert lines == [f"text: mine{suffix}, 1,800 bytes, licence: yours to know; from {path}"]


def test_a_zip_holds_one_file(tmp_path, lines):
    path = tmp_path / "mine.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/", b"")
        archive.writestr("folder/a", WORDS)
    assert data.text(path, say=lines.append).data == WORDS
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b", WORDS)
    with pytest.raises(ValueError, match=r"holds 2 files \['folder/a', 'b'\]"):
        data.text(path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zip"])
def test_a_broken_archive_says_which(suffix, tmp_path):
    (tmp_path / f"mine{suffix}").write_bytes(b"this is no archive")
    with pytest.raises(ValueError, match=rf"mine\{suffix} cannot be read as \{suffix}"):
        data.text(tmp_path / f"mine{suffix}")


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "shakespeare.txt").write_bytes(WORDS)
    with pytest.raises(FileNotFoundError, match=r"no text at .*shakespear\.txt; did you mean 'shakespeare\.txt'\?"):
        data.text(tmp_path / "shakespear.txt")
    with pytest.raises(FileNotFoundError, match="no text at nowhere"):
        data.text("nowhere/at/all.txt")
    with pytest.raises(ValueError, match="is a folder; give a file"):
        data.text(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="holds no bytes"):
        data.text(tmp_path / "empty")


def test_enwik8_is_found_beside_or_where_the_variable_says(tmp_path, monkeypatch, lines):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "enwik8.gz").write_bytes(gzip.compress(WORDS))
    found = data.text(say=lines.append)
    assert (found.name, found.licence, found.data) == ("enwik8", "CC BY-SA (Wikipedia)", WORDS)

    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("XFLASH_DATA", str(elsewhere))
    with pytest.raises(ValueError, match=r"XFLASH_DATA is '.*elsewhere', which is no folder"):
        data.text()
    elsewhere.mkdir()
    assert data.text(say=lines.append).data == WORDS
    assert "has none of enwik8, enwik8.gz, enwik8.zip; looking on" in lines[-2]
    (elsewhere / "enwik8").write_bytes(WORDS[:100])
    assert data.text(say=lines.append).data == WORDS[:100]


def test_the_wiki_is_fetched_once(small_wiki, monkeypatch, lines):
    calls = []
    monkeypatch.setattr(fetch.subprocess, "run", pip_that_brings(small_wiki, calls))
    for _ in range(2):
        assert data.text(say=lines.append).data == WORDS
    assert len(calls) == 1
    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert lines[-1].endswith("enwiki-2016-shortened.xml.bz2")


def test_a_damaged_cache_is_replaced(small_wiki, tmp_path, monkeypatch, lines):
    monkeypatch.setattr(fetch.subprocess, "run", pip_that_brings(small_wiki, []))
    data.text(say=lines.append)
    (cached,) = (tmp_path / "cache" / "xflash").iterdir()
    cached.write_bytes(cached.read_bytes()[:-1])
    assert data.text(say=lines.append).data == WORDS
    assert any("has not the expected checksum; not used" in line for line in lines)
    assert cached.read_bytes() == small_wiki


def test_a_wheel_with_other_content_is_refused(monkeypatch, tmp_path, lines):
    monkeypatch.setattr(fetch.subprocess, "run", pip_that_brings(bz2.compress(WORDS), []))
    assert data.text(say=lines.append).name == "Python sources"
    assert any("gensim==4.4.0 has not the expected checksum" in line for line in lines)
    assert not (tmp_path / "cache").exists()


def test_an_installed_gensim_is_read_in_place(small_wiki, tmp_path, monkeypatch, lines):
    place = tmp_path / "site" / data.WIKI.path
    place.parent.mkdir(parents=True)
    place.write_bytes(small_wiki)
    origin = str(tmp_path / "site" / "gensim" / "__init__.py")
    monkeypatch.setattr(fetch, "find_spec", lambda name: SimpleNamespace(origin=origin))
    assert data.text(download=False, say=lines.append).source == str(place)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (subprocess.CalledProcessError(1, "pip", stderr="WARNING: hm\nERROR: no such host"), "(ERROR: no such host)"),
        (subprocess.CalledProcessError(1, "pip", stderr=""), "(pip ended with 1)"),
        (subprocess.TimeoutExpired("pip", 300), "TimeoutExpired"),
        (FileNotFoundError("no python"), "no python"),
    ],
)
def test_without_a_network_python_sources_do(failure, reason, monkeypatch, lines):
    def run(*args, **options):
        raise failure

    monkeypatch.setattr(fetch.subprocess, "run", run)
    found = data.text(say=lines.append)
    assert reason in lines[1]
    assert lines[-1] == str(found)
    assert found.name == "Python sources"


def test_python_sources_are_the_same_every_time(lines):
    found = data.text(download=False, say=lines.append)
    assert len(found.data) == data.SOURCES_CAP
    assert found == data.text(download=False, say=lines.append)
    assert b"import " in found.data
    assert "PSF-2.0" in lines[0]
    assert "data" not in repr(found)


def test_splits():
    made = data.Text("made", "none", "here", bytes(range(250)))
    train, valid, test = data.splits(made)
    assert (len(train), len(valid), test) == (225, 25, b"")
    assert train + valid == made.data
    # Zeros are cheap: enwik8's own split is only used for a text of its size.
    assert list(map(len, data.splits(data.Text("enwik8", "", "", bytes(99_000_000))))) == [
        90_000_000,
        5_000_000,
        4_000_000,
    ]
    assert list(map(len, data.splits(data.Text("enwik8", "", "", bytes(1000))))) == [900, 100, 0]


def test_articles():
    dump = b"<page><title>A</title><text xml:space='preserve'>one\ntwo</text></page><page><text>three</text></page>"
    assert data.articles(dump) == [b"one\ntwo", b"three"]
    with pytest.raises(ValueError, match="splits MediaWiki XML dumps"):
        data.articles(WORDS)


def test_to_ids():
    assert data.to_ids(b"ab\xff").tolist() == [97, 98, 255]
    assert data.to_ids(b"").shape == (0,)
    assert data.to_ids(b"a").dtype == torch.uint8


def test_ngram_bits_by_hand():
    # Counts in 'aab' with .5 added: a 2.5, b 1.5, each other byte .5, out of 3 + 128.
    expected = -(math.log2(2.5 / 131) + math.log2(0.5 / 131)) / 2
    assert data.ngram_bits(b"aab", b"ac", 1, add=0.5) == pytest.approx(expected)
    # In 'aabc' an 'a' is followed by one 'a' and one 'b', and a 'b' by one 'c'.
    expected = -(math.log2(1.5 / 130) + math.log2(0.5 / 129)) / 2
    assert data.ngram_bits(b"aabc", b"abx", 2, add=0.5) == pytest.approx(expected)
    # What never came before says nothing: 8 bits.
    assert data.ngram_bits(b"aabc", b"xyz", 3) == pytest.approx(8)


def test_ngram_bits_do_not_depend_on_the_pieces(monkeypatch):
    whole = data.ngram_bits(WORDS, WORDS, 3)
    pieces = data._ngrams
    monkeypatch.setattr(data, "_ngrams", lambda ids, order: pieces(ids, order, chunk=700))
    assert data.ngram_bits(WORDS, WORDS, 3) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((WORDS, WORDS, 4), "order is 4; possible are 1, 2 and 3"),
        ((b"ab", WORDS, 3), "train has 2 bytes"),
        ((WORDS, b"", 1), "valid has 0 bytes"),
    ],
)
def test_ngram_bits_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.ngram_bits(*arguments)
    with pytest.raises(ValueError, match="add is 0; it must be above 0"):
        data.ngram_bits(WORDS, WORDS, 1, add=0)


def test_documents_in_rows():
    pages = [b"a" * 7, b"b" * 3, b"c", b"d" * 10, b"e" * 2]
    rows = data.in_rows(pages, 2, 3)
    assert [bytes(row.tolist()).rstrip(b"\0") for row in rows.ids] == [
        b"a" * 7 + b"\0\0" + b"e" * 2,
        b"b" * 3 + b"c\0\0" + b"d" * 10,
    ]
    assert rows.real.sum().item() == sum(map(len, pages))
    assert rows.starts.tolist() == [[True, False, False, True, False, False], [True, True, True, False, False, False]]
    assert rows.offset[1].tolist() == [0, 1, 2, 0, 0, 0, *range(10), 0, 0]
    shuffled = data.in_rows(pages, 2, 3, torch.Generator().manual_seed(1))
    assert sorted(bytes(shuffled.ids[shuffled.real].tolist())) == sorted(b"".join(pages))
    assert not torch.equal(shuffled.ids[:, :12], rows.ids[:, :12])
    with pytest.raises(ValueError, match="2 documents cannot fill 3 rows"):
        data.in_rows(pages[:2], 3, 3)


def test_documents_of_a_text():
    assert data.documents(b"<text>one</text> <text></text> <text a>two</text>") == [b"one", b"two"]
    assert data.documents(b"x" * 10, longest=4) == [b"xxxx", b"xxxx", b"xx"]
