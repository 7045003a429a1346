"""Who holds a slot: the running set, the waiting line, and whose turn it is.

Owns which sequences run and which wait, the paused ones (waiting, their KV kept) among them. Pure: it says
which change is due, ``scheduler`` asks ``memory`` whether it fits and makes it. It never looks at cells.

A free slot goes to the tenant with least virtual time. With all slots taken, a waiting tenant gets one

- at once, while it runs less than its guaranteed slots, from a *borrower*: a tenant that runs more than its
  own, and has not had less than the waiting one;
- by *rotation*, when it is more than a quantum behind the running tenant furthest ahead: as many as its
  weight says; and when it is more than two quanta behind, all of them.

So the virtual times of two tenants that both always have something waiting differ by two quanta and one
step's charge at most, whatever they hold and however long their answers are. (Memory can stand in the way: a
tenant whose next prompt does not fit beside its own running ones gets no further slot for it.)
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from nexa_runtime.engine.fair_queue import Accounts, FairQueue
from nexa_runtime.engine.sequence import Sequence, SequenceState

QUANTUM = 256.0
"""Weighted tokens that a waiting tenant may fall behind before it takes over a slot."""


@dataclass(frozen=True, slots=True)
class Change:
    """``sequence`` is to get a slot: a free one, or that of the first of ``losers``.

    ``losers``: running sequences that give way, in this order; as many of them as memory wants, and at least
    ``min_pauses``.
    """

    sequence: Sequence
    losers: tuple[Sequence, ...] = ()
    min_pauses: int = 0


class Slots:
    """``num_slots``: sequences that run at once."""

    def __init__(self, num_slots: int, accounts: Accounts) -> None:
        self.num_slots = num_slots
        self.running: list[Sequence] = []
        """In the order in which they got their slots."""
        self._accounts = accounts
        self._queue = FairQueue(accounts)

    @property
    def num_waiting(self) -> int:
        """Sequences in line, paused ones too."""
        return self._queue.num_waiting

    def waiting(self) -> Iterator[Sequence]:
        """All that wait, in no order."""
        return self._queue.waiting()

    def paused(self) -> list[Sequence]:
        """Waiting sequences that have KV."""
        return [sequence for sequence in self._queue.waiting() if sequence.sequence_id is not None]

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence in line."""
        self._queue.push(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is."""
        if sequence.state is SequenceState.WAITING:
            self._queue.take(sequence)
        else:
            self.running.remove(sequence)

    def start(self, sequence: Sequence, now: float) -> None:
        """Give a waiting sequence a slot."""
        self._queue.take(sequence)
        sequence.state = SequenceState.RUNNING
        sequence.started_at = now if sequence.started_at is None else sequence.started_at
        self.running.append(sequence)

    def stop(self, sequence: Sequence) -> None:
        """Send a running sequence back into the line, at its old place."""
        self.running.remove(sequence)
        sequence.state = SequenceState.WAITING
        self._queue.put_back(sequence)

    def due_changes(self) -> Iterator[Change]:
        """Changes that are due, the most urgent first; one of them at a time may be made. Changes nothing.

        One that does not fit memory does not hold up other tenants: its own falls behind meanwhile, until
        all who are ahead of it give way.
        """
        held = Counter(sequence.share.tenant_id for sequence in self.running)
        min_pauses = int(len(self.running) >= self.num_slots)
        for head in self._queue.heads():
            if _may_run(head, held):
                losers = self._losers(head, held)
                if losers or not min_pauses:
                    yield Change(head, losers, min_pauses)

    def _losers(self, head: Sequence, held: Counter[str]) -> tuple[Sequence, ...]:
        """Running sequences that give way to ``head``, in this order."""
        mine = head.share
        now_at = self._accounts.virtual_time(mine.tenant_id)
        # Equal times are told apart by name, so that a schedule depends on nothing else.
        ahead = sorted((self._accounts.virtual_time(name), name) for name in held if name != mine.tenant_id)
        claimed: tuple[Sequence, ...] = ()
        if held[mine.tenant_id] < mine.guaranteed_slots:
            guaranteed = {one.share.tenant_id: one.share.guaranteed_slots for one in self.running}
            borrowers = [name for at, name in ahead if at >= now_at and held[name] > guaranteed[name]]
            if borrowers:
                # No more than they have beyond their own guarantee: they would claim that back at once.
                name = borrowers[-1]
                claimed = self._running_of(name)[: held[name] - guaranteed[name]]
        if not ahead:
            return ()
        furthest_at, furthest = ahead[-1]
        gap = furthest_at - now_at
        if gap > 2 * QUANTUM:
            names = [name for at, name in reversed(ahead) if at > now_at]
            behind = [one for name in names for one in self._running_of(name) if one not in claimed]
            return (*claimed, *behind)
        if claimed:
            return claimed
        losers = self._running_of(furthest)
        has_less = held[mine.tenant_id] * losers[0].share.weight <= held[furthest] * mine.weight
        return losers if gap > QUANTUM and has_less else ()

    def _running_of(self, tenant_id: str) -> tuple[Sequence, ...]:
        mine = [sequence for sequence in self.running if sequence.share.tenant_id == tenant_id]
        return tuple(sorted(mine, key=lambda one: (one.priority, -one.arrival)))


def _may_run(sequence: Sequence, held: Counter[str]) -> bool:
    share = sequence.share
    return share.max_slots is None or held[share.tenant_id] < share.max_slots
