"""The one thread that computes: takes requests in, runs steps, hands text out.

Owns the engine thread, its inbox, and each sequence's detokenizer. ``submit`` and ``abort`` may be called
from any thread; everything else happens on the engine's. What a step produced is handed over in one call of
``publish``, on the engine thread: the receiver must be quick and must not raise. ``serving`` calls it.

A step reads: take inbox → schedule → execute → commit → publish.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from nexa_runtime.engine.detokenizer import Detokenizer
from nexa_runtime.engine.runner import Runner
from nexa_runtime.engine.scheduler import Scheduler, SchedulerStats
from nexa_runtime.engine.sequence import Advance, FinishReason, Sequence, StepPlan, TenantShare, Tokens
from nexa_runtime.errors import DecodeError, NexaError, ShuttingDownError
from nexa_runtime.llama import SamplingParams, Vocab
from nexa_runtime.telemetry import get_logger

_log = get_logger("engine")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate. ``prompt``: int32 of shape (n,), n ≥ 1; it fits the context (see
    ``Sequence``).

    ``ignore_eos``: end tokens are never chosen, so that it runs to ``max_new_tokens`` or a stop string.
    """

    prompt: Tokens
    max_new_tokens: int
    sampling: SamplingParams
    share: TenantShare
    cache_namespace: str
    stops: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """News of one sequence: text, its end, or both. ``num_new_tokens`` sampled so far.

    The last one of a sequence has ``finish_reason``; with ERROR, ``error`` says why. It also says how many of
    the prompt's tokens were cached, and how long it waited for a slot, in seconds.
    """

    key: int
    text: str
    num_new_tokens: int
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    num_cached_tokens: int = 0
    queue_s: float = 0.0


Publish = Callable[[list[Delta]], None]


@dataclass(slots=True)
class StepCounts:
    """What steps were made of. ``max_sequences``: most in one step."""

    num_steps: int = 0
    num_mixed_steps: int = 0
    num_prefill_rows: int = 0
    num_decode_rows: int = 0
    max_sequences: int = 0
    step_s: float = 0.0

    def add(self, plan: StepPlan, elapsed_s: float) -> None:
        """Count one step."""
        self.num_steps += 1
        self.num_mixed_steps += plan.is_mixed
        self.num_decode_rows += plan.num_decode_rows
        self.num_prefill_rows += plan.num_rows - plan.num_decode_rows
        self.max_sequences = max(self.max_sequences, len(plan.chunks))
        self.step_s += elapsed_s


@dataclass(frozen=True, slots=True)
class _Submit:
    key: int
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class _Abort:
    key: int


