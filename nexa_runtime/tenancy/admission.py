"""May this request enter?

Owns what is counted per tenant: requests open, requests and tokens within the last minute, usage since start.
It counts, the engine orders: whoever is let in waits for a slot there. Lives on the event loop, so that every
count is exact without a lock. ``serving`` asks here first, before anything costs work.

The order is cheapest first, and what one check refuses costs nothing in those after it: room in the queue
(``lines``), requests a minute; then, once the prompt is known, tokens a minute.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from nexa_runtime.errors import (
    InvalidRequestError,
    OverloadedError,
    RequestRateError,
    TenantQueueFullError,
    TokenRateError,
)
from nexa_runtime.tenancy.lines import Line
from nexa_runtime.tenancy.tenant import Tenant

WINDOW_S = 60.0

QUEUE_PER_SLOT = 4
"""How many may wait for each slot where nobody says: nobody waits longer than so many answers take."""
MAX_QUICK = 256
"""Requests without a slot that may wait: texts to embed, rank or count."""
MAX_ACCOUNTS = 4096
"""Tenants whose usage since the start is known. Beyond them, who was idle longest is forgotten."""

Clock = Callable[[], float]


def longest_queue(max_queue: int | None, slots: int) -> int:
    """How many may wait on a model with ``slots``, as the owner of the box says or for want of that."""
    return QUEUE_PER_SLOT * slots if max_queue is None else max_queue


@dataclass(slots=True)
class TenantUsage:
    """What a tenant has used since the start."""

    requests: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class _Spent:
    """Tokens of one request in the window. They do not leave it while the request runs."""

    at: float
    num_tokens: int
    is_settled: bool = False


class _Account:
    """One tenant's counts."""

    def __init__(self) -> None:
        self.num_open = 0
        self.requests: deque[float] = deque()
        self.tokens: deque[_Spent] = deque()
        self.num_tokens = 0
        self.usage = TenantUsage()

    @property
    def is_idle(self) -> bool:
        """Whether it bounds nothing that its tenant does next."""
        return not (self.num_open or self.requests or self.tokens)

    def expire(self, now: float) -> None:
        while self.requests and self.requests[0] <= now - WINDOW_S:
            self.requests.popleft()
        if any(spent.is_settled and spent.at <= now - WINDOW_S for spent in self.tokens):
            self.tokens = deque(
                spent for spent in self.tokens if not spent.is_settled or spent.at > now - WINDOW_S
            )
            self.num_tokens = sum(spent.num_tokens for spent in self.tokens)

    def tokens_free_in(self, num_tokens: int, limit: int, now: float) -> float:
        """Seconds until ``num_tokens`` fit; a minute where that depends on what still runs."""
        needed = self.num_tokens + num_tokens - limit
        for spent in self.tokens:
            if spent.is_settled:
                needed -= spent.num_tokens
                if needed <= 0:
                    return spent.at + WINDOW_S - now
        return WINDOW_S


@dataclass(frozen=True, slots=True)
class RateState:
    """One window: how many in all, how many are left, and in how many seconds all are."""

    limit: int
    remaining: int
    reset_s: float


class Ticket:
    """A tenant's right to one request in flight. ``settle`` it once, whatever happens; again does nothing."""

    def __init__(self, admission: "Admission", tenant: Tenant, line: Line, count: int) -> None:
        self.tenant = tenant
        self._admission = admission
        self._line = line
        self._count = count
        self._spent: _Spent | None = None
        self._is_settled = False

    def reserve(self, num_tokens: int) -> None:
        """Set aside the most that the request can use. Raises ``TokenRateError``."""
        self._spent = self._admission.reserve(self.tenant, num_tokens)

    def settle(self, *, prompt_tokens: int = 0, cached_tokens: int = 0, completion_tokens: int = 0) -> None:
        """The request has ended and has used this much."""
        if self._is_settled:
            return
        self._is_settled = True
        usage = TenantUsage(0, 0, prompt_tokens, cached_tokens, completion_tokens)
        self._admission.settle(self.tenant, self._line, self._count, self._spent, usage)


