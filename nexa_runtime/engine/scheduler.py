"""What the next step computes, and what its result means.

Owns the sequences that live; ``slots`` knows who runs, ``memory`` who gives way, ``kv_cache`` keeps the books
of the cells. Pure: no llama, no threads, no clock; time comes in as ``now`` and ``elapsed_s``. It decides
(``schedule``) and updates (``commit``); it never touches the engine's C side. ``generation_lane`` calls it,
tests drive it by hand.

The step: every decode row first, then chunks of prompts, of the tenant with least virtual time, until the
token budget is spent. A sequence whose constraint has forced tokens has several decode rows. With nobody
decoding, prompts take the whole step, of a second or so. Where prompts and answers are cheaper apart
they take turns, each in steps of their own. Sequences with different adapters never share a step
(``adapter_sets``).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from nexa_runtime.engine.adapter_sets import AdapterTurns
from nexa_runtime.engine.budget import PendingPrompt, PrefillBudget, PromptRows
from nexa_runtime.engine.fair_queue import Accounts
from nexa_runtime.engine.host_cache import HostCache
from nexa_runtime.engine.kv_cache import KvCache
from nexa_runtime.engine.memory import Memory
from nexa_runtime.engine.padding import Padding
from nexa_runtime.engine.sequence import (
    Advance,
    Chunk,
    FinishReason,
    Forget,
    KvOperation,
    Sequence,
    SequenceState,
    StepPlan,
    StepResult,
    TenantShare,
)
from nexa_runtime.engine.slots import Slots

PREFILL_WORK = 1.0
"""Work units of a prompt token; those of a decode row are learned (``PrefillBudget.decode_work``)."""

_PROMPTS_IN_VIEW = 8
"""As many of those in line say how large a step of prompts is."""


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """A snapshot: sequences running, waiting and, of these, paused; ids and cells held, and of these cells
    those that only residents hold; what memory pressure and fairness have cost so far; and what lies in host
    memory.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_paused: int = 0
    num_resident_ids: int = 0
    num_used_cells: int = 0
    num_resident_cells: int = 0
    num_preemptions: int = 0
    num_evictions: int = 0
    num_pauses: int = 0
    num_host_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TenantCounts:
    """What one tenant has on one model right now. ``num_new``: tokens that its running sequences have been
    given so far. ``virtual_time``: what it has paid, in weighted tokens. ``num_resident_cells``: those of its
    cells that only wait for a prompt that begins alike.
    """

    num_running: int
    num_waiting: int
    num_cells: int
    num_new: int
    virtual_time: float
    num_resident_cells: int = 0


