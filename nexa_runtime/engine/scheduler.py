"""What the next step computes, and what its result means.

Owns the waiting line, the running set and the cell accounting of one context. Pure: no llama, no threads, no
clock; time comes in as ``now`` and ``elapsed_s``. It decides (``schedule``) and updates (``commit``); it
never touches the engine's C side. ``engine.py`` calls it, tests drive it by hand.

The step: every decode row first; then chunks of prompts, of the tenant with least virtual time, until the
token budget is spent. With nobody decoding, prompts take the whole step.
"""

from dataclasses import dataclass

from nexa_runtime.engine.fair_queue import FairQueue
from nexa_runtime.engine.kv_cache import KvCache
from nexa_runtime.engine.sequence import (
    Advance,
    Chunk,
    FinishReason,
    Sequence,
    SequenceState,
    StepPlan,
    StepResult,
)

PREFILL_WORK = 1.0
DECODE_WORK = 2.0
"""Work units of one token: a decode row costs about twice a prefill row in a mixed step."""

MIN_PREFILL_TOKENS = 32
"""Prefill's part of a mixed step; prompts never starve. Also the grain of the budget, so that step shapes
recur.
"""

_SMOOTHING = 0.2


class PrefillBudget:
    """How many prompt tokens may ride with the decode rows: as many as about double the step's time.

    Learned online from measured steps: the time of decode-only steps, and the time a prompt token adds.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._decode_step_s: float | None = None
        self._prefill_token_s: float | None = None

    def tokens(self) -> int:
        """The budget of the next mixed step, a multiple of ``MIN_PREFILL_TOKENS``."""
        if self._decode_step_s is None or self._prefill_token_s is None:
            return MIN_PREFILL_TOKENS
        affordable = int(self._decode_step_s / self._prefill_token_s)
        grains = max(1, affordable // MIN_PREFILL_TOKENS)
        return min(grains * MIN_PREFILL_TOKENS, self._max_tokens)

    def observe(self, plan: StepPlan, elapsed_s: float) -> None:
        """Learn from a step's time, in seconds."""
        num_prefill = plan.num_rows - plan.num_decode_rows
        if not num_prefill:
            self._decode_step_s = _smooth(self._decode_step_s, elapsed_s)
        elif num_prefill >= MIN_PREFILL_TOKENS:
            decode_s = (self._decode_step_s or 0.0) if plan.num_decode_rows else 0.0
            per_token_s = max(elapsed_s - decode_s, 0.1 * elapsed_s) / num_prefill
            self._prefill_token_s = _smooth(self._prefill_token_s, per_token_s)


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """A snapshot: sequences running and waiting, cells computed and promised."""

    num_running: int
    num_waiting: int
    num_used_ids: int
    num_computed_cells: int
    num_reserved_cells: int