class Admission:
    """``max_queue``: sequences of all tenants together that may wait for a slot; None: ``QUEUE_PER_SLOT`` for
    each.
    """

    def __init__(self, *, max_queue: int | None = None, clock: Clock = time.monotonic) -> None:
        self._max_queue = max_queue
        self._clock = clock
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._sequences = Line(clock)
        self._quick = Line(clock)

    @property
    def num_open(self) -> int:
        """Sequences, and requests without any, that were let in and are not settled."""
        return self._sequences.num_open + self._quick.num_open

    def admit(self, tenant: Tenant, *, slots: int, count: int = 1) -> Ticket:
        """Let a request of ``count`` sequences in, on a model with ``slots``. 0: it needs no slot.

        Raises ``TenantQueueFullError``, ``OverloadedError``, ``RequestRateError``, and
        ``InvalidRequestError`` for a ``count`` that can never be let in.
        """
        account = self._account(tenant.id)
        line, count = (self._sequences, count) if count else (self._quick, 1)
        try:
            self._check_room(tenant, account, line, slots, count)
            self._check_rate(tenant, account)
        except Exception:
            account.usage.refused += 1
            raise
        account.num_open += count
        account.usage.requests += 1
        line.enter(tenant.id, count)
        return Ticket(self, tenant, line, count)

    def reserve(self, tenant: Tenant, num_tokens: int) -> _Spent | None:
        """For ``Ticket.reserve``."""
        limit = tenant.limits.tokens_per_minute
        if limit is None:
            return None
        account = self._accounts[tenant.id]
        now = self._clock()
        account.expire(now)
        num_tokens = min(num_tokens, limit)
        if account.num_tokens + num_tokens > limit:
            account.usage.refused += 1
            wait_s = account.tokens_free_in(num_tokens, limit, now)
            raise TokenRateError(limit, num_tokens, max(limit - account.num_tokens, 0), wait_s)
        spent = _Spent(now, num_tokens)
        account.tokens.append(spent)
        account.num_tokens += num_tokens
        return spent

    def settle(self, tenant: Tenant, line: Line, count: int, spent: _Spent | None, used: TenantUsage) -> None:
        """For ``Ticket.settle``."""
        account = self._accounts[tenant.id]
        account.num_open -= count
        line.leave(tenant.id, count, has_run=used.prompt_tokens > 0)
        usage = account.usage
        usage.prompt_tokens += used.prompt_tokens
        usage.cached_tokens += used.cached_tokens
        usage.completion_tokens += used.completion_tokens
        if spent is not None:
            num_tokens = used.prompt_tokens + used.completion_tokens
            account.num_tokens += num_tokens - spent.num_tokens
            spent.num_tokens, spent.is_settled = num_tokens, True

    def rates(self, tenant: Tenant) -> dict[str, RateState]:
        """``requests`` and ``tokens`` as far as they are limited."""
        account = self._accounts.get(tenant.id) or _Account()
        now = self._clock()
        account.expire(now)
        rates = {}
        if (limit := tenant.limits.requests_per_minute) is not None:
            last = account.requests[-1] if account.requests else now - WINDOW_S
            reset_s = max(last + WINDOW_S - now, 0.0)
            rates["requests"] = RateState(limit, max(limit - len(account.requests), 0), reset_s)
        if (limit := tenant.limits.tokens_per_minute) is not None:
            ends = [spent.at if spent.is_settled else now for spent in account.tokens]
            reset_s = max(ends, default=now - WINDOW_S) + WINDOW_S - now
            rates["tokens"] = RateState(limit, max(limit - account.num_tokens, 0), reset_s)
        return rates

    def usage(self, tenant_id: str) -> TenantUsage:
        """Usage since start."""
        account = self._accounts.get(tenant_id)
        return TenantUsage() if account is None else account.usage

    def open_ids(self) -> list[str]:
        """Tenants that have a request open."""
        return [name for name, account in self._accounts.items() if account.num_open]

    def tenant_ids(self) -> list[str]:
        """Tenants that have asked for anything, as far as that is known."""
        return list(self._accounts)

    def _account(self, tenant_id: str) -> _Account:
        """A tenant's counts. Who named the most tenants would else hold the most memory."""
        account = self._accounts.get(tenant_id)
        if account is None:
            if len(self._accounts) >= MAX_ACCOUNTS:
                self._forget_one()
            account = self._accounts[tenant_id] = _Account()
        self._accounts.move_to_end(tenant_id)
        return account

    def _forget_one(self) -> None:
        """Forget the first account that bounds nothing; all of its tenant's usage goes with it."""
        now = self._clock()
        for name, account in self._accounts.items():
            account.expire(now)
            if account.is_idle:
                del self._accounts[name]
                return

    def _check_room(self, tenant: Tenant, account: _Account, line: Line, slots: int, count: int) -> None:
        limits = tenant.limits
        places = min(slots, limits.max_concurrency or slots) + limits.max_queue
        most = places if self._max_queue is None else min(places, slots + self._max_queue)
        if count > most:
            message = f"At most {most} answers are made at once, and this asks for {count}."
            raise InvalidRequestError(message)
        if account.num_open + count > places:
            raise TenantQueueFullError(limits.max_queue, line.appointment_s())
        max_waiting = MAX_QUICK if line is self._quick else longest_queue(self._max_queue, slots)
        if not line.has_place(tenant.id, count, slots, max_waiting):
            raise OverloadedError(max(line.num_open - slots, 0), line.appointment_s())

    def _check_rate(self, tenant: Tenant, account: _Account) -> None:
        limit = tenant.limits.requests_per_minute
        if limit is None:
            return
        now = self._clock()
        account.expire(now)
        if len(account.requests) >= limit:
            raise RequestRateError(limit, account.requests[-limit] + WINDOW_S - now)
        account.requests.append(now)
