"""One request that generates: its sequences in the engine, and the way back of their text.

Owns when it ends and that what it held is given back once, however it ends. Lives on the event loop.
``generation_service`` makes it; ``server`` and ``cli`` read it.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import anyio

from nexa_runtime.engine.generation_lane import Delta, GenerationRequest
from nexa_runtime.engine.model_engine import News
from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.errors import NexaError, RequestTimeoutError
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.pool import ModelLease
from nexa_runtime.telemetry import get_logger
from nexa_runtime.tenancy.admission import Ticket

_log = get_logger("serving")


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """News of one choice of a request: ``text`` to append, and the end with ``finish_reason``."""

    index: int
    text: str
    finish_reason: FinishReason | None


@dataclass(slots=True)
class Usage:
    """Tokens of a request so far. ``cached_tokens``: prompt tokens whose KV was there already."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(slots=True)
class _Inbox:
    """What has come for a generation and was not read yet."""

    deltas: deque[ChoiceDelta] = field(default_factory=deque)
    error: Exception | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Generation:
    """One request that runs: a choice per prompt. ``close`` ends it, however far it is; call it always.

    What it holds (its place, its lease) is given back when the engine has ended its sequences: at once, or a
    step later.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        lease: ModelLease,
        ticket: Ticket,
        prompt_tokens: Sequence[int],
        clamped_max_tokens: int | None,
    ) -> None:
        self._dispatcher = dispatcher
        self._ticket = ticket
        self._lease = lease
        self.model = lease.model
        self.model_name = lease.name
        """The name that the client used, or the model's id."""
        self.clamped_max_tokens = clamped_max_tokens
        """What ``max_tokens`` was lowered to, for the choice with least room, if it was."""
        self.usage = Usage(prompt_tokens=sum(prompt_tokens))
        self.num_choices = len(prompt_tokens)
        self.keys = [dispatcher.new_key() for _ in prompt_tokens]
        self._index = {key: index for index, key in enumerate(self.keys)}
        self._num_new = [0] * self.num_choices
        self._num_open = 0
        """Sequences that the engine has and has not ended."""
        self._num_done_tokens = 0
        self._has_ended = False
        """Whether all of it ended before it was closed."""
        self._inbox = _Inbox()
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._opened_at = time.monotonic()
        self._first_text_s: float | None = None
        self._queue_s: float | None = None

    async def wait_first(self, timeout_s: float) -> None:
        """Wait for the first news, at most ``timeout_s`` seconds. Raises what ended the request before."""
        with anyio.move_on_after(timeout_s):
            await self._inbox.news.wait()
        if self._inbox.error is not None and not self._inbox.deltas:
            raise self._inbox.error

    async def deltas(self) -> AsyncIterator[list[ChoiceDelta]]:
        """What came since the last time, until every choice has ended. Raises what ended it early."""
        inbox = self._inbox
        num_open = self.num_choices
        while num_open:
            await inbox.news.wait()
            inbox.news.clear()
            batch, inbox.deltas = list(inbox.deltas), deque()
            num_open -= sum(delta.finish_reason is not None for delta in batch)
            if batch:
                yield batch
            if inbox.error is not None:
                raise inbox.error

    def fail(self, error: Exception) -> None:
        """End the request with ``error``: whoever reads it gets that, and its sequences are aborted."""
        if not self._num_open:
            return
        self._inbox.error = self._inbox.error or error
        self._inbox.news.set()
        self._abort()

    def close(self) -> None:
        """End the request and release all it holds. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._has_ended = not self._num_open
        if self._timer is not None:
            self._timer.cancel()
        self._abort()
        if not self._num_open:
            self._settle()

    def _settle(self) -> None:
        """Every sequence has ended: give back what the request held, and account for what it used."""
        for key in self.keys:
            self._dispatcher.disconnect(key)
        usage = self.usage
        self._lease.release()
        self._ticket.settle(
            prompt_tokens=self._num_done_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
        )
        _log.info(
            "generation",
            tenant=self._ticket.tenant.id,
            model=self.model_name,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            ended=self._ending(),
            queue_ms=None if self._queue_s is None else round(self._queue_s * 1e3, 1),
            first_text_ms=None if self._first_text_s is None else round(self._first_text_s * 1e3, 1),
            total_ms=round((time.monotonic() - self._opened_at) * 1e3, 1),
        )

    def start(self, requests: Sequence[GenerationRequest]) -> None:
        """Hand the sequences to the engine; when the request's time is over they are aborted."""
        timeout_s = self._dispatcher.settings.request_timeout_s
        expire = RequestTimeoutError(timeout_s)
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self.fail, expire)
        for key, request in zip(self.keys, requests, strict=True):
            self._dispatcher.connect(key, self._take)
            self.model.engine.submit(key, request)
            self._num_open += 1

    def _take(self, delta: News) -> None:
        assert isinstance(delta, Delta)
        index = self._index[delta.key]
        self._num_new[index] = delta.num_new_tokens
        self.usage.completion_tokens = sum(self._num_new)
        if delta.text and self._first_text_s is None:
            self._first_text_s = time.monotonic() - self._opened_at
        if delta.finish_reason is not None:
            self._num_open -= 1
            self._num_done_tokens += delta.num_done_tokens
            self._queue_s = max(self._queue_s or 0.0, delta.queue_s)
            self.usage.cached_tokens += delta.num_cached_tokens
        if self._is_closed:
            if not self._num_open:
                self._settle()
            return
        if self._inbox.error is not None:
            return
        if delta.error is not None:
            self._inbox.error = delta.error
            self._abort()
        elif delta.text or delta.finish_reason is not None:
            self._inbox.deltas.append(ChoiceDelta(index, delta.text, delta.finish_reason))
        self._inbox.news.set()

    def _ending(self) -> str:
        """For the log: complete, the code of what ended it, or that nobody waited for its end."""
        if self._inbox.error is not None:
            return getattr(self._inbox.error, "code", NexaError.code)
        return "complete" if self._has_ended else "abandoned"

    def _abort(self) -> None:
        if self._num_open:
            for key in self.keys:
                self.model.engine.abort(key)
