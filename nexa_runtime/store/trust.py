"""Which blobs need not be hashed again.

Owns the memory of blobs whose sum was found right: a file in the state directory, or this process's memory
where that cannot be written. It never hashes and never touches the store. ``store`` alone asks it.

A blob is known by its inode, size and time of modification: a file that was written to, or replaced, is
another one.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from nexa_runtime.store.files import write_atomically

_FILE_NAME = "verified-blobs.json"
_MAX_FILE_BYTES = 16 * 1024**2

Stamp = tuple[int, int, int]


def stamp_of(path: Path) -> Stamp | None:
    """Inode, size and time of modification; None if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class TrustedBlobs:
    """``state_dir``: None for the process's memory only."""

    def __init__(self, state_dir: Path | None) -> None:
        self._path = None if state_dir is None else state_dir / _FILE_NAME
        self._own: dict[str, Stamp | None] = {}
        """What this process found; it holds where the file cannot be written. None: no longer trusted."""

    def has(self, path: Path) -> bool:
        """Whether the blob is still the one whose sum was right."""
        key, stamp = str(path), stamp_of(path)
        if stamp is None:
            return False
        return (self._own[key] if key in self._own else self._load().get(key)) == stamp

    def note(self, path: Path, stamp: Stamp | None) -> None:
        """The sum of the blob is right as of ``stamp``; None: it is not."""
        self._own[str(path)] = stamp
        if self._path is None:
            return
        # Two processes that note at once may lose one note: the blob is then hashed once more.
        known = {**self._load(), str(path): stamp}
        kept = {key: value for key, value in known.items() if value is not None and os.path.exists(key)}
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps({"schema": 1, "blobs": kept}).encode())

    def _load(self) -> dict[str, Stamp]:
        """What the file says; nothing if it is absent or damaged."""
        if self._path is None:
            return {}
        try:
            with self._path.open("rb") as file:
                loaded = json.loads(file.read(_MAX_FILE_BYTES))
            return {str(key): _stamp(value) for key, value in loaded["blobs"].items()}
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return {}


def _stamp(value: list[int]) -> Stamp:
    inode, size_bytes, modified_ns = value
    return inode, size_bytes, modified_ns
