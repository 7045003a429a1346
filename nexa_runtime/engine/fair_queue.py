"""Who is next: tenants by virtual time, within a tenant by priority, then arrival.

Owns the waiting sequences and each tenant's account of token work. Pure. Virtual time is weighted tokens,
never seconds: a tenant pays ``work / weight`` for what was really computed, and the one that has paid least
goes first, so that more requests never buy more share. A tenant that comes back from idle starts where the
active ones are (start-time fair queueing): it neither hoards credit nor starves. The scheduler calls it.
"""

import heapq
from dataclasses import dataclass, field

from nexa_runtime.engine.sequence import Sequence, TenantShare


@dataclass(slots=True)
class _Tenant:
    share: TenantShare
    virtual_time: float
    num_active: int = 0
    waiting: list[tuple[int, int, Sequence]] = field(default_factory=list)


class FairQueue:
    """Every sequence passes ``push`` once and ``finish`` once; in between it may be taken from the line."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._clock = 0.0
        self._arrivals = 0
        self._num_waiting = 0

    @property
    def num_waiting(self) -> int:
        """Sequences in line."""
        return self._num_waiting

    def push(self, sequence: Sequence) -> None:
        """Put a new sequence in line."""
        tenant = self._tenants.get(sequence.share.tenant_id)
        if tenant is None:
            tenant = self._tenants[sequence.share.tenant_id] = _Tenant(sequence.share, 0.0)
        tenant.share = sequence.share
        if not tenant.num_active:
            tenant.virtual_time = max(tenant.virtual_time, self._active_floor())
        tenant.num_active += 1
        self._arrivals += 1
        sequence.arrival = self._arrivals
        heapq.heappush(tenant.waiting, (-sequence.priority, sequence.arrival, sequence))
        self._num_waiting += 1

    def heads(self) -> list[Sequence]:
        """The first in line of each tenant, the tenant with least virtual time first. Changes nothing."""
        backlogged = [tenant for tenant in self._tenants.values() if tenant.waiting]
        backlogged.sort(key=lambda tenant: (tenant.virtual_time, tenant.waiting[0][1]))
        return [tenant.waiting[0][2] for tenant in backlogged]

    def take(self, sequence: Sequence) -> None:
        """Remove a sequence from the line; it is still active until ``finish``."""
        waiting = self._tenants[sequence.share.tenant_id].waiting
        if waiting[0][2] is sequence:
            heapq.heappop(waiting)
        else:
            waiting.remove((-sequence.priority, sequence.arrival, sequence))
            heapq.heapify(waiting)
        self._num_waiting -= 1

    def put_back(self, sequence: Sequence) -> None:
        """Put a sequence that was taken into the line again, at its old place."""
        waiting = self._tenants[sequence.share.tenant_id].waiting
        heapq.heappush(waiting, (-sequence.priority, sequence.arrival, sequence))
        self._num_waiting += 1

    def finish(self, sequence: Sequence) -> None:
        """A sequence has ended: its tenant may be idle now, and is forgotten when the others caught up."""
        tenant = self._tenants[sequence.share.tenant_id]
        tenant.num_active -= 1
        if tenant.num_active:
            return
        if any(other.num_active for other in self._tenants.values()):
            self._clock = max(self._clock, self._active_floor())
        else:
            self._clock = max(self._clock, *(other.virtual_time for other in self._tenants.values()))
        for tenant_id in [
            tenant_id
            for tenant_id, other in self._tenants.items()
            if not other.num_active and other.virtual_time <= self._clock
        ]:
            del self._tenants[tenant_id]

    def charge(self, tenant_id: str, work: float) -> None:
        """Add ``work`` (weighted tokens) to a tenant's account."""
        tenant = self._tenants[tenant_id]
        tenant.virtual_time += work / tenant.share.weight

    def weights(self) -> dict[str, float]:
        """Weight of each tenant with sequences alive."""
        return {name: tenant.share.weight for name, tenant in self._tenants.items() if tenant.num_active}

    def virtual_time(self, tenant_id: str) -> float:
        """What a tenant has paid, in weighted tokens; where a newcomer would start, if it is not known."""
        tenant = self._tenants.get(tenant_id)
        return tenant.virtual_time if tenant else self._active_floor()

    def check_integrity(self, active: dict[str, int]) -> None:
        """Assert that the books agree with ``active``: sequences alive per tenant, waiting or running."""
        counts = {tenant_id: tenant.num_active for tenant_id, tenant in self._tenants.items()}
        assert {tenant_id: count for tenant_id, count in counts.items() if count} == active
        assert self._num_waiting == sum(len(tenant.waiting) for tenant in self._tenants.values())

    def _active_floor(self) -> float:
        times = [tenant.virtual_time for tenant in self._tenants.values() if tenant.num_active]
        return max(self._clock, min(times)) if times else self._clock
