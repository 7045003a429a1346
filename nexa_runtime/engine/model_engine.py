"""One model's part of the engine: its lanes, its inbox, its news.

Owns the way of requests to the two lanes of a model. ``submit``, ``abort``, ``update_share`` and ``stop`` may
be called from any thread; everything else happens on the engine's, which ``engine.py`` owns.

A step is one batch of one lane: generation, or embedding. With work for both, the lane of the tenant with
least virtual time goes first, and of equals the one that did not go last.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, assert_never

from nexa_runtime.engine.embedder import Embedded, EmbeddingLane, EmbeddingRequest
from nexa_runtime.engine.generation_lane import Delta, GenerationLane, GenerationRequest
from nexa_runtime.engine.scheduler import SchedulerStats, TenantCounts
from nexa_runtime.engine.sequence import TenantShare
from nexa_runtime.errors import NexaError, ShuttingDownError

_COUNT_INTERVAL_S = 0.5
"""How old the counts that others read may be: each looks at every cell."""

News = Delta | Embedded


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


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one step computes. ``num_rows``: tokens; ``num_sequences``: of generations, or inputs to embed."""

    model: str
    lane: Literal["generation", "embedding"]
    num_rows: int
    num_decode_rows: int
    num_sequences: int


class ModelEngine:
    """Runs the lanes of one model, once it is attached to an ``Engine``. A stopped one is not used again."""

    def __init__(
        self, name: str, *, generation: GenerationLane | None, embedding: EmbeddingLane | None
    ) -> None:
        """``name``: the model's, for logs."""
        self.name = name
        self.generation = generation
        self.embedding = embedding
        self.wake: Callable[[], None] = lambda: None
        """Set by the engine: makes its thread look into the inboxes."""
        self.is_stopping = False
        self.stats = SchedulerStats()
        """Counts of all sequences; any thread may read it. Up to half a second old while steps run,
        but never older than an end.
        """
        self.tenant_counts: dict[str, TenantCounts] = {}
        """The same by tenant."""
        self._counted_at = 0.0
        self._num_counted = 0
        self._news: list[News] = []
        self._inbox: deque[_Submit | _Abort | _UpdateShare] = deque()
        self._gate = threading.Lock()
        self._is_attached = False
        self._has_ended = threading.Event()
        self._has_generated_last = False

    @property
    def is_alive(self) -> bool:
        """Whether it is attached and has not ended."""
        return self._is_attached and not self._has_ended.is_set()

    @property
    def step_shape(self) -> StepShape | None:
        """Of the step that is under way; any thread may ask."""
        plan = self.generation.plan if self.generation is not None else None
        if plan is not None:
            return StepShape(self.name, "generation", plan.num_rows, plan.num_decode_rows, len(plan.chunks))
        inputs = self.embedding.inputs if self.embedding is not None else ()
        if inputs:
            return StepShape(self.name, "embedding", sum(map(len, inputs)), 0, len(inputs))
        return None

    def submit(self, key: int, request: GenerationRequest | EmbeddingRequest) -> None:
        """Hand a request over, of a kind that this model has a lane for. ``key``: no other request has it.

        Its news come from now on: deltas, of which exactly one has a finish reason, or one ``Embedded``.
        Raises ``ShuttingDownError`` once ``stop`` was called.
        """
        with self._gate:
            if self.is_stopping:
                raise ShuttingDownError
            self._inbox.append(_Submit(key, request))
        self.wake()

    def abort(self, key: int) -> None:
        """End a request before the next step; nothing happens if it has ended."""
        self._inbox.append(_Abort(key))
        self.wake()

    def update_share(self, share: TenantShare) -> None:
        """From the next step on this holds for its tenant."""
        self._inbox.append(_UpdateShare(share))
        self.wake()

    def stop(self, timeout_s: float = 30.0) -> bool:
        """End every request with ``ShuttingDownError``; False if a step did not end in time."""
        self.close_inbox()
        self.interrupt()
        self.wake()
        return not self._is_attached or self._has_ended.wait(timeout_s)

    def close_inbox(self) -> None:
        """Take no more requests. Any thread."""
        with self._gate:
            self.is_stopping = True

    def interrupt(self) -> None:
        """Make a running step return soon, where llama.cpp can. Any thread."""
        if self.generation is not None:
            self.generation.runner.interrupt()
        if self.embedding is not None:
            self.embedding.interrupt()

    # On the engine thread (and in tests, without one).

    def attach(self, wake: Callable[[], None]) -> None:
        """An engine drives it from now on."""
        self.wake = wake
        self._is_attached = True

    def step(self) -> bool:
        """Take the inbox in and do one step; False when there was nothing to do."""
        self.take_inbox()
        is_busy = self._step_lane()
        now = time.monotonic()
        num_live = self.generation.num_live if self.generation is not None else 0
        if num_live != self._num_counted or now - self._counted_at > _COUNT_INTERVAL_S:
            self._counted_at, self._num_counted = now, num_live
            self._count()
        return is_busy

    def take_inbox(self) -> None:
        """Let in what was submitted, end what was aborted."""
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
                    if self.embedding is not None:
                        self.embedding.update_share(share)
                case _:
                    assert_never(message)

    def least_virtual_time(self) -> float | None:
        """That of the tenant who is next here; None with nothing to do."""
        lanes = (self.generation, self.embedding)
        times = [time for lane in lanes if lane and (time := lane.least_virtual_time()) is not None]
        return min(times, default=None)

    def take_news(self) -> list[News]:
        """What happened since the last call."""
        news, self._news = self._news, []
        return news

    def note_published(self, elapsed_s: float) -> None:
        """It took so many seconds to hand the news over."""
        if self.generation is not None:
            self.generation.meter.publish_s += elapsed_s

    def rest(self) -> None:
        """There is nothing to do for now."""
        self._count()
        if self.generation is not None:
            self.generation.log_idle()

    def fail_all(self, error: NexaError) -> None:
        """End whatever lives here."""
        if self.generation is not None:
            self.generation.fail_all(error, self._news.append)
        if self.embedding is not None:
            self.embedding.fail_all(error, self._news.append)
        self._count()

    def end(self) -> None:
        """End whatever lives here, for good; from now on nothing touches the contexts."""
        self.close_inbox()
        self.take_inbox()
        self.fail_all(ShuttingDownError())

    def note_ended(self) -> None:
        """The last news were handed out."""
        self._has_ended.set()

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
        if embeds is None:
            return False
        generates = self.generation.least_virtual_time() if self.generation else None
        return generates is None or embeds < generates or (embeds == generates and self._has_generated_last)

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

    def _count(self) -> None:
        if self.generation is not None:
            self.stats = self.generation.stats()
            self.tenant_counts = self.generation.scheduler.tenant_counts()
