"""The way of records from the spool to the database, on a thread of its own.

Owns when it is tried, how long it rests after a failure, which records are given up, and that the log says
each change once. It never touches the event loop, and nobody waits for it. ``database`` starts and ends it.

A record that the database refuses is looked for by halving its batch, so that it holds up no other. It is
given up only when the table has taken another one: where all are refused, something is wrong with the table,
and records are kept until that is mended or the spool is full. Many bad ones in a row look the same; so then
the next batch reaches further, and is looked through in another order.
"""

import random
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nexa_runtime.errors import RecordsRefusedError, UsageDatabaseError
from nexa_runtime.telemetry import get_logger
from nexa_runtime.usage.record import UsageRecord
from nexa_runtime.usage.spool import Spool

if TYPE_CHECKING:
    from nexa_runtime.usage.postgres import UsageTable

_log = get_logger("usage")

_BATCH_RECORDS = 500
_MAX_BATCH_RECORDS = 16_000
_MAX_REFUSED = 20
"""So many refused one by one, and none taken, are enough to blame the table."""
_GATHER_S = 0.2
"""Between two batches that were not full: fewer and larger ones."""
_IDLE_S = 10.0
"""Also without news, to look again for what could not be read."""
_MIN_RETRY_S = 0.5
_MAX_RETRY_S = 10.0


class Delivery:
    """``num_dropped``: records that the database never took."""

    def __init__(self, spool: Spool, table: "UsageTable") -> None:
        self.num_dropped = 0
        self._spool = spool
        self._table = table
        self._reach = _BATCH_RECORDS
        """How many records the next batch has."""
        self._is_ready = False
        self._reasons: set[str] = set()
        """What the log has said since the database was there last."""
        self._news = threading.Event()
        self._closing = threading.Event()
        # A daemon: what hangs in a network's hands must not keep the process alive, and the spool has it all.
        self._thread = threading.Thread(target=self._run, name="usage-delivery", daemon=True)

    def start(self) -> None:
        """Connect, and deliver from now on."""
        self._thread.start()

    def notify(self) -> None:
        """There is something in the spool."""
        self._news.set()

    def end(self, timeout_s: float) -> None:
        """Deliver what can be delivered at once, and stop; wait for that at most so long."""
        self._closing.set()
        self._news.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        retry_s = _MIN_RETRY_S
        while True:
            is_last_round = self._closing.is_set()
            try:
                num_delivered = self._deliver_batch()
            except Exception as error:  # noqa: BLE001 - the next try may go well, and the records are kept
                if is_last_round:
                    break
                self._say_away(error)
                self._closing.wait(retry_s)
                retry_s = min(2 * retry_s, _MAX_RETRY_S)
                continue
            retry_s = _MIN_RETRY_S
            if num_delivered == 0:
                if is_last_round:
                    break
                self._news.wait(_IDLE_S)
                self._news.clear()
            elif num_delivered < _BATCH_RECORDS:
                self._closing.wait(_GATHER_S)
        self._table.close()

    def _deliver_batch(self) -> int:
        """How many records are no longer in the spool."""
        self._connect()
        batch = self._spool.next_batch(self._reach)
        if batch is None:
            self._say_ready()
            return 0
        refused = self._insert(batch.records)
        self._reach = _BATCH_RECORDS
        self._say_ready()
        self.num_dropped += len(refused)
        if refused:
            ids = [record.id for record, _ in refused[:_MAX_REFUSED]]
            _log.warning("usage_records_refused", records=len(refused), ids=ids, reason=refused[0][1])
        self._spool.remove(batch)
        return len(batch.records) + batch.num_damaged

    def _connect(self) -> None:
        if not self._table.is_connected:
            self._table.connect()
            self._spool.adopt()

    def _insert(self, records: Sequence[UsageRecord]) -> list[tuple[UsageRecord, str]]:
        """Deliver records; those that are refused come back with the reason.

        Raises ``UsageDatabaseError``, also where none is taken.
        """
        refused: list[tuple[UsageRecord, str]] = []
        has_taken = not records
        parts = [records]
        while parts:
            part = parts.pop()
            try:
                self._insert_part(part)
                has_taken = True
            except RecordsRefusedError as error:
                if len(part) == 1:
                    refused.append((part[0], error.reason))
                else:
                    part = random.sample(part, len(part)) if part is records else part
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
            if not has_taken and (len(refused) >= _MAX_REFUSED or not parts):
                self._reach = min(2 * self._reach, _MAX_BATCH_RECORDS)
                raise UsageDatabaseError(f"it takes no record: {refused[0][1]}")
        return refused

    def _insert_part(self, records: Sequence[UsageRecord]) -> None:
        """Again at once where the connection had died while nobody used it, as poolers let them."""
        try:
            self._table.insert(records)
        except RecordsRefusedError:
            raise
        except UsageDatabaseError:
            self._connect()
            self._table.insert(records)

    def _say_ready(self) -> None:
        if not self._is_ready:
            _log.info("usage_database_ready", backlog=self._spool.num_records)
        self._is_ready = True
        self._reasons.clear()

    def _say_away(self, error: Exception) -> None:
        self._is_ready = False
        if not isinstance(error, UsageDatabaseError):
            _log.error("usage_delivery_failed", exc_info=error)
        elif error.reason not in self._reasons:
            self._reasons.add(error.reason)
            _log.warning("usage_database_away", reason=error.reason, backlog=self._spool.num_records)
