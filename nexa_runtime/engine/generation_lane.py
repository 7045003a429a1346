"""The generating half of the engine: requests to sequences, sampled tokens to text.

Owns each sequence's detokenizer and the bridge between requests and the scheduler. ``engine.py`` calls it, on
the engine thread only.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nexa_runtime.engine.detokenizer import Detokenizer
from nexa_runtime.engine.runner import Runner
from nexa_runtime.engine.scheduler import Scheduler, SchedulerStats
from nexa_runtime.engine.sequence import (
    Advance,
    FinishReason,
    Sequence,
    StepPlan,
    StepResult,
    TenantShare,
    Tokens,
)
from nexa_runtime.engine.step_meter import StepMeter
from nexa_runtime.errors import DecodeError, NexaError, QueueTimeoutError
from nexa_runtime.llama import SamplingParams, TokenLogprobs, TokenMask, Vocab
from nexa_runtime.lora import NO_ADAPTERS, AdapterSet
from nexa_runtime.telemetry import get_logger, is_debugging

_log = get_logger("engine")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate. ``prompt``: int32 of shape (n,), n ≥ 1; it fits the context (see
    ``Sequence``). ``adapters``: of those that the model has by name.

    ``mask``: what its tokens must keep to; it is this sequence's alone. ``stop_tokens`` end it like end
    tokens. ``markers``: see ``Detokenizer``. ``ignore_eos``: end tokens are never chosen, so that it runs to
    ``max_new_tokens`` or a stop string. ``is_public``: every namespace may share its prompt afterwards.
    ``queue_timeout_s``: longest wait for a slot, in seconds.
    """

    prompt: Tokens
    max_new_tokens: int
    sampling: SamplingParams
    share: TenantShare
    cache_namespace: str
    adapters: AdapterSet = NO_ADAPTERS
    mask: TokenMask | None = None
    stops: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    markers: Mapping[int, str] = field(default_factory=dict)
    ignore_eos: bool = False
    is_public: bool = False
    queue_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """News of one sequence: text, its end, or both. ``num_new_tokens`` sampled so far. ``logprobs``: of the
    tokens sampled since the last one, where they were asked for; their text may come later.

    The last one of a sequence has ``finish_reason``; with ERROR, ``error`` says why, and ``stop`` is the stop
    string that ended it, if one did. It also says how many of the prompt's tokens were cached, how many were
    cached or computed, and how long it waited for a slot, in seconds.
    """

    key: int
    text: str
    num_new_tokens: int
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    num_cached_tokens: int = 0
    num_done_tokens: int = 0
    queue_s: float = 0.0
    logprobs: tuple[TokenLogprobs, ...] = ()
    stop: str | None = None


Emit = Callable[[Delta], None]


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


@dataclass(slots=True)
class _Live:
    """A sequence that has not ended. ``token_at``: when its last tokens came; 0 before the first."""

    sequence: Sequence
    detokenizer: Detokenizer
    token_at: float = 0.0


