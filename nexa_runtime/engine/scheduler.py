"""What the next step computes, and what its result means.

Owns the waiting line and the running set; ``kv_cache`` keeps the books of the cells. Pure: no llama, no
threads, no clock; time comes in as ``now`` and ``elapsed_s``. It decides (``schedule``) and updates
(``commit``); it never touches the engine's C side. ``engine.py`` calls it, tests drive it by hand.

The step: every decode row first; then chunks of prompts, of the tenant with least virtual time, until the
token budget is spent. With nobody decoding, prompts take the whole step.
"""

from collections import Counter
from dataclasses import dataclass

from nexa_runtime.engine.budget import PrefillBudget
from nexa_runtime.engine.fair_queue import Accounts, FairQueue
from nexa_runtime.engine.kv_cache import Holding, KvCache, common_prefix
from nexa_runtime.engine.sequence import (
    Advance,
    Chunk,
    FinishReason,
    KvOperation,
    Sequence,
    SequenceState,
    StepPlan,
    StepResult,
)

PREFILL_WORK = 1.0
DECODE_WORK = 2.0
"""Work units of one token: a decode row costs about twice a prefill row in a mixed step."""

MIN_SHARED_TOKENS = 16
"""A shorter prefix is not worth waiting for."""

OUTPUT_RESERVE = 64
"""Cells kept for the answer when a sequence is let in; longer answers take what is there, or preempt."""


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """A snapshot: sequences running and waiting, ids and cells held, and what memory pressure has cost so
    far.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_resident_ids: int = 0
    num_used_cells: int = 0
    num_preemptions: int = 0
    num_evictions: int = 0


class Scheduler:
    """``slots``: sequences that run at once. ``step_tokens``: most rows of a step.

    ``itl_target_s``: the inter-token target of running streams, see ``PrefillBudget``.
    """

    def __init__(
        self,
        *,
        slots: int,
        step_tokens: int,
        kv_cache: KvCache,
        accounts: Accounts,
        itl_target_s: float | None = None,
    ) -> None:
        self.slots = slots
        self._step_tokens = step_tokens
        self._kv = kv_cache
        self._accounts = accounts
        self._queue = FairQueue(accounts)
        self._running: list[Sequence] = []
        self._alive: dict[int, Sequence] = {}
        self._operations: list[KvOperation] = []
        self._budget = PrefillBudget(step_tokens, itl_target_s)
        self._num_preemptions = 0
        self._num_evictions = 0

    def add(self, sequence: Sequence, now: float) -> None:
        """Put a sequence in line. It must fit into the pool alone (``max_cells``). ``now`` in seconds."""
        if sequence.max_cells > self._kv.num_cells:
            raise ValueError(f"{sequence.max_cells} cells in a pool of {self._kv.num_cells}")
        self._alive[sequence.key] = sequence
        sequence.queued_at = now
        self._accounts.enter(sequence.share)
        self._queue.push(sequence)

    def abort(self, key: int) -> Sequence | None:
        """End a sequence now, wherever it is; None if it has ended already."""
        sequence = self._alive.get(key)
        if sequence is not None:
            self.finish(sequence, FinishReason.ABORT)
        return sequence

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a living sequence between two steps; what it computed stays resident, unless it failed."""
        if sequence.state is SequenceState.WAITING:
            self._queue.take(sequence)
        else:
            self._running.remove(sequence)
        if sequence.sequence_id is not None:
            drop = self._kv.drop_sequence if reason is FinishReason.ERROR else self._kv.release
            self._operations += drop(sequence)
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason
        del self._alive[sequence.key]
        self._accounts.leave(sequence.share.tenant_id)

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing to do. ``now`` in seconds."""
        self._fill_slots(now)
        chunks: dict[int, Chunk] = {}
        for sequence in [one for one in self._running if one.is_decoding]:
            self._plan(sequence, 1, chunks)
        room = self._step_tokens - len(chunks)
        budget = min(room, self._budget.tokens()) if chunks else room
        for sequence in self._prefilling():
            if budget <= 0:
                break
            if sequence.sequence_id is not None or self._attach(sequence):
                budget -= self._plan(sequence, min(sequence.num_pending, budget), chunks)
        operations, self._operations = tuple(self._operations), []
        return StepPlan(tuple(chunks.values()), operations) if chunks or operations else None

    def commit(self, plan: StepPlan, result: StepResult) -> list[Advance]:
        """Take a step's result in: advance, charge, end what has ended. One ``Advance`` per token or end."""
        if result.is_pool_full:
            return self._relieve(plan)
        advances: list[Advance] = []
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if (error := result.failed.get(sequence.key)) is not None:
                self.finish(sequence, FinishReason.ERROR)
                advances.append(Advance(sequence, None, FinishReason.ERROR, error))
            elif sequence.key in result.lost:
                self._preempt(sequence)
            else:
                sequence.num_computed += chunk.count
                self._charge(chunk)
                if chunk.wants_token:
                    advances.append(self._take_token(sequence, result.tokens[sequence.key]))
        if plan.chunks and not result.failed and not result.lost:
            self._budget.observe(plan, result.elapsed_s)
        return advances

    def stats(self) -> SchedulerStats:
        """Counts of this moment."""
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=self._queue.num_waiting,
            num_resident_ids=self._kv.num_resident_ids,
            num_used_cells=self._kv.num_cells - self._kv.num_free_cells,
            num_preemptions=self._num_preemptions,
            num_evictions=self._num_evictions,
        )

    def prefill_tokens(self) -> int | None:
        """How many prompt tokens may ride beside running answers now; None while nobody is answering."""
        has_answers = any(sequence.is_decoding for sequence in self._running)
        return self._budget.tokens() if has_answers else None

    def forget_residents(self) -> None:
        """The context was emptied: nothing that has ended is there any more."""
        for holding in [one for one in self._kv.holdings() if one.is_resident]:
            self._operations += self._kv.drop(holding)

    def least_virtual_time(self) -> float | None:
        """That of the tenant who is next to be served here; None with nothing to do."""
        times = [self._accounts.virtual_time(one.share.tenant_id) for one in self._alive.values()]
        return min(times, default=None)

    def is_alive(self, key: int) -> bool:
        """Whether a sequence has not ended."""
        return key in self._alive

    def check_integrity(self) -> None:
        """Assert that no slot, id or cell is lost and that every living sequence can go on. For tests."""
        assert len(self._running) <= self.slots
        self._kv.check_integrity(self._holders())
        for sequence in self._alive.values():
            assert sequence.state is not SequenceState.FINISHED
            assert sequence.num_pending >= 1
            assert sequence.sequence_id is not None or sequence.num_computed == 0
        active = self._accounts.num_active()
        for tenant_id, count in Counter(one.share.tenant_id for one in self._alive.values()).items():
            assert count <= active[tenant_id]
        assert len(self._alive) == len(self._running) + self._queue.num_waiting

    # Who runs.

    def _fill_slots(self, now: float) -> None:
        """Give free slots to the tenants in order; one that does not fit holds its place, so none starves."""
        while len(self._running) < self.slots:
            sequence = next((head for head in self._queue.heads() if self._may_run(head)), None)
            if sequence is None or not self._fits(sequence):
                return
            self._queue.take(sequence)
            sequence.state = SequenceState.RUNNING
            sequence.started_at = now if sequence.started_at is None else sequence.started_at
            self._running.append(sequence)

    def _may_run(self, sequence: Sequence) -> bool:
        share = sequence.share
        if share.max_slots is None:
            return True
        held = sum(other.share.tenant_id == share.tenant_id for other in self._running)
        return held < share.max_slots

    def _fits(self, sequence: Sequence) -> bool:
        """Whether what it must compute and a first part of its answer fit beside what is promised already."""
        if not self._running:
            return True
        match = self._kv.match(sequence)
        evictable = self._kv.evictable(sequence.share, self._accounts.weights())
        available = self._kv.num_free_cells + sum(
            holding.num_cells for holding in evictable if holding is not match.holding
        )
        promised = sum(_cells_to_come(other) for other in self._running)
        return _cells_to_come(sequence) - match.num_tokens <= available - promised

    def _prefilling(self) -> list[Sequence]:
        waiting = [sequence for sequence in self._running if not sequence.is_decoding]
        waiting.sort(key=lambda one: (self._accounts.virtual_time(one.share.tenant_id), one.arrival))
        return waiting

    # What it reuses.

    def _attach(self, sequence: Sequence) -> bool:
        """Give a sequence its id and the prefix that is there; False while a leader computes more of it."""
        match = self._kv.match(sequence)
        if self._kv.is_shared and self._has_leader(sequence, match.num_tokens):
            return False
        if not self._kv.has_free_id and not self._kv.takes_over(match):
            residents = self._kv.evictable(sequence.share, self._accounts.weights(), breaks_floors=True)
            victim = next((one for one in residents if one is not match.holding), None)
            if victim is not None:
                self._evict(victim)
        self._operations += self._kv.attach(sequence, match)
        if not sequence.num_charged:
            sequence.num_cached = sequence.num_charged = match.num_tokens
        return True

    def _has_leader(self, sequence: Sequence, num_matched: int) -> bool:
        """Whether a running sequence is computing tokens that this one needs next."""
        limit = sequence.num_known - 1
        for leader in self._running:
            if leader.sequence_id is None or leader.cache_namespace != sequence.cache_namespace:
                continue
            end = min(limit, leader.num_known - 1)
            if end < num_matched + MIN_SHARED_TOKENS or end <= leader.num_computed:
                continue
            common = common_prefix(sequence.tokens(0, end), leader.tokens(0, end))
            if common >= num_matched + MIN_SHARED_TOKENS and common > leader.num_computed:
                return True
        return False

    # What it costs.

    def _plan(self, sequence: Sequence, count: int, chunks: dict[int, Chunk]) -> int:
        """Plan the next ``count`` tokens, or as many as find cells; how many those are."""
        if sequence.state is not SequenceState.RUNNING:
            return 0  # it was preempted for another's sake
        count = self._make_room(sequence, count, chunks)
        if count:
            chunks[sequence.key] = _chunk(sequence, count)
            self._kv.grow(sequence, count)
        return count

    def _make_room(self, sequence: Sequence, count: int, chunks: dict[int, Chunk]) -> int:
        """Free cells for ``count`` tokens: evict residents, and if nothing at all is free, preempt."""
        while self._kv.num_free_cells < count:
            # Ranked anew each time: what has gone counts towards its tenant's share and floor no more.
            residents = self._kv.evictable(sequence.share, self._accounts.weights())
            if not residents:
                break
            self._evict(residents[0])
        while not self._kv.num_free_cells:
            victim = self._victim()
            if victim is sequence and not chunks and len(self._holders()) == 1:
                # It is alone and fits the pool: what others keep at their floor gives way.
                residents = self._kv.evictable(sequence.share, self._accounts.weights(), breaks_floors=True)
                self._evict(residents[0])
                continue
            chunks.pop(victim.key, None)
            self._preempt(victim)
            if victim is sequence:
                return 0
        return min(count, self._kv.num_free_cells)

    def _victim(self) -> Sequence:
        """The most recent sequence of the tenant furthest ahead, among those that hold cells."""
        return max(
            self._holders(), key=lambda one: (self._accounts.virtual_time(one.share.tenant_id), one.arrival)
        )

    def _holders(self) -> list[Sequence]:
        return [one for one in self._running if one.sequence_id is not None]

    def _preempt(self, sequence: Sequence) -> None:
        """Send a running sequence back into the line, to be computed again; its tokens are kept."""
        self._operations += self._kv.drop_sequence(sequence)
        self._running.remove(sequence)
        sequence.state = SequenceState.WAITING
        self._queue.put_back(sequence)
        self._num_preemptions += 1

    def _evict(self, holding: Holding) -> None:
        self._operations += self._kv.drop(holding)
        self._num_evictions += 1

    def _relieve(self, plan: StepPlan) -> list[Advance]:
        """llama.cpp had no room although the books say so: undo the plan, then evict, preempt or give up."""
        for chunk in plan.chunks:
            self._operations += self._kv.shrink(chunk.sequence, chunk.sequence.num_computed)
        sequence = plan.chunks[0].sequence
        residents = self._kv.evictable(sequence.share, self._accounts.weights())
        if residents:
            self._evict(residents[0])
        elif len(self._holders()) > 1:
            self._preempt(self._victim())
        else:
            self.finish(sequence, FinishReason.LENGTH)
            return [Advance(sequence, None, FinishReason.LENGTH)]
        return []

    def _charge(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        num_new = max(sequence.num_computed - max(sequence.num_charged, chunk.start), 0)
        if num_new:
            sequence.num_charged = sequence.num_computed
            work = DECODE_WORK if chunk.is_decode else PREFILL_WORK
            self._accounts.charge(sequence.share.tenant_id, work * num_new)

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


def _cells_to_come(sequence: Sequence) -> int:
    """Cells that a sequence is promised: what it knows, and a bounded part of what it may still say."""
    return sequence.num_pending + min(OUTPUT_RESERVE, sequence.max_new_tokens - sequence.num_new) - 1


def _chunk(sequence: Sequence, count: int) -> Chunk:
    return Chunk(
        sequence=sequence,
        start=sequence.num_computed,
        count=count,
        wants_token=sequence.num_pending == count,
        is_decode=sequence.is_decoding,
    )
