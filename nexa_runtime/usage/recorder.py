"""The way of each record to whoever keeps it.

Owns the list of sinks, and that one which fails harms no request and no other sink. It never waits: what
takes long is a sink's own thread. ``serving`` records; ``server`` starts and closes it with the application.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from nexa_runtime.telemetry import get_logger
from nexa_runtime.usage.record import UsageRecord

_log = get_logger("usage")


class Sink(Protocol):
    """Keeps records. All is called on the event loop."""

    @property
    def name(self) -> str:
        """For logs and metrics."""
        ...

    @property
    def backlog(self) -> int:
        """Records that it has taken and not delivered yet."""
        ...

    @property
    def dropped(self) -> int:
        """Records that it could not keep, since the start."""
        ...

    def put(self, record: UsageRecord, /) -> None:
        """Take a record; at once, whatever becomes of it."""
        ...

    def start(self) -> None:
        """Before the first record."""
        ...

    async def close(self) -> None:
        """After the last record: deliver what can be delivered soon, and keep the rest for the next start."""
        ...


class Recorder:
    """Hands records to ``sinks``, from ``start`` to ``close``."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self.sinks = tuple(sinks)

    def start(self) -> None:
        """Before the first request."""
        for sink in self.sinks:
            sink.start()

    def record(self, record: UsageRecord) -> None:
        """Hand it to each sink."""
        for sink in self.sinks:
            try:
                sink.put(record)
            except Exception:  # noqa: BLE001 - the request has ended well, and there are other sinks
                _log.exception("usage_sink_failed", sink=sink.name)

    async def close(self) -> None:
        """After the last request has ended: all sinks at once, for each may take some seconds."""
        await asyncio.gather(*map(_close, self.sinks))


async def _close(sink: Sink) -> None:
    try:
        await sink.close()
    except Exception:  # noqa: BLE001 - there are other sinks
        _log.exception("usage_sink_failed", sink=sink.name)