class GenerationLane:
    """Runs sequences on one context."""

    def __init__(self, *, runner: Runner, scheduler: Scheduler, vocab: Vocab) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self._vocab = vocab
        self._live: dict[int, _Live] = {}
        self._since_idle = StepCounts()
        self.totals = StepCounts()
        """All steps so far."""
        self.plan: StepPlan | None = None
        """Of the step that is under way."""
        self.meter = StepMeter()

    @property
    def num_live(self) -> int:
        """Sequences that have not ended."""
        return len(self._live)

    def stats(self) -> SchedulerStats:
        """Counts of this moment."""
        return self.scheduler.stats()

    def least_virtual_time(self) -> float | None:
        """That of the tenant who is next here; None with nothing to do."""
        return self.scheduler.least_virtual_time()

    def open(self, key: int, request: GenerationRequest, emit: Emit) -> None:
        """Put a request in line; what cannot be opened ends at once, and alone."""
        try:
            self._open(key, request)
        except Exception as error:  # noqa: BLE001 - its client waits for an end, whatever went wrong
            if not isinstance(error, NexaError):
                _log.exception("open_crashed")
                error = DecodeError(f"an internal error ({type(error).__name__})")
            emit(Delta(key, "", 0, FinishReason.ERROR, error))

    def _open(self, key: int, request: GenerationRequest) -> None:
        sequence = Sequence(
            key,
            request.prompt,
            max_new_tokens=request.max_new_tokens,
            share=request.share,
            cache_namespace=request.cache_namespace,
            adapters=request.adapters,
            end_tokens=request.stop_tokens | (frozenset() if request.ignore_eos else self._vocab.eog_tokens),
            is_public=request.is_public,
            queue_timeout_s=request.queue_timeout_s,
        )
        self.runner.open(sequence, request.sampling, request.mask)
        try:
            self.scheduler.add(sequence, time.monotonic())
        except ValueError:
            self.runner.close(sequence)
            raise
        detokenizer = Detokenizer(self._vocab.pieces, request.stops, request.markers)
        self._live[key] = _Live(sequence, detokenizer)

    def abort(self, key: int, emit: Emit) -> None:
        """End a sequence, if it lives."""
        sequence = self.scheduler.abort(key)
        if sequence is not None:
            self._end(sequence, "", FinishReason.ABORT, None, emit)

    def step(self, emit: Emit) -> bool:
        """Schedule, execute, commit; False when there was nothing to do."""
        now = time.monotonic()
        for sequence in self.scheduler.expired(now):
            self.scheduler.finish(sequence, FinishReason.ERROR)
            error = QueueTimeoutError(sequence.queue_timeout_s or 0.0)
            self._end(sequence, "", FinishReason.ERROR, error, emit)
        plan = self.scheduler.schedule(now)
        if plan is None:
            return False
        self.plan = plan
        scheduled_at = time.monotonic()
        result = self.runner.execute(plan)
        executed_at = time.monotonic()
        for advance in self.scheduler.commit(plan, result):
            self._take_advance(advance, executed_at, emit)
        self.plan = None
        if plan.chunks:
            self._count(plan, result.elapsed_s)
            self._meter(plan, result, now, scheduled_at, executed_at)
        return True

    def fail_all(self, error: NexaError, emit: Emit) -> None:
        """End whatever lives, and leave the context empty."""
        self.plan = None
        for key, live in list(self._live.items()):
            if self.scheduler.is_alive(key):
                self.scheduler.finish(live.sequence, FinishReason.ERROR)
            self._end(live.sequence, "", FinishReason.ERROR, error, emit)
        self.scheduler.forget_residents()
        self.runner.reset()

    def log_idle(self) -> None:
        """Say what was done since the engine was last idle."""
        counts, self._since_idle = self._since_idle, StepCounts()
        if not counts.num_steps:
            return
        stats = self.scheduler.stats()
        _log.info(
            "engine_idle",
            steps=counts.num_steps,
            mixed_steps=counts.num_mixed_steps,
            prefill_rows=counts.num_prefill_rows,
            decode_rows=counts.num_decode_rows,
            max_sequences=counts.max_sequences,
            busy_s=round(counts.step_s, 3),
            preemptions=stats.num_preemptions,
            evictions=stats.num_evictions,
            pauses=stats.num_pauses,
            host_cache_mb=round(stats.num_host_bytes / 1e6, 1),
        )

    def _take_advance(self, advance: Advance, now: float, emit: Emit) -> None:
        sequence, reason = advance.sequence, advance.finish_reason
        live = self._live[sequence.key]
        detokenizer = live.detokenizer
        if advance.tokens:
            if live.token_at:
                self.meter.gap.observe(now - live.token_at)
            live.token_at = now
        text = "".join(map(detokenizer.feed, advance.tokens))
        logprobs = self.runner.take_logprobs(sequence) if advance.tokens else ()
        if reason is not None or detokenizer.is_stopped:
            text += detokenizer.flush()
        if detokenizer.is_stopped:
            if reason is None:
                self.scheduler.finish(sequence, FinishReason.STOP)
            reason = FinishReason.STOP
        if reason is not None:
            self._end(sequence, text, reason, advance.error, emit, logprobs)
        elif text or logprobs:
            emit(Delta(sequence.key, text, sequence.num_new, logprobs=logprobs))

    def _end(
        self,
        sequence: Sequence,
        text: str,
        reason: FinishReason,
        error: Exception | None,
        emit: Emit,
        logprobs: tuple[TokenLogprobs, ...] = (),
    ) -> None:
        self.runner.close(sequence)
        detokenizer = self._live.pop(sequence.key).detokenizer
        started_at = time.monotonic() if sequence.started_at is None else sequence.started_at
        queue_s = started_at - sequence.queued_at
        num_done = min(sequence.num_charged, sequence.num_prompt)
        num_new, num_cached = sequence.num_new, sequence.num_cached
        stop = detokenizer.stop
        emit(Delta(sequence.key, text, num_new, reason, error, num_cached, num_done, queue_s, logprobs, stop))

    def _meter(
        self, plan: StepPlan, result: StepResult, started_at: float, scheduled_at: float, executed_at: float
    ) -> None:
        """Note where a step's time went."""
        meter, ended_at = self.meter, time.monotonic()
        meter.step.observe(ended_at - started_at)
        meter.rows.observe(plan.num_rows)
        meter.schedule_s += scheduled_at - started_at
        meter.decode_s += executed_at - scheduled_at - result.sample_s
        meter.sample_s += result.sample_s
        meter.publish_s += ended_at - executed_at

    def _count(self, plan: StepPlan, elapsed_s: float) -> None:
        self.totals.add(plan, elapsed_s)
        self._since_idle.add(plan, elapsed_s)
        if not is_debugging():
            return
        _log.debug(
            "step",
            decode_rows=plan.num_decode_rows,
            prefill_rows=plan.num_rows - plan.num_decode_rows,
            padding_rows=plan.num_padding,
            sequences=len(plan.chunks),
            mixed=plan.is_mixed,
            ms=round(elapsed_s * 1e3, 2),
        )
