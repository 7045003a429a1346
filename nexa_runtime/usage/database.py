"""The sink for ``NEXA_USAGE_DSN``: records to a table in PostgreSQL or Supabase.

Owns the way from the event loop to the spool, on a thread of its own, and start and end of both threads.
``put`` never waits: not for a disk, not for a database. ``server`` makes one where there is a DSN.

Two threads: ``delivery`` may hang in a database for as long as it takes, and what comes meanwhile must be on
disk all the same.
"""

import asyncio
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from nexa_runtime.config import UsageDatabaseSettings
from nexa_runtime.errors import ConfigError
from nexa_runtime.telemetry import get_logger
from nexa_runtime.usage.delivery import Delivery
from nexa_runtime.usage.record import RecordWithBody, UsageRecord
from nexa_runtime.usage.spool import Spool

if TYPE_CHECKING:
    from nexa_runtime.usage.postgres import UsageTable

_log = get_logger("usage")

_MAX_TAKEN = 10_000
"""Records in memory, on their way to a disk that takes its time."""
_MAX_WRITTEN = 500
"""Records that are written together."""
_CLOSE_S = 3.0


class DatabaseSink:
    """``recorder.Sink``: what is put arrives in the table once, also after a crash of either side."""

    name = "database"

    def __init__(self, spool: Spool, table: "UsageTable") -> None:
        self._spool = spool
        self._delivery = Delivery(spool, table)
        self._taken: deque[UsageRecord] = deque()
        self._num_refused = 0
        self._news = threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="usage-spool", daemon=True)

    @property
    def backlog(self) -> int:
        """Records that are not in the database yet."""
        return len(self._taken) + self._spool.num_records

    @property
    def dropped(self) -> int:
        """Records for which there was no room, which were damaged, or which the database never took."""
        return self._num_refused + self._spool.num_dropped + self._delivery.num_dropped

    def put(self, record: UsageRecord, /) -> None:
        """Take a record."""
        if len(self._taken) >= _MAX_TAKEN:
            if not self._num_refused:
                _log.warning("usage_records_dropped", reason="The disk takes too long.", backlog=self.backlog)
            self._num_refused += 1
            return
        self._taken.append(record.without_body() if isinstance(record, RecordWithBody) else record)
        self._news.set()

    def start(self) -> None:
        """Deliver what an earlier process has left, and take records."""
        if self._spool.num_records:
            _log.info("usage_spool_found", records=self._spool.num_records)
        self._thread.start()
        self._delivery.start()

    async def close(self) -> None:
        """Write what was taken, deliver what can be delivered in a few seconds, keep the rest on disk."""
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        deadline = time.monotonic() + _CLOSE_S
        self._is_closing = True
        self._news.set()
        self._thread.join(_CLOSE_S)
        self._delivery.end(max(deadline - time.monotonic(), 0.0))
        self._spool.close()

    def _run(self) -> None:
        """From memory to disk: at once, and as many as there are."""
        while True:
            self._news.wait()
            self._news.clear()
            is_last_round = self._is_closing
            while self._taken:
                # They leave the line when they are on disk: they are in the backlog all the time.
                records = [self._taken[at] for at in range(min(len(self._taken), _MAX_WRITTEN))]
                self._spool.append(records)
                for _ in records:
                    self._taken.popleft()
                self._delivery.notify()
            if is_last_round:
                return


def open_table(settings: UsageDatabaseSettings) -> "UsageTable | None":
    """The table of ``NEXA_USAGE_DSN``, not connected yet; None without one. Raises ``ConfigError``."""
    if settings.dsn is None:
        return None
    try:
        from nexa_runtime.usage.postgres import UsageTable
    except ImportError:
        raise ConfigError(
            'NEXA_USAGE_DSN needs the library psycopg: pip install "nexa-runtime[postgres]" brings it.'
        ) from None
    return UsageTable(settings.dsn)


def open_database_sink(settings: UsageDatabaseSettings, folder: Path) -> DatabaseSink | None:
    """The sink, if there is a DSN; ``folder``: for its spool. Raises ``ConfigError``."""
    table = open_table(settings)
    return None if table is None else DatabaseSink(Spool(folder, settings.spool_bytes), table)
