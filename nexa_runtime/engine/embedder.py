"""The embedding half of the engine: inputs to vectors, or to a reranker's scores, one batch a step.

Owns the requests that wait for vectors. A batch takes whole inputs, of the tenant with least virtual time
first and of its requests in turn, so that a large one does not hold up a small one. It is charged like
prefill, on the accounts that generation uses too: so neither half waits for the other to go idle.
``engine.py`` calls it, on the engine thread only.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nexa_runtime.engine.fair_queue import Accounts
from nexa_runtime.engine.sequence import TenantShare, Tokens
from nexa_runtime.engine.step_meter import StepMeter
from nexa_runtime.errors import DecodeError, NexaError
from nexa_runtime.llama import MAX_INPUTS, EmbeddingContext
from nexa_runtime.telemetry import get_logger

_log = get_logger("engine.embedder")

Vectors = npt.NDArray[np.float32]

EMBEDDING_WORK = 1.0
"""Work units of one token, as for prefill."""


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Inputs to embed or to score, each int32 of shape (n,), 1 ≤ n ≤ the context's ``max_tokens``."""

    inputs: tuple[Tokens, ...]
    share: TenantShare


@dataclass(frozen=True, slots=True)
class Embedded:
    """The end of such a request: its ``vectors``, float32 of shape (inputs, size), or ``error``."""

    key: int
    vectors: Vectors | None
    error: Exception | None = None


Emit = Callable[[Embedded], None]


@dataclass(slots=True)
class _Job:
    key: int
    request: EmbeddingRequest
    vectors: list[Vectors] = field(default_factory=list)

    @property
    def num_done(self) -> int:
        return len(self.vectors)

    @property
    def is_done(self) -> bool:
        return self.num_done == len(self.request.inputs)


class EmbeddingLane:
    """``step_tokens``: tokens of a batch; a single longer input is a batch of its own."""

    def __init__(
        self, make_context: Callable[[], EmbeddingContext], accounts: Accounts, *, step_tokens: int
    ) -> None:
        """``make_context`` is called with the first request: whoever never embeds pays no memory for it."""
        self._make_context = make_context
        self._context: EmbeddingContext | None = None
        self._accounts = accounts
        self._step_tokens = step_tokens
        self._jobs: dict[int, _Job] = {}
        """In the order in which they have their turn."""
        self.inputs: Sequence[Tokens] = ()
        """Inputs that are being computed."""
        self.meter = StepMeter()

    def least_virtual_time(self) -> float | None:
        """That of the tenant who is next here; None with nothing to do."""
        times = [self._accounts.virtual_time(job.request.share.tenant_id) for job in self._jobs.values()]
        return min(times, default=None)

    def open(self, key: int, request: EmbeddingRequest) -> None:
        """Put a request in line."""
        self._accounts.enter(request.share)
        self._jobs[key] = _Job(key, request)

    def update_share(self, share: TenantShare) -> None:
        """From now on this holds for its tenant."""
        self._accounts.update(share)

    def abort(self, key: int) -> None:
        """Forget a request, if it lives; nothing is said."""
        if key in self._jobs:
            self._close(key)

    def step(self, emit: Emit, max_tokens: int | None = None) -> bool:
        """Embed one batch of ``max_tokens`` at most, or of one input; False when there was nothing to do."""
        batch = self._next_batch(min(self._step_tokens, max_tokens or self._step_tokens))
        if not batch:
            return False
        try:
            self._embed(batch)
        except Exception as error:  # noqa: BLE001 - whatever went wrong here ends nothing else
            _log.warning("embedding_batch_failed", error=str(error))
            for job, count in batch:  # one by one, so that only the one at fault ends
                try:
                    self._embed([(job, count)])
                except Exception as error:  # noqa: BLE001
                    self._close(job.key)
                    if not isinstance(error, NexaError):
                        error = DecodeError(f"an internal error ({type(error).__name__})")
                    emit(Embedded(job.key, None, error))
        for job, _ in batch:
            if job.is_done:
                self._close(job.key)
                emit(Embedded(job.key, np.stack(job.vectors)))
            elif job.key in self._jobs:
                self._jobs[job.key] = self._jobs.pop(job.key)  # behind the others
        return True

    def fail_all(self, error: NexaError, emit: Emit) -> None:
        """End whatever lives."""
        for key in list(self._jobs):
            self._close(key)
            emit(Embedded(key, None, error))

    def interrupt(self) -> None:
        """Make a running ``step`` return soon, where llama.cpp can. Any thread; for shutdown."""
        if self._context is not None:
            self._context.request_abort()

    def close(self) -> None:
        """Free the context."""
        if self._context is not None:
            self._context.close()

    def _next_batch(self, max_tokens: int) -> list[tuple[_Job, int]]:
        """Jobs and how many of their next inputs, together at most ``max_tokens`` and a call."""
        jobs = sorted(
            self._jobs.values(), key=lambda job: self._accounts.virtual_time(job.request.share.tenant_id)
        )
        batch: list[tuple[_Job, int]] = []
        num_tokens = num_inputs = 0
        for job in jobs:
            count = 0
            for tokens in job.request.inputs[job.num_done :]:
                is_full = num_inputs == MAX_INPUTS or num_tokens + len(tokens) > max_tokens
                if num_inputs and is_full:
                    break
                num_tokens += len(tokens)
                num_inputs += 1
                count += 1
            if not count:
                break
            batch.append((job, count))
        return batch

    def _embed(self, batch: list[tuple[_Job, int]]) -> None:
        inputs = [
            tokens
            for job, count in batch
            for tokens in job.request.inputs[job.num_done : job.num_done + count]
        ]
        if self._context is None:
            self._context = self._make_context()
        self.inputs = inputs
        start = time.monotonic()
        try:
            vectors = iter(self._context.embed(inputs))
        finally:
            self.inputs = ()
        self.meter.step.observe(time.monotonic() - start)
        self.meter.rows.observe(sum(map(len, inputs)))
        for job, count in batch:
            work = sum(map(len, job.request.inputs[job.num_done : job.num_done + count]))
            self._accounts.charge(job.request.share.tenant_id, EMBEDDING_WORK * work)
            job.vectors += [next(vectors) for _ in range(count)]

    def _close(self, key: int) -> None:
        job = self._jobs.pop(key)
        self._accounts.leave(job.request.share.tenant_id)
