"""A request log, read back: which of its requests can be sent again, and what is wrong with the rest.

Owns the limits of what is read. ``replay`` calls it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nexa_runtime.errors import NotFoundError, UsageError
from nexa_runtime.usage.log_line import LineError, LoggedRequest, read_line

MAX_REQUESTS = 200_000
"""Of one replay: they are all in memory."""
_MAX_LINE_BYTES = 64 * 2**20
_MAX_NAMED = 10


@dataclass(frozen=True, slots=True)
class BadLine:
    """``number``: from 1 on."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class RequestFile:
    """``requests`` in the order in which they were admitted. ``bad_lines``: the first of ``num_bad``."""

    requests: list[LoggedRequest]
    num_bad: int
    bad_lines: list[BadLine]


def read_requests(path: Path, limit: int | None) -> RequestFile:
    """The first ``limit`` requests of a file, or all.

    Raises ``NotFoundError``, ``UsageError`` for a file without a request, ``OSError``.
    """
    requests: list[LoggedRequest] = []
    bad: list[BadLine] = []
    num_bad = number = 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise NotFoundError(f"There is no file {path}.") from None
    with file:
        while (limit is None or len(requests) < limit) and (line := file.readline(_MAX_LINE_BYTES)):
            number += 1
            try:
                if not line.endswith(b"\n"):
                    _skip_line(file, line)
                if line.strip():
                    requests.append(read_line(line.strip()))
            except LineError as error:
                num_bad += 1
                if len(bad) < _MAX_NAMED:
                    bad.append(BadLine(number, str(error)))
            if len(requests) > MAX_REQUESTS:
                raise UsageError(f"{path} has more than {MAX_REQUESTS} requests; choose some with --limit.")
    if not requests:
        why = f": line {bad[0].number}: {bad[0].reason}." if bad else "."
        raise UsageError(f"{path} has no request that can be read{why}")
    return RequestFile(sorted(requests, key=lambda one: one.created_at), num_bad, bad)


def _skip_line(file: BinaryIO, line: bytes) -> None:
    """Read on to the end of a line that was cut. Raises ``LineError`` if it is too long."""
    if len(line) < _MAX_LINE_BYTES:
        return
    while (line := file.readline(_MAX_LINE_BYTES)) and not line.endswith(b"\n"):
        pass
    raise LineError(f"it is longer than {_MAX_LINE_BYTES} bytes")
