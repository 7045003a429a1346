"""The request log: a line per record in a file (``NEXA_REQUEST_LOG``).

Owns the line of records that wait for the file, and the thread that writes them. A ``Sink``: requests never
wait for it. While the file cannot be written, records wait in memory; what does not fit there is dropped and
counted. The log says so once, and once more when it is over.

Deliberate: lines are gathered for a tenth of a second, so that a busy server writes some times a second and
not for each request; a process that is killed loses no more than that.
"""

import os
import threading
from collections import deque
from pathlib import Path

from anyio.to_thread import run_sync

from nexa_runtime.config import UsageSettings
from nexa_runtime.errors import ConfigError
from nexa_runtime.telemetry import get_logger
from nexa_runtime.usage.log_file import LogFile, PartlyWrittenError, open_for_append
from nexa_runtime.usage.log_line import write_line
from nexa_runtime.usage.record import RecordWithBody, UsageRecord

MAX_WAITING = 10_000
"""Records."""
MAX_BODIES = 32
"""That wait, of up to ``NEXA_MAX_BODY_BYTES`` each; beyond them a record waits without its own."""
_GATHER_S = 0.1
_RETRY_S = 1.0
_CLOSE_S = 5.0
_MAX_BATCH = 512

_log = get_logger("usage")


def check_request_log(settings: UsageSettings) -> None:
    """Raise ``ConfigError`` if the file cannot be written now."""
    path = settings.request_log
    if path is None:
        return
    try:
        os.close(open_for_append(path))
    except OSError as error:
        message = f"NEXA_REQUEST_LOG is {str(path)!r}, which cannot be written: {error.strerror}."
        raise ConfigError(message) from None


def open_request_log(settings: UsageSettings) -> "RequestLog | None":
    """The sink, if the owner wants a request log."""
    if settings.request_log is None:
        return None
    return RequestLog(settings.request_log, settings.request_log_max_bytes)


class RequestLog:
    """The sink. ``put`` is called on the event loop; the rest is the thread's."""

    name = "request_log"

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._file = LogFile(path, max_bytes)
        self._waiting: deque[UsageRecord] = deque()
        self._bodies = threading.BoundedSemaphore(MAX_BODIES)
        self._batch: list[UsageRecord] = []
        """Taken from the line and not in the file yet."""
        self._num_dropped = 0
        self._is_full = False
        self._has_failed = False
        self._wakes = threading.Event()
        self._stops = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)

    @property
    def backlog(self) -> int:
        """Records that are not in the file yet."""
        return len(self._waiting) + len(self._batch)

    @property
    def dropped(self) -> int:
        """Records that never will be."""
        return self._num_dropped

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, record: UsageRecord) -> None:
        """Line it up, or drop it where too many wait."""
        if len(self._waiting) >= MAX_WAITING:
            self._num_dropped += 1
            if not self._is_full:
                self._is_full = True
                _log.error("request_log_full", waiting=MAX_WAITING)
            return
        self._is_full = self._is_full and len(self._waiting) > MAX_WAITING // 2
        if isinstance(record, RecordWithBody) and not self._bodies.acquire(blocking=False):
            record = record.without_body()
        self._waiting.append(record)
        self._wakes.set()

    async def close(self) -> None:
        """Write what waits; what cannot be written now is dropped."""
        self._stops.set()
        self._wakes.set()
        await run_sync(self._thread.join, _CLOSE_S)
        if num_lost := self.backlog:
            self._num_dropped += num_lost
            self._waiting.clear()
            self._batch.clear()
            _log.error("request_log_lost", records=num_lost)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._wakes.wait()
            self._wakes.clear()
            is_last = self._stops.wait(_GATHER_S)
            while (self._waiting or self._batch) and self._write():
                pass
        self._file.close()

    def _write(self) -> bool:
        """Write some of what waits. Whether it is worth going on."""
        while self._waiting and len(self._batch) < _MAX_BATCH:
            self._batch.append(self._waiting.popleft())
        try:
            self._forget(self._file.write([write_line(record) for record in self._batch]))
        except PartlyWrittenError as error:
            self._forget(error.num_done)
            if not self._has_failed:
                self._has_failed = True
                _log.error("request_log_failed", path=str(self._file.path), reason=error.reason)
            return not self._stops.wait(_RETRY_S)
        if self._has_failed:
            self._has_failed = False
            _log.warning("request_log_recovered", path=str(self._file.path), dropped=self.dropped)
        return True

    def _forget(self, number: int) -> None:
        """The first records of the batch are in the file."""
        for record in self._batch[:number]:
            if isinstance(record, RecordWithBody):
                self._bodies.release()
        del self._batch[:number]
