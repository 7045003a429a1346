"""Whether a sequence fits, and who gives way when cells run out.

Owns the order in which cells are given up: residents (``KvCache.evictable`` ranks them), then what paused
sequences hold, then one running sequence after the other, the most recent of the tenant furthest ahead. What
is taken from a sequence is computed again later, with the same answer; what residents hold goes to host
memory (``HostCache``). Pure. ``scheduler`` calls it.
"""

from collections.abc import Collection, Iterable

from nexa_runtime.engine.fair_queue import Accounts
from nexa_runtime.engine.host_cache import HostCache
from nexa_runtime.engine.kv_cache import MIN_SHARED_TOKENS, Holding, KvCache, Match, common_prefix
from nexa_runtime.engine.sequence import Chunk, KvOperation, Sequence, SequenceState
from nexa_runtime.engine.slots import Change, Slots

OUTPUT_RESERVE = 64
"""Cells kept for the answer when a sequence is let in; longer answers take what is there, or preempt."""

_COOLED_CELLS = 1024
"""As many go to host memory in one step, so that it is no long one."""


class Memory:
    """``operations``: what it does to the KV cache is appended there, for the next plan.

    ``max_warm_cells``: cells of residents alone, beyond which the least recently used ones go to host memory;
    None: they stay until their cells are needed.
    """

    def __init__(
        self,
        kv_cache: KvCache,
        slots: Slots,
        accounts: Accounts,
        operations: list[KvOperation],
        *,
        host_cache: HostCache,
        max_warm_cells: int | None,
    ) -> None:
        self._kv = kv_cache
        self._host = host_cache
        self._keeps = host_cache.is_on and kv_cache.is_shared
        """Whether what loses its cells goes to host memory."""
        self._max_warm_cells = max_warm_cells if self._keeps else None
        self._slots = slots
        self._accounts = accounts
        self._operations = operations
        self.num_preemptions = 0
        self.num_evictions = 0

    def pauses_for(self, change: Change) -> tuple[Sequence, ...] | None:
        """Which losers must be paused so that a change fits; None: it does not fit."""
        for count in range(change.min_pauses, len(change.losers) + 1):
            if self._fits(change.sequence, change.losers[:count]):
                return change.losers[:count]
        return None

    def make_id(self, sequence: Sequence) -> Match:
        """Free an id for ``sequence`` if it needs one; the prefix that it can use."""
        match = self._kv.match(sequence)
        if self._kv.has_free_id or self._kv.takes_over(match):
            return match
        others = self._kv.evictable(sequence.share, breaks_floors=True)
        victim = next((one for one in others if one is not match.holding), None)
        if victim is not None:
            self._evict(victim)
            return match
        if others:
            return match  # the matched one is cut back and taken over
        self.preempt(self._furthest_ahead(self._slots.paused()))
        return self._kv.match(sequence)

    def make_room(self, sequence: Sequence, count: int, planned: dict[int, Chunk]) -> int:
        """Free cells for ``count`` tokens, or for as many as there are; 0 when ``sequence`` itself gave way.

        ``planned``: what this step computes already, by key; whoever gives way is taken out of it.
        """
        while self._kv.num_free_cells < count and self._give_up(sequence):
            pass
        while not self._kv.num_free_cells:
            holders = [one for one in self._slots.running if one.sequence_id is not None]
            victim = self._furthest_ahead(holders)
            if victim is sequence and len(holders) == 1:
                # It is alone and fits the pool: what others keep at their floor gives way.
                self._evict(self._kv.evictable(sequence.share, breaks_floors=True)[0])
                continue
            planned.pop(victim.key, None)
            self.preempt(victim)
            if victim is sequence:
                return 0
        return min(count, self._kv.num_free_cells)

    def relieve(self, sequence: Sequence) -> bool:
        """llama.cpp found no room although the books say so: give one thing up; False if nothing is left."""
        if self._give_up(sequence):
            return True
        holders = [one for one in self._slots.running if one.sequence_id is not None]
        if len(holders) > 1:
            self.preempt(self._furthest_ahead(holders))
            return True
        at_floor = self._kv.evictable(sequence.share, breaks_floors=True)
        if at_floor:
            self._evict(at_floor[0])
        return bool(at_floor)

    def preempt(self, sequence: Sequence, *, is_sound: bool = True) -> None:
        """Take a living sequence's KV; it is computed again from its tokens, and waits until then.

        ``is_sound``: host memory may keep it.
        """
        self._give_back(self._kv.holding_of(sequence), is_sound=is_sound)
        if sequence.num_charged == sequence.num_cached:
            sequence.num_charged = sequence.num_cached = 0  # nothing was computed: the next match counts
        if sequence.state is SequenceState.RUNNING:
            self._slots.stop(sequence)
        self.num_preemptions += 1

    def num_there(self, sequence: Sequence) -> int:
        """Tokens of a sequence that need not be computed: they are, or they are cached."""
        if sequence.sequence_id is not None:
            return sequence.num_computed
        return max(self._kv.match(sequence).num_tokens, self._host.match(sequence).num_tokens)

    def attach(self, sequence: Sequence, leaders: Iterable[Sequence], planned: dict[int, Chunk]) -> bool:
        """Give a sequence its id and the longest prefix that is there; False while one of ``leaders``
        computes more of it. ``planned`` as for ``make_room``.
        """
        if self.leader_tokens(sequence, leaders) >= self.num_there(sequence) + MIN_SHARED_TOKENS:
            return False
        self._operations += self._kv.attach(sequence, self.make_id(sequence))
        if self._host.match(sequence).num_tokens >= sequence.num_computed + MIN_SHARED_TOKENS:
            self._reload(sequence, planned)
        if not sequence.num_charged:
            sequence.num_cached = sequence.num_charged = sequence.num_computed
        return True

    def cool(self) -> bool:
        """Move what has lain idle longest to host memory, some of it in each step: attention passes over
        every cell that is held, once for each sequence that runs. False when there is nothing to move.
        """
        if self._max_warm_cells is None:
            return False
        num_excess = self._kv.num_resident_cells() - self._max_warm_cells
        newcomers = (one for one in self._slots.running if one.sequence_id is None)
        wanted = {holding.sequence_id for one in newcomers if (holding := self._kv.match(one).holding)}
        num_moved = 0
        while num_moved < min(num_excess, _COOLED_CELLS):
            resident = self._longest_idle(wanted)
            if resident is None:
                break
            num_moved += self._kv.num_reclaimable([resident])
            self._give_back(resident, is_sound=True)
        return num_moved > 0

    def leader_tokens(self, sequence: Sequence, leaders: Iterable[Sequence]) -> int:
        """How many of the next tokens of ``sequence`` the ``leaders`` know too: they compute them first."""
        if not self._kv.is_shared:
            return 0
        longest = 0
        for leader in leaders:
            end = min(sequence.num_known, leader.num_known) - 1
            if leader.cache_namespace == sequence.cache_namespace and end > longest:
                common = common_prefix(sequence.tokens(0, end), leader.tokens(0, end), above=longest)
                longest = max(longest, common)
        return longest

    def _fits(self, sequence: Sequence, pausing: Collection[Sequence]) -> bool:
        """Whether what it must compute and a first part of its answer fit beside what is promised already."""
        running = [one for one in self._slots.running if one not in pausing]
        if not running:
            return True
        match = self._match(sequence)
        paused = {one.sequence_id for one in [*self._slots.paused(), *pausing] if one is not sequence}
        giving = self._kv.evictable(sequence.share)
        giving += [one for one in self._kv.holdings() if one.sequence_id in paused]
        giving = [one for one in giving if one is not match.holding]
        available = self._kv.num_free_cells + self._kv.num_reclaimable(giving)
        promised = sum(self._cells_to_come(one, running[:place]) for place, one in enumerate(running))
        return self._cells_to_come(sequence, running) <= available - promised

    def _cells_to_come(self, sequence: Sequence, ahead: Iterable[Sequence]) -> int:
        """Cells that a sequence is promised: what it must compute, and a bounded part of what it may still
        say. What those ``ahead`` of it compute too is shared.
        """
        shared = 0
        if sequence.sequence_id is None:
            shared = max(self._match(sequence).num_tokens, self.leader_tokens(sequence, ahead))
        answer = min(OUTPUT_RESERVE, sequence.max_new_tokens - sequence.num_new)
        return sequence.num_pending - shared + answer - 1

    def _match(self, sequence: Sequence) -> Match:
        return self._kv.match(sequence) if sequence.sequence_id is None else Match(None, 0)

    def _longest_idle(self, wanted: set[int]) -> Holding | None:
        """The least recently used resident that has cells of its own, whose id is not one of ``wanted``, and
        that breaks no promise if it goes: host memory has room to spare for it, or its tenant has its floor
        without it.
        """
        above: set[int] | None = None
        for one in sorted(self._kv.residents(), key=lambda one: one.last_used):
            if one.sequence_id in wanted or not self._kv.num_reclaimable([one]):
                continue
            if self._host.has_room(one.num_cells):
                return one
            if above is None:
                above = {holding.sequence_id for holding in self._kv.above_floors()}
            if one.sequence_id in above:
                return one
        return None

    def _give_up(self, requester: Sequence) -> bool:
        """Evict one resident or take one paused sequence's KV; False if there is neither."""
        # Ranked anew each time: what has gone counts towards its tenant's share and floor no more.
        residents = self._kv.evictable(requester.share)
        if residents:
            self._evict(residents[0])
            return True
        paused = [one for one in self._slots.paused() if one is not requester]
        if paused:
            self.preempt(self._furthest_ahead(paused))
        return bool(paused)

    def _furthest_ahead(self, sequences: Iterable[Sequence]) -> Sequence:
        """The most recent one of the tenant with most virtual time."""
        return max(sequences, key=lambda one: (self._accounts.virtual_time(one.share.tenant_id), one.arrival))

    def _reload(self, sequence: Sequence, planned: dict[int, Chunk]) -> None:
        """Take what host memory has more of a sequence than its id has back into cells."""
        num_kept = self._host.whole_blocks(sequence.num_computed)
        # llama.cpp takes a block back whole, even where a part of it is wanted.
        count = self.make_room(sequence, self._host.match(sequence).num_saved - num_kept, planned)
        match = self._host.match(sequence)  # to make room may have cost host memory some
        end = match.num_tokens
        if num_kept + count < match.num_saved:
            end = self._host.whole_blocks(min(num_kept + count, end))
        if not count or end < sequence.num_computed + MIN_SHARED_TOKENS:
            return
        if num_kept < sequence.num_computed:
            self._operations += self._kv.shrink(sequence, num_kept)
            sequence.num_computed = num_kept
        self._operations += self._host.reload(sequence, match, end)
        self._kv.grow(sequence, end - num_kept)
        sequence.num_computed = end

    def _evict(self, holding: Holding) -> None:
        self._give_back(holding, is_sound=True)
        self.num_evictions += 1

    def _give_back(self, holding: Holding, *, is_sound: bool) -> None:
        if is_sound and self._keeps:
            self._operations += self._host.offload(holding)
        self._operations += self._kv.drop(holding)
