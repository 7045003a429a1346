"""The border between the event loop and the engine threads.

Owns which requests are open and how many there may be, the worker threads that prepare prompts, and the way
of each step's news to whoever waits for it. Lives on one event loop. ``generation`` and ``embedding`` use it;
``server`` and ``cli`` start and stop it.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

from nexa_runtime.config import ServingSettings
from nexa_runtime.engine.engine import News
from nexa_runtime.errors import InvalidRequestError, OverloadedError, ShuttingDownError
from nexa_runtime.serving.pool import LoadedModel, ModelPool

ResultT = TypeVar("ResultT")

_NUM_PROMPT_THREADS = 4


class Dispatcher:
    """``start`` before the first request, ``stop`` and ``close`` after the last."""

    def __init__(self, pool: ModelPool, settings: ServingSettings) -> None:
        self.pool = pool
        self.settings = settings
        self._receivers: dict[int, Callable[[News], None]] = {}
        self._num_admitted = 0
        self._is_stopping = False
        self._threads = anyio.CapacityLimiter(_NUM_PROMPT_THREADS)

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return not self._is_stopping and all(model.engine.is_alive for model in self.pool.models())

    @property
    def num_open(self) -> int:
        """Sequences and embedding requests that are not closed."""
        return self._num_admitted

    def start(self) -> None:
        """Start the engines; their news come to the running event loop."""
        loop = asyncio.get_running_loop()

        def publish(news: list[News]) -> None:
            loop.call_soon_threadsafe(self._dispatch, news)

        for model in self.pool.models():
            model.engine.start(publish)

    async def stop(self) -> None:
        """End every request with ``ShuttingDownError`` and take no more. A second call does nothing."""
        self._is_stopping = True
        await run_sync(self.pool.stop)

    async def close(self) -> None:
        """After ``stop``: free the models, once no worker thread uses them any more."""
        for _ in range(_NUM_PROMPT_THREADS):
            await self._threads.acquire_on_behalf_of(object())
        await run_sync(self.pool.close)

    def admit(self, model: LoadedModel, count: int) -> None:
        """Let ``count`` more in, or raise. The cheap check first: a full box neither renders nor tokenizes.

        Raises ``OverloadedError`` and ``ShuttingDownError``; else ``leave`` is called once for them.
        """
        if self._is_stopping:
            raise ShuttingDownError
        room = model.slots + self.settings.max_queue
        if count > room:
            raise InvalidRequestError(f"This server takes at most {room} prompts at once.", param="prompt")
        if self._num_admitted + count > room:
            raise OverloadedError(self.settings.max_queue, 1.0)
        self._num_admitted += count

    def leave(self, count: int) -> None:
        """These have ended."""
        self._num_admitted -= count

    async def prepare(self, function: Callable[[], ResultT]) -> ResultT:
        """Run what renders and tokenizes in a worker thread."""
        return await run_sync(function, limiter=self._threads)

    def connect(self, key: int, receiver: Callable[[News], None]) -> None:
        """From now on ``receiver`` gets the news of ``key``, on the event loop."""
        self._receivers[key] = receiver

    def disconnect(self, key: int) -> None:
        """Nobody wants the news of ``key`` any more."""
        self._receivers.pop(key, None)

    def _dispatch(self, news: list[News]) -> None:
        for item in news:
            if (receiver := self._receivers.get(item.key)) is not None:
                receiver(item)