class Engine:
    """Runs sequences on one context until ``stop``. A stopped engine is not started again."""

    def __init__(self, *, runner: Runner, scheduler: Scheduler, vocab: Vocab) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._vocab = vocab
        self._live: dict[int, tuple[Sequence, Detokenizer]] = {}
        self._deltas: list[Delta] = []
        self._keys = count(1)
        self._inbox: deque[_Submit | _Abort] = deque()
        self._wake = threading.Event()
        self._gate = threading.Lock()
        self._is_stopping = False
        self._publish: Publish = lambda deltas: None
        self.totals = StepCounts()
        """All steps so far; any thread may read it."""
        self._since_idle = StepCounts()
        self._thread = threading.Thread(target=self._run, name="nexa-engine", daemon=True)
        self.stats: SchedulerStats = scheduler.stats()
        """Counts after the last step; any thread may read it."""

    def start(self, publish: Publish) -> None:
        """Start the thread. ``publish`` is called on it with each step's deltas."""
        self._publish = publish
        self._thread.start()

    def new_key(self) -> int:
        """A key for ``submit``: taken first, so that the receiver knows it before the first delta."""
        return next(self._keys)

    def submit(self, key: int, request: GenerationRequest) -> None:
        """Hand a request over; from now on its deltas come, and exactly one of them has a finish reason.

        Raises ``ShuttingDownError`` once ``stop`` was called.
        """
        with self._gate:
            if self._is_stopping:
                raise ShuttingDownError
            self._inbox.append(_Submit(key, request))
        self._wake.set()

    def abort(self, key: int) -> None:
        """End a sequence before the next step. Its last delta says ABORT; nothing happens if it has ended."""
        self._inbox.append(_Abort(key))
        self._wake.set()

    def stop(self, timeout_s: float = 30.0) -> bool:
        """End every sequence with ``ShuttingDownError`` and the thread with it; False if it did not end."""
        with self._gate:
            self._is_stopping = True
        self._runner.interrupt()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def step(self) -> bool:
        """One step; False when there was nothing to do. Called by the thread (and by tests, without one)."""
        self._take_inbox()
        plan = self._scheduler.schedule(time.monotonic())
        if plan is not None:
            result = self._runner.execute(plan)
            for advance in self._scheduler.commit(plan, result):
                self._take_advance(advance)
            self._count(plan, result.elapsed_s)
        self._hand_over()
        return plan is not None

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                is_busy = self.step()
            except Exception as error:  # noqa: BLE001 - a bug must not leave clients waiting for ever
                _log.exception("step_crashed")
                self._fail_all(DecodeError(f"an internal error ({type(error).__name__})"))
                continue
            if not is_busy:
                self._rest()
        self._take_inbox()
        self._fail_all(ShuttingDownError())

    def _take_inbox(self) -> None:
        self._wake.clear()
        while self._inbox:
            match self._inbox.popleft():
                case _Submit(key, request):
                    self._open(key, request)
                case _Abort(key):
                    sequence = self._scheduler.abort(key)
                    if sequence is not None:
                        self._end(sequence, "", FinishReason.ABORT)

    def _open(self, key: int, request: GenerationRequest) -> None:
        sequence = Sequence(
            key,
            request.prompt,
            max_new_tokens=request.max_new_tokens,
            share=request.share,
            cache_namespace=request.cache_namespace,
            end_tokens=frozenset() if request.ignore_eos else self._vocab.eog_tokens,
        )
        try:
            self._runner.open(sequence, request.sampling)
        except NexaError as error:
            self._deltas.append(Delta(key, "", 0, FinishReason.ERROR, error))
            return
        self._live[key] = sequence, Detokenizer(self._vocab.pieces, request.stops)
        self._scheduler.add(sequence, time.monotonic())

    def _take_advance(self, advance: Advance) -> None:
        sequence, reason = advance.sequence, advance.finish_reason
        _, detokenizer = self._live[sequence.key]
        text = detokenizer.feed(advance.token) if advance.token is not None else ""
        if reason is not None or detokenizer.is_stopped:
            text += detokenizer.flush()
        if detokenizer.is_stopped:
            if reason is None:
                self._scheduler.finish(sequence, FinishReason.STOP)
            reason = FinishReason.STOP
        if reason is not None:
            self._end(sequence, text, reason, advance.error)
        elif text:
            self._deltas.append(Delta(sequence.key, text, sequence.num_new))

    def _end(
        self, sequence: Sequence, text: str, reason: FinishReason, error: Exception | None = None
    ) -> None:
        self._runner.close(sequence)
        del self._live[sequence.key]
        started_at = time.monotonic() if sequence.started_at is None else sequence.started_at
        queue_s = started_at - sequence.queued_at
        self._deltas.append(
            Delta(sequence.key, text, sequence.num_new, reason, error, sequence.num_cached, queue_s)
        )

    def _fail_all(self, error: NexaError) -> None:
        """End whatever lives, and leave the context empty."""
        for key, (sequence, _) in list(self._live.items()):
            if self._scheduler.is_alive(key):
                self._scheduler.finish(sequence, FinishReason.ERROR)
            self._end(sequence, "", FinishReason.ERROR, error)
        self._scheduler.forget_residents()
        self._runner.reset()
        self._hand_over()

    def _hand_over(self) -> None:
        self.stats = self._scheduler.stats()
        deltas, self._deltas = self._deltas, []
        if deltas:
            self._publish(deltas)

    def _count(self, plan: StepPlan, elapsed_s: float) -> None:
        if not plan.chunks:
            return
        self.totals.add(plan, elapsed_s)
        self._since_idle.add(plan, elapsed_s)
        _log.debug(
            "step",
            decode_rows=plan.num_decode_rows,
            prefill_rows=plan.num_rows - plan.num_decode_rows,
            sequences=len(plan.chunks),
            mixed=plan.is_mixed,
            ms=round(elapsed_s * 1e3, 2),
        )

    def _rest(self) -> None:
        counts, self._since_idle = self._since_idle, StepCounts()
        if counts.num_steps:
            _log.info(
                "engine_idle",
                steps=counts.num_steps,
                mixed_steps=counts.num_mixed_steps,
                prefill_rows=counts.num_prefill_rows,
                decode_rows=counts.num_decode_rows,
                max_sequences=counts.max_sequences,
                busy_s=round(counts.step_s, 3),
                preemptions=self.stats.num_preemptions,
                evictions=self.stats.num_evictions,
            )
        self._wake.wait()
