"""The one thread that computes: takes requests in, runs steps, hands results out.

Owns the engine thread and its inbox. ``submit`` and ``abort`` may be called from any thread; everything else
happens on the engine's. What a step produced is handed over in one call of ``publish``, on the engine thread:
the receiver must be quick and must not raise. ``serving`` calls it.

A step is one batch of one lane: generation, or embedding. With work for both, the lane of the tenant with
least virtual time goes first, and of equals the one that did not go last.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import assert_never

from nexa_runtime.engine.embedder import Embedded, EmbeddingLane, EmbeddingRequest
from nexa_runtime.engine.generation_lane import Delta, GenerationLane, GenerationRequest
from nexa_runtime.engine.scheduler import SchedulerStats, TenantCounts
from nexa_runtime.engine.sequence import TenantShare
from nexa_runtime.errors import DecodeError, NexaError, ShuttingDownError
from nexa_runtime.telemetry import get_logger

_log = get_logger("engine")

_COUNT_INTERVAL_S = 1.0

News = Delta | Embedded
Publish = Callable[[list[News]], None]


@dataclass(frozen=True, slots=True)
class _Submit:
    key: int
    request: GenerationRequest | EmbeddingRequest


@dataclass(frozen=True, slots=True)
class _Abort:
    key: int


@dataclass(frozen=True, slots=True)
class _UpdateShare:
    share: TenantShare


class Engine:
    """Runs the lanes of one model until ``stop``. A stopped engine is not started again."""

    def __init__(self, *, generation: GenerationLane | None, embedding: EmbeddingLane | None) -> None:
        self.generation = generation
        self.embedding = embedding
        self._news: list[News] = []
        self._keys = count(1)
        self._inbox: deque[_Submit | _Abort | _UpdateShare] = deque()
        self._wake = threading.Event()
        self._gate = threading.Lock()
        self._is_stopping = False
        self._has_generated_last = False
        self._publish: Publish = lambda news: None
        self.stats = self._count()
        """Counts after the last step; any thread may read it."""
        self.tenant_counts: dict[str, TenantCounts] = {}
        """The same by tenant; up to a second old while steps run."""
        self._counted_at = 0.0
        self._thread = threading.Thread(target=self._run, name="nexa-engine", daemon=True)

    def start(self, publish: Publish) -> None:
        """Start the thread. ``publish`` is called on it with each step's news."""
        self._publish = publish
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def new_key(self) -> int:
        """A key for ``submit``: taken first, so that the receiver knows it before the first news."""
        return next(self._keys)

    def submit(self, key: int, request: GenerationRequest | EmbeddingRequest) -> None:
        """Hand a request over, of a kind that this engine has a lane for.

        Its news come from now on: deltas, of which exactly one has a finish reason, or one ``Embedded``.
        Raises ``ShuttingDownError`` once ``stop`` was called.
        """
        with self._gate:
            if self._is_stopping:
                raise ShuttingDownError
            self._inbox.append(_Submit(key, request))
        self._wake.set()

    def abort(self, key: int) -> None:
        """End a request before the next step; nothing happens if it has ended."""
        self._inbox.append(_Abort(key))
        self._wake.set()

    def update_share(self, share: TenantShare) -> None:
        """From the next step on this holds for its tenant."""
        self._inbox.append(_UpdateShare(share))
        self._wake.set()

    def stop(self, timeout_s: float = 30.0) -> bool:
        """End every request with ``ShuttingDownError`` and the thread with it; False if it did not end."""
        with self._gate:
            self._is_stopping = True
        if self.generation is not None:
            self.generation.runner.interrupt()
        if self.embedding is not None:
            self.embedding.interrupt()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def step(self) -> bool:
        """One step; False when there was nothing to do. Called by the thread (and by tests, without one)."""
        self._take_inbox()
        is_busy = self._step_lane()
        self._hand_over()
        return is_busy

    def _step_lane(self) -> bool:
        """One step of the lane whose tenant has paid least. Idle generation may still have cells to free."""
        if self.embedding is not None and self._is_embedding_next():
            self._has_generated_last = False
            max_tokens = self.generation.scheduler.prefill_tokens() if self.generation else None
            return self.embedding.step(self._news.append, max_tokens)
        self._has_generated_last = True
        return self.generation is not None and self.generation.step(self._news.append)

    def _is_embedding_next(self) -> bool:
        embeds = self.embedding.least_virtual_time() if self.embedding else None
        generates = self.generation.least_virtual_time() if self.generation else None
        if embeds is None or generates is None:
            return embeds is not None
        return embeds < generates or (embeds == generates and self._has_generated_last)

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                if not self.step():
                    self._rest()
                    if not self._is_stopping:  # stop's wake-up may have been cleared with the inbox's
                        self._wake.wait()
            except Exception as error:  # noqa: BLE001 - a bug must not leave clients waiting for ever
                _log.exception("step_crashed")
                self._fail_all(DecodeError(f"an internal error ({type(error).__name__})"))
        self._take_inbox()
        self._fail_all(ShuttingDownError())

    def _rest(self) -> None:
        if self.generation is not None:
            self.generation.log_idle()
            self.tenant_counts = self.generation.scheduler.tenant_counts()

    def _take_inbox(self) -> None:
        self._wake.clear()
        while self._inbox:
            message = self._inbox.popleft()
            match message:
                case _Submit(key, request):
                    self._open(key, request)
                case _Abort(key):
                    self._abort(key)
                case _UpdateShare(share):
                    if self.generation is not None:
                        self.generation.scheduler.update_share(share)
                case _:
                    assert_never(message)

    def _open(self, key: int, request: GenerationRequest | EmbeddingRequest) -> None:
        if isinstance(request, EmbeddingRequest):
            assert self.embedding is not None
            self.embedding.open(key, request)
        else:
            assert self.generation is not None
            self.generation.open(key, request, self._news.append)

    def _abort(self, key: int) -> None:
        if self.generation is not None:
            self.generation.abort(key, self._news.append)
        if self.embedding is not None:
            self.embedding.abort(key)

    def _fail_all(self, error: NexaError) -> None:
        if self.generation is not None:
            self.generation.fail_all(error, self._news.append)
        if self.embedding is not None:
            self.embedding.fail_all(error, self._news.append)
        self._hand_over()

    def _hand_over(self) -> None:
        self.stats = self._count()
        now = time.monotonic()
        if self.generation is not None and now - self._counted_at > _COUNT_INTERVAL_S:
            self._counted_at = now
            self.tenant_counts = self.generation.scheduler.tenant_counts()
        news, self._news = self._news, []
        if news:
            self._publish(news)

    def _count(self) -> SchedulerStats:
        return SchedulerStats() if self.generation is None else self.generation.stats()
