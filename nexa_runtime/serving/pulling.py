"""Pulls that the owner of the box starts on a running server.

Owns the worker threads of pulls and the way of their progress to the event loop. Nothing is ever pulled
because a client named it: ``server/routes/admin`` alone calls it.
"""

import asyncio
from collections.abc import AsyncIterator

import anyio
from anyio.to_thread import run_sync

from nexa_runtime.store.catalog import Catalog
from nexa_runtime.store.hub import Hub
from nexa_runtime.store.pull import PullEvent, pull
from nexa_runtime.store.store import ModelStore

_NUM_THREADS = 2


class Puller:
    """Brings models into the store while the server runs; it serves them from then on."""

    def __init__(self, store: ModelStore, catalog: Catalog, hub: Hub) -> None:
        self._store = store
        self._catalog = catalog
        self._hub = hub
        self._threads = anyio.CapacityLimiter(_NUM_THREADS)
        self._tasks: set[asyncio.Task[None]] = set()

    async def pull(self, name: str) -> AsyncIterator[PullEvent]:
        """Bring a model; its events as they come. Raises ``StoreError``.

        It goes on when nobody reads the events any more.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[PullEvent | None] = asyncio.Queue()

        def on_event(event: PullEvent) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def work() -> None:
            pull(name, store=self._store, hub=self._hub, catalog=self._catalog, on_event=on_event)

        async def run() -> None:
            try:
                await run_sync(work, limiter=self._threads)
            finally:
                events.put_nowait(None)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._end)
        while (event := await events.get()) is not None:
            yield event
        await task

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever reads raises it; with nobody reading it is retrieved here
