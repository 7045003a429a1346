"""The spool: where usage records lie on disk until the database has them.

Owns a folder of segments, files that are only ever appended to, and the bound on all of them. Every record
goes through it, also while the database answers: so a process that is killed loses what came in the last
milliseconds at most, and there is one way for a record and not two. It never knows of a database and never
waits for one. Two threads of ``database`` use it, one that writes and one that delivers.

A line is a CRC-32 in hex, a space, and the record in JSON; one that does not match is skipped and counted.
Where a segment cannot be written (no space, no file descriptors), its records stay in memory, within the
same bound.

Each running server has a folder of its own, ``1``, ``2``…, held by a lock. What lies in a folder that nobody
holds any more is taken over.
"""

import json
import os
import threading
import time
import uuid
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from nexa_runtime.errors import ConfigError
from nexa_runtime.telemetry import get_logger
from nexa_runtime.usage.record import UsageRecord

_log = get_logger("usage")

_SEGMENT_BYTES = 2**18
_SUFFIX = ".spool"
_LOCK_NAME = "lock"
_MAX_TEXT = 200
"""Characters of a text that are kept: the name of a model may be whatever a client has sent."""
_FIELDS = tuple(field.name for field in fields(UsageRecord))


@dataclass(slots=True, eq=False)
class Segment:
    """A file, or with no ``path`` the ``records`` that could not be written to one."""

    path: Path | None
    num_records: int = 0
    num_bytes: int = 0
    records: tuple[UsageRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """The oldest records. ``num_damaged``: lines of their segments that are none."""

    records: tuple[UsageRecord, ...]
    segments: tuple[Segment, ...]
    num_damaged: int


class Spool:
    """``num_records`` and ``num_bytes`` wait; ``num_dropped`` found no room, or were damaged."""

    def __init__(self, base: Path, max_bytes: int) -> None:
        """Hold a folder below ``base``, with what lies there. Raises ``ConfigError``."""
        self.num_records = 0
        self.num_bytes = 0
        self.num_dropped = 0
        self._base = base
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sealed: deque[Segment] = deque()
        self._open: Segment | None = None
        self._descriptor = -1
        """Of the open segment's file."""
        self._problems: set[str] = set()
        try:
            self._folder, self._folder_lock = _hold_folder(base)
            for path in _segments_in(self._folder):
                self._take_in(path)
        except OSError as error:
            raise ConfigError(
                f"Usage records cannot be kept in {base}: {error.strerror or error}."
                " NEXA_STATE_DIR names another folder."
            ) from None

    def append(self, records: Sequence[UsageRecord]) -> None:
        """Keep records, on disk when this returns; what finds no room is counted."""
        lines = [encode(record) for record in records]
        with self._lock:
            num_kept, num_bytes = 0, 0
            while num_kept < len(lines):
                num_bytes += len(lines[num_kept])
                if self.num_bytes + num_bytes > self._max_bytes:
                    break
                num_kept += 1
            self.num_dropped += len(lines) - num_kept
            if self._has_begun("full", num_kept < len(lines)):
                _log.warning("usage_spool_full", max_bytes=self._max_bytes, backlog=self.num_records)
            if num_kept:
                self._keep(records[:num_kept], b"".join(lines[:num_kept]))

    def next_batch(self, num_records: int) -> Batch | None:
        """The oldest records, so many or a segment more, and the same again until they are removed; None when
        there are none.
        """
        with self._lock:
            self._seal()
            segments: list[Segment] = []
            records: list[UsageRecord] = []
            num_damaged = 0
            reason = ""
            for segment in self._sealed:
                if len(records) >= num_records:
                    break
                try:
                    found, damaged = _read(segment)
                except OSError as error:
                    # It may be readable later, when there are file descriptors again.
                    reason = error.strerror or str(error)
                    continue
                segments.append(segment)
                records.extend(found)
                num_damaged += damaged
            if self._has_begun("unreadable", bool(reason)):
                _log.warning("usage_spool_unreadable", reason=reason)
            return Batch(tuple(records), tuple(segments), num_damaged) if segments else None

    def remove(self, batch: Batch) -> None:
        """Forget a batch."""
        with self._lock:
            self.num_dropped += batch.num_damaged
            if batch.num_damaged:
                _log.warning("usage_spool_damaged", lines=batch.num_damaged)
            for segment in batch.segments:
                self._sealed.remove(segment)
                self.num_records -= segment.num_records
                self.num_bytes -= segment.num_bytes
                if segment.path is not None:
                    with suppress(OSError):  # it would be delivered again, and the database knows it then
                        segment.path.unlink()

    def adopt(self) -> None:
        """Take over what lies in the folders that nobody holds."""
        with self._lock, suppress(OSError):
            for folder in sorted(self._base.iterdir()):
                if folder == self._folder or not folder.is_dir():
                    continue
                if (lock := _try_hold(folder)) is not None:
                    try:
                        for path in _segments_in(folder):
                            self._take_in(path.rename(self._folder / path.name))
                    finally:
                        lock.release()

    def close(self) -> None:
        """Let go of the folder; what is in it stays."""
        with self._lock:
            self._seal()
            num_lost = sum(one.num_records for one in self._sealed if one.path is None)
            if num_lost:
                _log.warning("usage_records_lost", records=num_lost)
            self._folder_lock.release()

    def _keep(self, records: Sequence[UsageRecord], data: bytes) -> None:
        try:
            segment = self._open or self._begin()
            self._write(data)
        except OSError as error:
            self._seal()
            if self._has_begun("unwritable", True):
                _log.warning("usage_spool_unwritable", reason=error.strerror or str(error))
            segment = Segment(None, records=tuple(records))
            self._sealed.append(segment)
        else:
            self._has_begun("unwritable", False)
        segment.num_records += len(records)
        segment.num_bytes += len(data)
        self.num_records += len(records)
        self.num_bytes += len(data)
        if segment.num_bytes >= _SEGMENT_BYTES:
            self._seal()

    def _begin(self) -> Segment:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{time.time_ns():020d}-{uuid.uuid4().hex}{_SUFFIX}"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._open = Segment(path)
        _sync_folder(self._folder)
        return self._open

    def _write(self, data: bytes) -> None:
        """All of it, on the disk, or nothing."""
        size, rest = os.fstat(self._descriptor).st_size, memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise

    def _seal(self) -> None:
        """The open segment gets no more records."""
        segment, self._open = self._open, None
        if segment is None or segment.path is None:
            return
        with suppress(OSError):  # what was to be kept is synced
            os.close(self._descriptor)
        if segment.num_records:
            self._sealed.append(segment)
        else:
            with suppress(OSError):
                segment.path.unlink()

    def _take_in(self, path: Path) -> None:
        data = path.read_bytes()
        num_lines = data.count(b"\n") + (data[-1:] not in (b"", b"\n"))
        self._sealed.append(Segment(path, num_lines, len(data)))
        self.num_records += num_lines
        self.num_bytes += len(data)

    def _has_begun(self, problem: str, is_there: bool) -> bool:
        """Whether a problem is there that was not: then the log says so."""
        is_new = is_there and problem not in self._problems
        (self._problems.add if is_there else self._problems.discard)(problem)
        return is_new


def encode(record: UsageRecord) -> bytes:
    """A record as a line."""
    values = {name: getattr(record, name) for name in _FIELDS}
    values["created_at"] = record.created_at.isoformat()
    short = {name: value[:_MAX_TEXT] if isinstance(value, str) else value for name, value in values.items()}
    data = json.dumps(short, separators=(",", ":")).encode()
    return b"%08x %b\n" % (zlib.crc32(data), data)


def decode(line: bytes) -> UsageRecord | None:
    """The record of a line; None for one that is damaged. A field that its version did not have is None."""
    checksum, _, data = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(data):
        return None
    try:
        values = json.loads(data)
        values["created_at"] = datetime.fromisoformat(values["created_at"])
        return UsageRecord(**{name: values.get(name) for name in _FIELDS})
    except (ValueError, KeyError, TypeError):
        return None


def _read(segment: Segment) -> tuple[Sequence[UsageRecord], int]:
    """The records of a segment, and how many of its lines are damaged. Raises ``OSError``."""
    if segment.path is None:
        return segment.records, 0
    found = [decode(line) for line in segment.path.read_bytes().split(b"\n") if line]
    records = [record for record in found if record is not None]
    return records, len(found) - len(records)


def _hold_folder(base: Path) -> tuple[Path, FileLock]:
    for number in count(1):
        folder = base / str(number)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (lock := _try_hold(folder)) is not None:
            return folder, lock
    raise AssertionError


def _try_hold(folder: Path) -> FileLock | None:
    lock = FileLock(folder / _LOCK_NAME, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _segments_in(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == _SUFFIX)


def _sync_folder(folder: Path) -> None:
    """So that a new file's name survives a power cut too, where the file system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
