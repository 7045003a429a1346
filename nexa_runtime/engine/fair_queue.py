"""Who is next: tenants by virtual time, within a tenant by priority, then arrival.

``Accounts`` owns what each tenant has paid, over everything that the engine does; ``FairQueue`` owns the
waiting sequences of one scheduler. Pure. Virtual time is weighted tokens, never seconds: a tenant pays ``work
/ weight`` for what was really computed, and the one that has paid least goes first, so that more requests
never buy more share. A tenant that comes back from idle starts where the active ones are (start-time fair
queueing): it neither hoards credit nor starves.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from nexa_runtime.engine.sequence import Sequence, TenantShare


@dataclass(slots=True)
class _Account:
    share: TenantShare
    virtual_time: float = 0.0
    num_active: int = 0


class Accounts:
    """What each tenant has paid. ``enter`` and ``leave`` bracket every request."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._clock = 0.0

    def enter(self, share: TenantShare) -> None:
        """A request of this tenant begins to wait or run."""
        account = self._accounts.get(share.tenant_id)
        if account is None:
            account = self._accounts[share.tenant_id] = _Account(share)
        account.share = share
        if not account.num_active:
            account.virtual_time = max(account.virtual_time, self._floor())
        account.num_active += 1

    def leave(self, tenant_id: str) -> None:
        """A request has ended: its tenant may be idle now, and is forgotten when the others caught up."""
        account = self._accounts[tenant_id]
        account.num_active -= 1
        if account.num_active:
            return
        if any(other.num_active for other in self._accounts.values()):
            self._clock = self._floor()
        else:
            self._clock = max(self._clock, *(other.virtual_time for other in self._accounts.values()))
        for name, other in list(self._accounts.items()):
            if not other.num_active and other.virtual_time <= self._clock:
                del self._accounts[name]

    def charge(self, tenant_id: str, work: float) -> None:
        """Add ``work`` (weighted tokens) to a tenant's account."""
        account = self._accounts[tenant_id]
        account.virtual_time += work / account.share.weight

    def virtual_time(self, tenant_id: str) -> float:
        """What a tenant has paid, in weighted tokens; where a newcomer would start, if it is not known."""
        account = self._accounts.get(tenant_id)
        return account.virtual_time if account else self._floor()

    def update(self, share: TenantShare) -> None:
        """From now on this holds for its tenant."""
        if share.tenant_id in self._accounts:
            self._accounts[share.tenant_id].share = share

    def virtual_times(self) -> dict[str, float]:
        """What each tenant has paid that is known."""
        return {name: account.virtual_time for name, account in self._accounts.items()}

    def num_active(self) -> dict[str, int]:
        """Requests alive of each tenant that has any."""
        return {name: account.num_active for name, account in self._accounts.items() if account.num_active}

    def _floor(self) -> float:
        times = [account.virtual_time for account in self._accounts.values() if account.num_active]
        return max(self._clock, min(times)) if times else self._clock


class FairQueue:
    """The line of waiting sequences. Every sequence passes ``push`` once; in between it may be taken and put
    back.
    """

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._waiting: dict[str, list[tuple[int, int, Sequence]]] = {}
        self._arrivals = 0

    @property
    def num_waiting(self) -> int:
        """Sequences in line."""
        return sum(map(len, self._waiting.values()))

    def waiting(self) -> Iterator[Sequence]:
        """All that wait, in no order."""
        return (entry[2] for line in self._waiting.values() for entry in line)

    def push(self, sequence: Sequence) -> None:
        """Put a new sequence in line."""
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self.put_back(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Put a sequence that was taken into the line again, at its old place."""
        line = self._waiting.setdefault(sequence.share.tenant_id, [])
        heapq.heappush(line, (-sequence.priority, sequence.arrival, sequence))

    def heads(self) -> list[Sequence]:
        """The first in line of each tenant, the tenant with least virtual time first. Changes nothing."""
        lines = sorted(
            self._waiting.items(), key=lambda item: (self._accounts.virtual_time(item[0]), item[1][0][1])
        )
        return [line[0][2] for _, line in lines]

    def take(self, sequence: Sequence) -> None:
        """Remove a sequence from the line."""
        tenant_id = sequence.share.tenant_id
        line = self._waiting[tenant_id]
        if line[0][2] is sequence:
            heapq.heappop(line)
        else:
            line.remove((-sequence.priority, sequence.arrival, sequence))
            heapq.heapify(line)
        if not line:
            del self._waiting[tenant_id]
