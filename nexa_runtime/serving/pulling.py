"""Pulls that the owner of the box starts on a running server.

Owns the threads of pulls and the way of their news to the event loop. It never says what is pulled, and
nothing ever is because a client named it: ``server/routes/admin`` alone starts pulls, ``server/app`` stops
them.

Deliberate: the threads are daemons. A pull may wait long for the hub or for another process, and the server
must be able to end meanwhile; wherever a pull was, the next one goes on from there.

Deliberate: the first pull imports the hub's client. At the start that would be a fifth of all imports.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress

import anyio

from nexa_runtime.config import StoreSettings
from nexa_runtime.errors import NexaError, ShuttingDownError, StoreError
from nexa_runtime.store.arrival import OnEvent, PullEvent
from nexa_runtime.store.catalog import Catalog
from nexa_runtime.store.store import ModelStore
from nexa_runtime.telemetry import get_logger

_MAX_RUNNING = 4
"""Pulls that run at once; further ones wait for their turn."""

_log = get_logger("serving.pulling")


class Pull:
    """A pull under way, with its news for one reader; it goes on when nobody reads. For the event loop."""

    def __init__(self) -> None:
        self._unread: list[PullEvent] = []
        self._has_news = asyncio.Event()
        self._has_begun = asyncio.Event()
        self._is_over = False
        self._fault: NexaError | None = None

    async def wait_begun(self, timeout_s: float) -> None:
        """Until the model itself is dealt with, and no longer asked for; at most ``timeout_s``.

        Raises what has ended the pull by then.
        """
        with anyio.move_on_after(timeout_s):
            await self._has_begun.wait()
        if self._fault is not None:
            raise self._fault

    async def events(self) -> AsyncIterator[PullEvent]:
        """What happens, until the end; of progress that nobody has read yet, the latest.

        Raises ``StoreError``, and ``ShuttingDownError`` when the server ends first.
        """
        while self._unread or not self._is_over:
            await self._has_news.wait()
            self._has_news.clear()
            unread, self._unread = self._unread, []
            for event in unread:
                yield event
        if self._fault is not None:
            raise self._fault

    def add(self, event: PullEvent) -> None:
        """One more event."""
        if event.kind == "progress" and self._unread:
            last = self._unread[-1]
            if (last.kind, last.file) == ("progress", event.file):
                self._unread.pop()
        self._unread.append(event)
        self._has_news.set()
        if event.kind not in ("plan", "retry"):
            self._has_begun.set()

    def end(self, fault: NexaError | None) -> None:
        """It is over, by ``fault`` or well. Only the first call counts."""
        if not self._is_over:
            self._is_over, self._fault = True, fault
        self._has_news.set()
        self._has_begun.set()


class Puller:
    """Brings models into the store while the server runs; it serves them from then on."""

    def __init__(self, store: ModelStore, catalog: Catalog, settings: StoreSettings) -> None:
        self._store = store
        self._catalog = catalog
        self._settings = settings
        self._running: set[Pull] = set()
        self._turns = threading.Semaphore(_MAX_RUNNING)
        self._is_stopping = False

    def use_catalog(self, catalog: Catalog) -> None:
        """Pulls that start from now on go by another catalog."""
        self._catalog = catalog

    def start(self, name: str) -> Pull:
        """Bring a model. On the event loop. Raises ``ShuttingDownError``."""
        if self._is_stopping:
            raise ShuttingDownError
        running, loop = Pull(), asyncio.get_running_loop()
        self._running.add(running)
        threading.Thread(target=self._work, args=(name, running, loop), name="pull", daemon=True).start()
        return running

    def stop(self) -> None:
        """End every pull and start no more; what came is kept. On the event loop."""
        self._is_stopping = True
        for running in self._running:
            running.end(ShuttingDownError())

    def _work(self, name: str, running: Pull, loop: asyncio.AbstractEventLoop) -> None:
        def on_event(event: PullEvent) -> None:
            if self._is_stopping:
                raise ShuttingDownError
            loop.call_soon_threadsafe(running.add, event)

        with self._turns:
            fault = self._fault_of(name, on_event)
        with suppress(RuntimeError):  # the loop may have gone with the server
            loop.call_soon_threadsafe(self._end, running, fault)

    def _fault_of(self, name: str, on_event: OnEvent) -> NexaError | None:
        """Pull; what went wrong. The log says it too: nobody may be reading."""
        from nexa_runtime.store.hub import Hub
        from nexa_runtime.store.pull import pull

        hub = Hub(self._settings)
        try:
            record = pull(name, store=self._store, hub=hub, catalog=self._catalog, on_event=on_event)
        except NexaError as error:
            _log.warning("pull_failed", model=name[:200], reason=str(error))
            return error
        except Exception:  # noqa: BLE001 - who reads waits for an end, whatever went wrong
            _log.exception("pull_crashed", model=name[:200])
            return StoreError("An internal error ended the pull; the server's log has the details.")
        _log.info("model_pulled", model=record.name, size_bytes=record.size_bytes)
        return None

    def _end(self, running: Pull, fault: NexaError | None) -> None:
        self._running.discard(running)
        running.end(fault)
