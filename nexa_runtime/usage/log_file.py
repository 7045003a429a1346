"""A file that lines are appended to, set aside when it is large.

Owns the file itself. It blocks: ``request_log`` calls it in a thread of its own.

Deliberate: whatever fails is raised, the file is closed, and the next call opens it anew; a line that was cut
in the middle, by a full disk or by the end of a process, gets an end then, so that the next one is whole. The
file that has the path's name is looked for before each write: someone may have moved or removed it.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

NUM_OLD = 5
"""Files ``.1`` (the latest) to ``.5``."""

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
"""A pipe that is opened for both waits for no reader."""
_MODE = 0o640
"""A line may hold a prompt."""


class LogFile:
    """``path``: also a device, which is never set aside."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._descriptor: int | None = None

    def write(self, lines: Sequence[bytes]) -> int:
        """Append as many of ``lines`` as one file takes; how many those are, one at least.

        Raises ``PartlyWrittenError``: how many are whole in the file, and why the rest is not.
        """
        num_done = 0
        try:
            descriptor, room_bytes = self._open_for(lines[0])
            data = b"".join(_fitting(lines, room_bytes))
            num_bytes = 0
            while num_bytes < len(data):
                num_bytes += os.write(descriptor, data[num_bytes:])
                num_done = data.count(b"\n", 0, num_bytes)
            return num_done
        except OSError as error:
            self.close()
            raise PartlyWrittenError(num_done, error) from None

    def close(self) -> None:
        """The next ``write`` opens it anew."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):  # a disk behind a network may say again that it is full
                os.close(descriptor)

    def _open_for(self, line: bytes) -> tuple[int, int]:
        """The descriptor of a file that takes ``line``, and how many bytes it may still grow by."""
        descriptor = self._open()
        size_bytes = _size_bytes(descriptor)
        if size_bytes and size_bytes + len(line) > self._max_bytes:
            self._set_aside()
            descriptor, size_bytes = self._open(), 0
        return descriptor, self._max_bytes - size_bytes

    def _open(self) -> int:
        """The descriptor of the file that has the path's name now."""
        if self._descriptor is not None and _is_at(self._descriptor, self.path):
            return self._descriptor
        self.close()
        self._descriptor = open_for_append(self.path)
        size_bytes = _size_bytes(self._descriptor)
        if size_bytes and os.pread(self._descriptor, 1, size_bytes - 1) != b"\n":
            os.write(self._descriptor, b"\n")
        return self._descriptor

    def _set_aside(self) -> None:
        self.close()
        names = [self.path, *(self.path.with_name(f"{self.path.name}.{n}") for n in range(1, NUM_OLD + 1))]
        for newer, older in reversed(list(pairwise(names))):
            if newer.exists():
                newer.replace(older)


class PartlyWrittenError(Exception):
    """The first ``num_done`` lines are in the file; ``reason``: why not all."""

    def __init__(self, num_done: int, reason: OSError) -> None:
        self.num_done = num_done
        self.reason = reason.strerror or str(reason)
        super().__init__(self.reason)


def open_for_append(path: Path) -> int:
    """A descriptor; the file is made if it is not there. Raises ``OSError``."""
    return os.open(path, _FLAGS, _MODE)


def _fitting(lines: Sequence[bytes], room_bytes: int) -> Sequence[bytes]:
    """The first lines that fit, one at least."""
    for number, line in enumerate(lines):
        room_bytes -= len(line)
        if room_bytes < 0:
            return lines[: max(number, 1)]
    return lines


def _size_bytes(descriptor: int) -> int:
    """Of a file; a device has none."""
    status = os.fstat(descriptor)
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
