"""Files and folders, so that nothing is ever half there.

Owns writing a small file atomically, making a rename last, hashing, and the sentence for what the disk
refuses. It knows nothing of models. ``store`` and ``trust`` call it.
"""

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nexa_runtime.errors import NoSpaceError, StoreError

TEMPORARY_SUFFIX = ".tmp"
_CHUNK_BYTES = 4 * 1024**2
_SMALL_WRITE_BYTES = 10_000_000
"""More than a record and its folder take."""


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` in the place of ``path``: a reader sees the old or the new, a crash leaves one of them.

    Raises ``OSError``.
    """
    # Not tempfile's, which nobody else may read.
    temporary = path.with_name(f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def move_in(source: Path, target: Path) -> None:
    """Rename a finished file to where it stays, never to be written again. Raises ``OSError``."""
    with source.open("rb") as file:
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), os.fstat(file.fileno()).st_mode & ~0o222)
    os.replace(source, target)
    sync_folder(target.parent)
    sync_folder(source.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder last."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path, on_progress: Callable[[int], None]) -> str:
    """The sum of a file in hex. ``on_progress``: bytes hashed so far. Raises ``OSError``."""
    digest = hashlib.sha256()
    done_bytes = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done_bytes += len(chunk)
            on_progress(done_bytes)
    return digest.hexdigest()


def listed(folder: Path) -> list[Path]:
    """What is in a folder of the store; nothing where there is none. Raises ``StoreError``."""
    with reading(folder):
        try:
            return sorted(folder.iterdir())
        except FileNotFoundError:
            return []


def free_bytes_of(path: Path) -> int:
    """What can be written at a path, or at the nearest folder that there is. Raises ``OSError``."""
    return shutil.disk_usage(_nearest(path)).free


def try_writing(path: Path) -> None:
    """Whether a file can be made at a path, or in the nearest folder that there is. Raises ``StoreError``."""
    with writing(path), tempfile.TemporaryFile(dir=_nearest(path)):
        pass


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A refusal of the disk becomes a ``StoreError``."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"The model store cannot be read at {path}: {reason_of(error)}.") from error


@contextmanager
def writing(path: Path, needed_bytes: int = _SMALL_WRITE_BYTES) -> Iterator[None]:
    """A refusal of the disk becomes a ``StoreError``, a full one a ``NoSpaceError``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(path, needed_bytes, free_bytes_of(path)) from error
        raise StoreError(f"The model store cannot be written at {path}: {reason_of(error)}.") from error


def _nearest(path: Path) -> Path:
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def reason_of(error: OSError) -> str:
    """What the system says, without paths."""
    return os.strerror(error.errno) if error.errno else "input/output error"