class Scheduler:
    """``slots``: sequences that run at once. ``step_tokens``: most rows of a step."""

    def __init__(self, *, slots: int, step_tokens: int, kv_cache: KvCache) -> None:
        self.slots = slots
        self._step_tokens = step_tokens
        self._kv = kv_cache
        self._queue = FairQueue()
        self._running: list[Sequence] = []
        self._alive: dict[int, Sequence] = {}
        self._released_ids: list[int] = []
        self._budget = PrefillBudget(step_tokens)

    def add(self, sequence: Sequence, now: float) -> None:
        """Put a sequence in line. It must fit into the pool alone (``max_cells``). ``now`` in seconds."""
        if sequence.max_cells > self._kv.num_cells:
            raise ValueError(f"{sequence.max_cells} cells in a pool of {self._kv.num_cells}")
        self._alive[sequence.key] = sequence
        sequence.queued_at = now
        self._queue.push(sequence)

    def abort(self, key: int) -> Sequence | None:
        """End a sequence now, wherever it is; None if it has ended already."""
        sequence = self._alive.get(key)
        if sequence is not None:
            self.finish(sequence, FinishReason.ABORT)
        return sequence

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a living sequence between two steps and take its slot and cells back."""
        if sequence.state is SequenceState.WAITING:
            self._queue.take(sequence)
        else:
            assert sequence.sequence_id is not None
            self._running.remove(sequence)
            self._kv.release(sequence.sequence_id)
            self._released_ids.append(sequence.sequence_id)
            sequence.sequence_id = None
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason
        del self._alive[sequence.key]
        self._queue.finish(sequence)

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing to do. ``now`` in seconds."""
        self._fill_slots(now)
        chunks = [_chunk(sequence, 1) for sequence in self._running if sequence.is_decoding]
        room = self._step_tokens - len(chunks)
        budget = min(room, self._budget.tokens()) if chunks else room
        for sequence in self._prefilling():
            if budget <= 0:
                break
            count = min(sequence.num_pending, budget)
            chunks.append(_chunk(sequence, count))
            budget -= count
        released, self._released_ids = tuple(self._released_ids), []
        return StepPlan(tuple(chunks), released) if chunks or released else None

    def commit(self, plan: StepPlan, result: StepResult) -> list[Advance]:
        """Take a step's result in: advance, charge, end what has ended. One ``Advance`` per token or end."""
        advances: list[Advance] = []
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if (error := result.failed.get(sequence.key)) is not None:
                self.finish(sequence, FinishReason.ERROR)
                advances.append(Advance(sequence, None, FinishReason.ERROR, error))
                continue
            sequence.num_computed += chunk.count
            work = DECODE_WORK if chunk.is_decode else PREFILL_WORK * chunk.count
            self._queue.charge(sequence.share.tenant_id, work)
            if chunk.wants_token:
                advances.append(self._take_token(sequence, result.tokens[sequence.key]))
        if not result.failed:
            self._budget.observe(plan, result.elapsed_s)
        return advances

    def stats(self) -> SchedulerStats:
        """Counts of this moment."""
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=self._queue.num_waiting,
            num_used_ids=self._kv.num_used_ids,
            num_computed_cells=sum(sequence.num_computed for sequence in self._running),
            num_reserved_cells=self._kv.num_reserved_cells,
        )

    def is_alive(self, key: int) -> bool:
        """Whether a sequence has not ended."""
        return key in self._alive

    def check_integrity(self) -> None:
        """Assert that no slot, id or cell is lost and that every living sequence can go on. For tests."""
        used = {sequence.sequence_id: sequence.num_computed for sequence in self._running}
        assert None not in used
        assert len(used) == len(self._running) <= self.slots
        self._kv.check_integrity({key: cells for key, cells in used.items() if key is not None})
        active: dict[str, int] = {}
        for sequence in self._alive.values():
            active[sequence.share.tenant_id] = active.get(sequence.share.tenant_id, 0) + 1
            assert sequence.state is not SequenceState.FINISHED
            assert sequence.num_pending >= 1
        self._queue.check_integrity(active)
        assert len(self._alive) == len(self._running) + self._queue.num_waiting

    def _fill_slots(self, now: float) -> None:
        """Give free slots to the tenants in order; one that does not fit yet holds its place, so none
        starves.
        """
        while len(self._running) < self.slots:
            sequence = next((head for head in self._queue.heads() if self._may_run(head)), None)
            if sequence is None:
                return
            sequence_id = self._kv.reserve(sequence.max_cells)
            if sequence_id is None:
                return
            self._queue.take(sequence)
            sequence.sequence_id = sequence_id
            sequence.state = SequenceState.RUNNING
            sequence.started_at = now
            self._running.append(sequence)

    def _may_run(self, sequence: Sequence) -> bool:
        share = sequence.share
        if share.max_slots is None:
            return True
        held = sum(other.share.tenant_id == share.tenant_id for other in self._running)
        return held < share.max_slots

    def _prefilling(self) -> list[Sequence]:
        waiting = [sequence for sequence in self._running if not sequence.is_decoding]
        waiting.sort(key=lambda one: (self._queue.virtual_time(one.share.tenant_id), one.arrival))
        return waiting

    def _take_token(self, sequence: Sequence, token: int) -> Advance:
        sequence.append(token)
        reason = None
        if token in sequence.end_tokens:
            reason = FinishReason.STOP
        elif sequence.num_new >= sequence.max_new_tokens:
            reason = FinishReason.LENGTH
        if reason is not None:
            self.finish(sequence, reason)
        return Advance(sequence, None if reason is FinishReason.STOP else token, reason)


def _chunk(sequence: Sequence, count: int) -> Chunk:
    return Chunk(
        sequence=sequence,
        start=sequence.num_computed,
        count=count,
        wants_token=sequence.num_pending == count,
        is_decode=sequence.is_decoding,
    )


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + _SMOOTHING * (new - old)