class Scheduler:
    """``slots``: sequences that run at once. ``step_tokens``: most rows of a step.

    ``itl_target_s``, ``tile_rows``: see ``PrefillBudget`` and ``Padding``. ``host_cache``: where
    what has lain idle goes; None: it is dropped. ``max_warm_cells``: see ``Memory``.
    """

    def __init__(
        self,
        *,
        slots: int,
        step_tokens: int,
        kv_cache: KvCache,
        accounts: Accounts,
        itl_target_s: float | None = None,
        tile_rows: int | None = None,
        host_cache: HostCache | None = None,
        max_warm_cells: int | None = None,
    ) -> None:
        self._step_tokens = step_tokens
        self._kv = kv_cache
        self._host = host_cache or HostCache(max_bytes=0, cell_bytes=1)
        self._accounts = accounts
        self._slots = Slots(slots, accounts)
        self._alive: dict[int, Sequence] = {}
        self._num_alive: Counter[str] = Counter()
        """The same by tenant; none has zero."""
        self._operations: list[KvOperation] = []
        self._memory = Memory(
            kv_cache,
            self._slots,
            accounts,
            self._operations,
            host_cache=self._host,
            max_warm_cells=max_warm_cells,
        )
        self._has_ended = False
        """Whether a sequence has, since residents were last looked at."""
        self._budget = PrefillBudget(step_tokens, itl_target_s, tile_rows)
        self._padding = Padding(step_tokens, tile_rows)
        self._has_tiles = tile_rows is not None
        self._turns = AdapterTurns()
        self._next_answer = 0
        """Whose turn is next of the answers that find no room in one step together."""
        self._max_rows: int | None = None
        """Set when llama.cpp found no room for a step although nothing was left to give up."""
        self._num_pauses = 0

    def add(self, sequence: Sequence, now: float) -> None:
        """Put a sequence in line. It must fit into the pool alone (``max_cells``). ``now`` in seconds."""
        available = self._kv.num_cells - self._kv.num_pinned_cells
        if sequence.max_cells > available:
            raise ValueError(f"{sequence.max_cells} cells in a pool of {available}")
        self._alive[sequence.key] = sequence
        self._num_alive[sequence.share.tenant_id] += 1
        sequence.queued_at = now
        self._accounts.enter(sequence.share)
        self._turns.enter(sequence)
        self._slots.add(sequence)

    def abort(self, key: int) -> Sequence | None:
        """End a sequence now, wherever it is; None if it has ended already."""
        sequence = self._alive.get(key)
        if sequence is not None:
            self.finish(sequence, FinishReason.ABORT)
        return sequence

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a living sequence between two steps; what it computed stays resident, unless it failed."""
        self._slots.remove(sequence)
        if sequence.sequence_id is not None:
            if reason is FinishReason.ERROR:
                self._operations += self._kv.drop(self._kv.holding_of(sequence))
            else:
                self._operations += self._kv.release(sequence)
        self._has_ended = True
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason
        del self._alive[sequence.key]
        tenant_id = sequence.share.tenant_id
        self._num_alive[tenant_id] -= 1
        if not self._num_alive[tenant_id]:
            del self._num_alive[tenant_id]
        self._accounts.leave(tenant_id)
        self._turns.leave(sequence)

    def expired(self, now: float) -> list[Sequence]:
        """Those that have waited for their first slot for longer than they may. Changes nothing."""
        return [
            one
            for one in self._slots.waiting()
            if one.queue_timeout_s is not None
            and one.started_at is None
            and now - one.queued_at > one.queue_timeout_s
        ]

    def update_share(self, share: TenantShare) -> None:
        """From now on this holds for all that its tenant has here."""
        self._accounts.update(share)
        self._host.update_share(share)
        for sequence in [*self._alive.values(), *(one.sequence for one in self._kv.holdings())]:
            if sequence.share.tenant_id == share.tenant_id:
                sequence.share = share

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing to do. ``now`` in seconds."""
        self._fill_slots(now)
        if self._has_ended:  # before newcomers take cells: theirs are the ones that this frees
            self._has_ended = self._memory.cool()
        chunks = tuple(self._plan_chunks().values())
        operations = tuple(self._operations)
        self._operations.clear()
        return StepPlan(chunks, operations, self._num_padding(chunks)) if chunks or operations else None

    def commit(self, plan: StepPlan, result: StepResult) -> list[Advance]:
        """Take a step's result in: advance, charge, end what has ended. An ``Advance`` for each sequence that
        got tokens or has ended.
        """
        for block in result.unreadable:
            self._operations += self._host.drop(block)
        self._turns.charge(result.elapsed_s)
        if result.is_pool_full:
            return self._relieve(plan)
        self._max_rows = None
        advances: list[Advance] = []
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if (error := result.failed.get(sequence.key)) is not None:
                self.finish(sequence, FinishReason.ERROR)
                advances.append(Advance(sequence, (), FinishReason.ERROR, error))
            elif sequence.key in result.lost:
                self._memory.preempt(sequence, is_sound=False)
            else:
                sequence.num_computed += chunk.count
                self._charge(chunk)
                if chunk.wants_token:
                    tokens = result.tokens[sequence.key]
                    is_complete = sequence.key in result.complete
                    advances.append(self._take_tokens(sequence, tokens, is_complete=is_complete))
        if plan.chunks and not result.failed and not result.lost:
            self._budget.observe(plan, result.elapsed_s)
            if _are_single_rows(plan.chunks):
                self._padding.observe(len(plan.chunks), result.elapsed_s, is_padded=plan.num_padding > 0)
        return advances

    def stats(self) -> SchedulerStats:
        """Counts of this moment."""
        return SchedulerStats(
            num_running=len(self._slots.running),
            num_waiting=self._slots.num_waiting,
            num_paused=len(self._slots.paused()),
            num_resident_ids=self._kv.num_resident_ids,
            num_used_cells=self._kv.num_cells - self._kv.num_free_cells,
            num_resident_cells=self._kv.num_resident_cells(),
            num_preemptions=self._memory.num_preemptions,
            num_evictions=self._memory.num_evictions,
            num_pauses=self._num_pauses,
            num_host_bytes=self._host.num_bytes,
        )

    def tenant_counts(self) -> dict[str, TenantCounts]:
        """Counts of this moment by tenant, of those that have anything here."""
        running = Counter(one.share.tenant_id for one in self._slots.running)
        waiting = Counter(one.share.tenant_id for one in self._slots.waiting())
        new: Counter[str] = Counter()
        for one in self._slots.running:
            new[one.share.tenant_id] += one.num_new
        cells, idle = self._kv.held_and_idle()
        paid = self._accounts.virtual_times()
        return {
            name: TenantCounts(
                running[name],
                waiting[name],
                round(cells.get(name, 0.0)),
                new[name],
                paid.get(name, 0.0),
                round(idle.get(name, 0.0)),
            )
            for name in {*running, *waiting, *cells, *paid}
        }

    def prefill_tokens(self) -> int | None:
        """How many prompt tokens may ride beside running answers now; None while nobody is answering."""
        has_answers = any(sequence.is_decoding for sequence in self._slots.running)
        return self._budget.mixed(1).wanted if has_answers else None

    def forget_residents(self) -> None:
        """The context was emptied: nothing that has ended is there any more."""
        self._operations[:] = [one for one in self._operations if isinstance(one, Forget)]
        for holding in [one for one in self._kv.holdings() if one.is_resident]:
            self._operations += self._kv.drop(holding)

    def least_virtual_time(self) -> float | None:
        """That of the tenant who is next to be served here; None with nothing to do."""
        return min(map(self._accounts.virtual_time, self._num_alive), default=None)

    def is_alive(self, key: int) -> bool:
        """Whether a sequence has not ended."""
        return key in self._alive

    def check_integrity(self) -> None:
        """Assert that no slot, id or cell is lost and that every living sequence can go on. For tests."""
        assert len(self._slots.running) <= self._slots.num_slots
        assert len(self._alive) == len(self._slots.running) + self._slots.num_waiting
        self._host.check_integrity()
        self._kv.check_integrity(one for one in self._alive.values() if one.sequence_id is not None)
        for sequence in self._alive.values():
            assert sequence.state is not SequenceState.FINISHED
            assert sequence.num_pending >= 1
            assert sequence.sequence_id is not None or sequence.num_computed == 0
        self._turns.check_integrity(list(self._alive.values()))
        active = self._accounts.num_active()
        assert self._num_alive == Counter(one.share.tenant_id for one in self._alive.values())
        assert all(count <= active[tenant_id] for tenant_id, count in self._num_alive.items())

    def _fill_slots(self, now: float) -> None:
        """Make every change that is due and fits; what is paused for one waits for the next step at least, so
        that claims which contradict each other come to an end.
        """
        stopped: set[int] = set()
        while self._slots.num_waiting and self._change_slots(now, stopped):
            pass

    def _change_slots(self, now: float, stopped: set[int]) -> bool:
        for change in self._slots.due_changes():
            if change.sequence.key in stopped:
                continue
            pauses = self._memory.pauses_for(change)
            if pauses is not None:
                for sequence in pauses:
                    self._slots.stop(sequence)
                    stopped.add(sequence.key)
                    self._num_pauses += 1
                self._slots.start(change.sequence, now)
                return True
        return False

    def _plan_chunks(self) -> dict[int, Chunk]:
        """What is computed next, by key: rows of answers, parts of prompts, or both."""
        running = self._turns.members(self._slots.running)
        max_rows = self._max_rows or self._step_tokens
        chunks: dict[int, Chunk] = {}
        decoding = [one for one in running if one.is_decoding]
        prefilling = self._prefilling(running)
        prompts = [self._pending(one) for one in prefilling[:_PROMPTS_IN_VIEW]] if self._has_tiles else []
        is_awaited = self._is_awaited(running)
        current, turn = self._turns.current, None
        if prefilling and (decoding or is_awaited):
            turn = self._budget.turn(len(decoding), prompts)
        if turn is not None:
            # Without answers here, those that wait have turns of their own; else another prompt may be the
            # first in line by now.
            current.prompt_rows = min(current.prompt_rows, turn) if decoding else turn
        if turn is not None and current.prompt_rows > 0:
            rows = self._budget.prompts_alone(prompts, current.prompt_rows)
            current.prompt_rows -= max(self._plan_prompts(prefilling, rows, max_rows, chunks), rows.wanted)
        if not chunks:
            num_rows = self._plan_answers(decoding, self._budget.answer_rows(max_rows), chunks)
            if turn is None:
                if num_rows or is_awaited:
                    rows = self._budget.mixed(num_rows)
                else:
                    rows = self._budget.prompts_alone(prompts)
                self._plan_prompts(prefilling, rows, max_rows - num_rows, chunks)
            # 0 without a turn: a prompt that comes during this step waits for one more. Others may come with
            # that, and one step of two prompts costs less than two steps.
            current.prompt_rows = turn or 0
        return chunks

    def _num_padding(self, chunks: tuple[Chunk, ...]) -> int:
        """Rows that make a step of answers faster, where there are cells for them."""
        if self._max_rows is not None or not self._kv.is_shared or not _are_single_rows(chunks):
            return 0
        num_padding = self._padding.rows(len(chunks))
        return num_padding if num_padding <= self._kv.num_free_cells else 0

    def _is_awaited(self, members: list[Sequence]) -> bool:
        """Whether answers with other adapters wait for a step of these to end."""
        running = self._slots.running
        if members is running:
            return False
        return any(one.is_decoding and one.adapters != members[0].adapters for one in running)

    def _prefilling(self, running: list[Sequence]) -> list[Sequence]:
        waiting = [sequence for sequence in running if not sequence.is_decoding]
        waiting.sort(key=lambda one: (self._accounts.virtual_time(one.share.tenant_id), one.arrival))
        return waiting

    def _pending(self, sequence: Sequence) -> PendingPrompt:
        start = self._memory.num_there(sequence)
        cached = start if sequence.sequence_id is None else sequence.num_cached
        return PendingPrompt(start, sequence.num_known - start, sequence.num_known - cached)

    def _plan_answers(self, decoding: list[Sequence], room: int, chunks: dict[int, Chunk]) -> int:
        """Plan a row for each, and more for those that have forced tokens, ``room`` at most. Where there is
        none for all they take turns.
        """
        if len(decoding) > room:
            first = self._next_answer % len(decoding)
            self._next_answer = first + room
            decoding = [*decoding[first:], *decoding[:first]][:room]
        spare = room - len(decoding)
        num_rows = 0
        for place, sequence in enumerate(decoding):
            count = min(sequence.num_pending, 1 + spare // (len(decoding) - place))
            spare -= count - 1
            num_rows += self._plan(sequence, count, chunks)
        return num_rows

    def _plan_prompts(
        self, prefilling: list[Sequence], rows: PromptRows, room: int, chunks: dict[int, Chunk]
    ) -> int:
        """Plan chunks of prompts, in this order; their rows. ``room``: rows that the step still has."""
        room = most = min(room, rows.most)
        budget = min(room, rows.wanted)
        for sequence in prefilling:
            if budget <= 0:
                break
            if sequence.sequence_id is not None or self._memory.attach(sequence, self._leaders(), chunks):
                # A short rest is not worth another step, which a newcomer would have to wait for.
                count = sequence.num_pending if sequence.num_pending <= room else budget
                planned = self._plan(sequence, count, chunks)
                budget -= planned
                room -= planned
        return most - room

    def _leaders(self) -> Iterator[Sequence]:
        """Those that are computing tokens which others may wait for."""
        return (one for one in self._slots.running if one.sequence_id is not None and not one.is_decoding)

    def _plan(self, sequence: Sequence, count: int, chunks: dict[int, Chunk]) -> int:
        """Plan the next ``count`` tokens, or as many as find cells; how many those are."""
        if sequence.state is not SequenceState.RUNNING:
            return 0  # it was preempted for another's sake
        count = self._memory.make_room(sequence, count, chunks)
        if count:
            chunks[sequence.key] = _chunk(sequence, count)
            self._kv.grow(sequence, count)
        return count

    def _relieve(self, plan: StepPlan) -> list[Advance]:
        """llama.cpp had no room: undo the plan, then give something up, try fewer rows, or end the one that
        is left.
        """
        for chunk in plan.chunks:
            self._operations += self._kv.shrink(chunk.sequence, chunk.sequence.num_computed)
        sequence = plan.chunks[0].sequence
        if self._memory.relieve(sequence):
            return []
        if plan.num_rows > 1 or self._max_rows is None:
            self._max_rows = max(plan.num_rows // 2, 1)
            return []
        self._max_rows = None
        self.finish(sequence, FinishReason.LENGTH)
        return [Advance(sequence, (), FinishReason.LENGTH)]

    def _charge(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        num_new = max(sequence.num_computed - max(sequence.num_charged, chunk.start), 0)
        if num_new:
            sequence.num_charged = sequence.num_computed
            work = PREFILL_WORK * num_new
            if chunk.is_decode:  # tokens that were forced ride along
                work += self._budget.decode_work - PREFILL_WORK
            self._accounts.charge(sequence.share.tenant_id, work)

    def _take_tokens(self, sequence: Sequence, tokens: tuple[int, ...], *, is_complete: bool) -> Advance:
        """The sampled token and those forced, as far as none of them ends the sequence."""
        reason = None
        num_shown = 0
        for token in tokens:
            sequence.append(token)
            if token in sequence.end_tokens:
                reason = FinishReason.STOP
                break
            num_shown += 1
            if sequence.num_new >= sequence.max_new_tokens:
                is_whole = is_complete and num_shown == len(tokens)
                reason = FinishReason.STOP if is_whole else FinishReason.LENGTH
                break
        else:
            reason = FinishReason.STOP if is_complete else None
        if reason is not None:
            self.finish(sequence, reason)
        return Advance(sequence, tokens[:num_shown], reason)


def _are_single_rows(chunks: tuple[Chunk, ...]) -> bool:
    """Whether each is one row, for which a token is chosen: an answer's, or the last one of a prompt."""
    return all(chunk.count == 1 and chunk.wants_token for chunk in chunks)


def _chunk(sequence: Sequence, count: int) -> Chunk:
    return Chunk(
        sequence=sequence,
        start=sequence.num_computed,
        count=count,
        wants_token=sequence.num_pending == count,
        is_decode=sequence.is_decoding,
    )
