"""Carries a step's plan out: moves KV cells, fills the batch, decodes, samples.

Owns the batch, the sampler of each sequence, and the bytes of what lies in host memory. The only module of
the engine that touches C; it decides nothing and changes no sequence. When a step fails, the sequences are
tried one by one, so that only the one at fault ends. The engine thread calls it.
"""

import time
from collections import Counter
from typing import assert_never

import numpy as np

from nexa_runtime.engine.sequence import (
    Chunk,
    CopyPrefix,
    Forget,
    KvOperation,
    Offload,
    Reload,
    Sequence,
    StepPlan,
    StepResult,
    Truncate,
)
from nexa_runtime.errors import DecodeError, LlamaGuardError, NexaError, ShuttingDownError
from nexa_runtime.llama import (
    Choice,
    Context,
    DecodeStatus,
    Sampler,
    SamplingParams,
    SavedRange,
    TokenLogprobs,
    TokenMask,
    restore_range,
    sample_greedy,
    save_range,
)
from nexa_runtime.telemetry import get_logger

MAX_RESTARTS = 2

_PADDING = np.zeros(1, dtype=np.int32)
"""Any token would do."""

_log = get_logger("engine.runner")


class Runner:
    """Runs plans on one context. ``open`` and ``close`` bracket a sequence's life."""

    def __init__(self, context: Context, *, spare_id: int | None = None) -> None:
        """``spare_id``: a sequence id that no plan uses and that is empty between two uses: KV goes to host
        memory and back over it, and padding has it. None: there is neither.
        """
        self._context = context
        self._spare_id = spare_id
        self._saved: dict[int, SavedRange] = {}
        self._broken: set[int] = set()
        """Ids whose KV did not come back from host memory, or was copied from such a one."""
        self._batch = context.make_batch()
        self._samplers: dict[int, Sampler] = {}
        self._logprobs: dict[int, TokenLogprobs] = {}
        """Of the tokens of the last step, by sequence, where they were asked for."""
        self._num_lost: Counter[int] = Counter()

    def open(self, sequence: Sequence, params: SamplingParams, mask: TokenMask | None = None) -> None:
        """Make a sequence's sampler. Raises ``NexaError`` when ``params`` do not fit the vocabulary."""
        prompt = sequence.tokens(0, sequence.num_prompt)
        self._samplers[sequence.key] = Sampler(params, self._context.vocab, prompt, mask)

    def close(self, sequence: Sequence) -> None:
        """Free a sequence's sampler."""
        self._samplers.pop(sequence.key).close()
        self._num_lost.pop(sequence.key, None)
        self._logprobs.pop(sequence.key, None)

    def take_logprobs(self, sequence: Sequence) -> tuple[TokenLogprobs, ...]:
        """Of the token that the last step sampled for a sequence; none where they were not asked for."""
        logprobs = self._logprobs.pop(sequence.key, None)
        return () if logprobs is None else (logprobs,)

    def interrupt(self) -> None:
        """Make a running ``execute`` return soon, where llama.cpp can. Any thread; for shutdown."""
        self._context.request_abort()

    def reset(self) -> None:
        """Free every cell of every id."""
        self._broken.clear()
        for sequence_id in range(self._context.params.num_sequence_ids):
            self._context.remove(sequence_id)

    @property
    def num_open(self) -> int:
        """Sequences that have a sampler."""
        return len(self._samplers)

    def num_cells(self) -> int:
        """Cells that llama.cpp holds for all ids. Asks every id: for tests and shutdown, not for steps."""
        return sum(self._context.num_cached(index) for index in range(self._context.params.num_sequence_ids))

    def execute(self, plan: StepPlan) -> StepResult:
        """Free what is to be freed, compute the chunks, sample. Never raises for what one sequence did."""
        unreadable = {block for one in plan.operations if (block := self._apply(one)) is not None}
        start = time.perf_counter()  # what it costs to move KV says nothing about rows
        choices: dict[int, Choice] = {}
        failed: dict[int, Exception] = {}
        lost: set[int] = set()
        status = self._decode(plan.chunks, plan.num_padding) if plan.chunks else DecodeStatus.OK
        if status is DecodeStatus.NO_KV_SLOT and plan.num_padding:
            status = self._decode(plan.chunks)
        decoded = time.perf_counter()
        if status is DecodeStatus.OK:
            self._sample(plan.chunks, choices, failed)
        elif status is DecodeStatus.ABORTED:
            failed = {chunk.sequence.key: ShuttingDownError() for chunk in plan.chunks}
        else:
            _log.warning("step_failed", status=status.name, sequences=len(plan.chunks), rows=plan.num_rows)
            if status is not DecodeStatus.NO_KV_SLOT:
                for chunk in plan.chunks:
                    self._retry(chunk, choices, failed, lost)
        end = time.perf_counter()
        return StepResult(
            end - start,
            {key: choice.tokens for key, choice in choices.items()},
            failed,
            is_pool_full=status is DecodeStatus.NO_KV_SLOT,
            lost=frozenset(lost),
            complete=frozenset(key for key, choice in choices.items() if choice.is_last),
            unreadable=frozenset(unreadable),
            sample_s=end - decoded if status is DecodeStatus.OK else 0.0,
        )

    def _apply(self, operation: KvOperation) -> int | None:
        """Do it; the block of host memory that turned out to be unreadable."""
        match operation:
            case Truncate(sequence_id, num_tokens):
                self._context.remove(sequence_id, num_tokens)
                if not num_tokens:
                    self._broken.discard(sequence_id)
            case CopyPrefix(source_id, target_id, num_tokens):
                if source_id in self._broken:
                    self._broken.add(target_id)
                else:
                    self._context.copy(source_id, target_id, num_tokens)
            case Offload(sequence_id, block, start, num_tokens):
                return self._offload(block, sequence_id, start, num_tokens)
            case Reload(block, sequence_id, _, num_tokens):
                return self._reload(block, sequence_id, num_tokens)
            case Forget(block):
                self._saved.pop(block, None)
            case _:
                assert_never(operation)
        return None

    def _offload(self, block: int, sequence_id: int, start: int, num_tokens: int) -> int | None:
        assert self._spare_id is not None
        if sequence_id in self._broken:
            return block
        try:
            self._saved[block] = save_range(self._context, sequence_id, start, num_tokens, via=self._spare_id)
        except (NexaError, MemoryError) as error:  # it is computed again, should it be wanted
            _log.warning("offload_failed", block=block, tokens=num_tokens, reason=str(error))
            return block
        return None

    def _reload(self, block: int, sequence_id: int, num_tokens: int) -> int | None:
        assert self._spare_id is not None
        saved = self._saved.get(block)
        if sequence_id in self._broken:
            return None
        if saved is not None and restore_range(
            self._context, saved, sequence_id, num_tokens, via=self._spare_id
        ):
            return None
        _log.warning("reload_failed", block=block, tokens=num_tokens)
        self._broken.add(sequence_id)
        return block if saved is None or not saved.is_sound else None

    def _decode(self, chunks: tuple[Chunk, ...], num_padding: int = 0) -> DecodeStatus:
        if any(chunk.sequence.sequence_id in self._broken for chunk in chunks):
            return DecodeStatus.INVALID_BATCH  # so that each is looked at alone
        try:
            return self._decode_guarded(chunks, num_padding)
        except LlamaGuardError:
            _log.exception("guard_refused_a_step")
            return DecodeStatus.INVALID_BATCH

    def _decode_guarded(self, chunks: tuple[Chunk, ...], num_padding: int) -> DecodeStatus:
        self._context.use_adapters(chunks[0].sequence.adapters)
        batch = self._batch
        batch.clear()
        for chunk in chunks:
            sequence = chunk.sequence
            assert sequence.sequence_id is not None
            tokens = sequence.tokens(chunk.start, chunk.count)
            batch.add(sequence.sequence_id, tokens, chunk.start, wants_logits=chunk.wants_token)
        if not num_padding:
            return self._context.decode(batch)
        assert self._spare_id is not None
        for position in range(num_padding):
            batch.add(self._spare_id, _PADDING, position, wants_logits=True)
        status = self._context.decode(batch)
        self._context.remove(self._spare_id)
        return status

    def _sample(
        self, chunks: tuple[Chunk, ...], choices: dict[int, Choice], failed: dict[int, Exception]
    ) -> None:
        keys = [chunk.sequence.key for chunk in chunks if chunk.wants_token]
        if not keys:
            return
        logits = self._context.logits(len(keys))
        samplers = [self._samplers[key] for key in keys]
        if all(sampler.is_plain_greedy for sampler in samplers):
            best = sample_greedy(logits)
            if best is not None:
                choices.update((key, Choice((token,))) for key, token in zip(keys, best, strict=True))
                return
        for key, sampler, row in zip(keys, samplers, logits, strict=True):
            try:
                choice = sampler.sample(row)
            except NexaError as error:
                failed[key] = error
            else:
                choices[key] = choice
                if choice.logprobs is not None:
                    self._logprobs[key] = choice.logprobs

    def _retry(
        self, chunk: Chunk, choices: dict[int, Choice], failed: dict[int, Exception], lost: set[int]
    ) -> None:
        """Compute one chunk alone after the step it was in has failed.

        A sequence whose KV the failure took is lost: it is computed again, but not for ever.
        """
        key, sequence_id = chunk.sequence.key, chunk.sequence.sequence_id
        assert sequence_id is not None
        if self._context.num_cached(sequence_id) > chunk.start:
            self._context.remove(sequence_id, chunk.start)
        is_lost = sequence_id in self._broken or self._context.num_cached(sequence_id) != chunk.start
        status = DecodeStatus.OK if is_lost else self._decode((chunk,))
        if is_lost or status is DecodeStatus.NO_KV_SLOT:
            self._num_lost[key] += 1
            if self._num_lost[key] <= MAX_RESTARTS:
                lost.add(key)
            else:
                failed[key] = DecodeError("its KV cache was lost again and again")
        elif status is DecodeStatus.OK:
            self._sample((chunk,), choices, failed)
        elif status is DecodeStatus.ABORTED:
            failed[key] = ShuttingDownError()
        else:
            failed[key] = DecodeError(f"llama.cpp returned {status.name.lower()}")
