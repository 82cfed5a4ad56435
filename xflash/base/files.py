"""Files that are whole or not there: written beside, brought to the disk, and moved into place."""

import errno
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["replacing", "write_whole"]

HALF = ".half-"  # what the folders begin with in which files are made


def write_whole(path: Path, content: bytes) -> None:
    """`content` as the file `path`, its folder made if needed: however it ends, all of it or what was there before."""
    with replacing(path.parent, path.name) as half:
        (half / path.name).write_bytes(content)


@contextmanager
def replacing(folder: Path, *names: str) -> Generator[Path, None, None]:
    """A place to make files of these names in, which then take the place of those in `folder`, one after the other.

    After an error all is as it was. What writers that were killed have left behind is removed.
    """
    make(folder)
    clear(folder)
    with workshop(folder) as half:
        yield half
        for name in names:
            sync(half / name)
        for name in names:
            os.replace(half / name, folder / name)
        sync_folder(folder)


def make(folder: Path) -> None:
    """Makes a folder and those it lies in; a new name is safe only when the folder that lists it is on the disk."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync_folder(path.parent)


@contextmanager
def workshop(folder: Path) -> Generator[Path, None, None]:
    """A new folder in `folder`, removed at the end, and locked until then: nobody takes it for one left behind."""
    half, lock = claimed(folder)
    try:
        yield half
    finally:
        shutil.rmtree(half, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def claimed(folder: Path) -> tuple[Path, int | None]:
    """A new folder in `folder` and its lock, None where there are none. Until it is locked, another may clear it."""
    while True:
        half = Path(tempfile.mkdtemp(prefix=HALF, dir=folder))
        try:
            return half, locked(half)
        except (BlockingIOError, FileNotFoundError):
            continue
        except OSError:  # a file system without locks
            return half, None


def locked(half: Path) -> int | None:
    """The lock on a folder, given up by closing it or when its process ends, however it does.

    None where the system has none. BlockingIOError when another has it, FileNotFoundError when the folder is gone.
    """
    if fcntl is None:
        return None
    lock = os.open(half, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        half.stat()
    except OSError:
        os.close(lock)
        raise
    return lock


def clear(folder: Path) -> None:
    """Removes what writers left behind in `folder` that were killed, told by the lock that nobody holds any more."""
    for half in folder.glob(HALF + "*"):
        try:
            lock = locked(half)
        except OSError:
            continue
        if lock is not None:
            shutil.rmtree(half, ignore_errors=True)
            os.close(lock)


def sync(path: Path) -> None:
    """Brings a file's content to the disk."""
    file = os.open(path, os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk, where that can be asked for: not on Windows or every network drive."""
    try:
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
            raise
