"""May this request enter?

Owns what is counted per tenant: requests open, requests and tokens within the last minute, usage since start.
It counts, the engine orders: whoever is let in waits for a slot there. Lives on the event loop, so that every
count is exact without a lock. ``serving`` asks here first, before anything costs work.

The order is cheapest first, and what one check refuses costs nothing in those after it: room in the queue,
requests a minute; then, once the prompt is known, tokens a minute.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from nexa_runtime.errors import (
    InvalidRequestError,
    OverloadedError,
    RequestRateError,
    TenantQueueFullError,
    TokenRateError,
)
from nexa_runtime.tenancy.tenant import Tenant

WINDOW_S = 60.0
_MAX_RETRY_S = 60.0
_SMOOTHING = 0.2
_MARGIN = 1.5
"""Requests are not all of one length: whoever comes back should find a place."""

Clock = Callable[[], float]


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

    def __init__(self, admission: "Admission", tenant: Tenant, count: int) -> None:
        self.tenant = tenant
        self._admission = admission
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
        self._admission.settle(self.tenant, self._count, self._spent, usage)


class _Pace:
    """How fast requests end, and who was told to come back when."""

    def __init__(self) -> None:
        self._per_request_s: float | None = None
        self._since: float | None = None
        """The last end, or when the box was idle last; None while it is."""
        self._booked_until = 0.0

    def note_start(self, now: float) -> None:
        """The box was idle, and is no more."""
        self._since = now

    def note_end(self, now: float, *, is_busy: bool) -> None:
        """A request that ran has ended."""
        if self._since is not None:
            took_s = now - self._since
            old = self._per_request_s
            self._per_request_s = took_s if old is None else old + _SMOOTHING * (took_s - old)
        self._since = now if is_busy else None

    def appointment_s(self, now: float) -> float:
        """When to come back, in seconds: those who are refused are given one time after the other, so that
        they do not all come at once.
        """
        step_s = 1.0 if self._per_request_s is None else _MARGIN * self._per_request_s
        self._booked_until = max(self._booked_until, now) + step_s
        return min(self._booked_until - now, _MAX_RETRY_S)


class Admission:
    """``max_queue``: requests of all tenants together that may wait for a slot."""

    def __init__(self, *, max_queue: int, clock: Clock = time.monotonic) -> None:
        self._max_queue = max_queue
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._num_open = 0
        self._pace = _Pace()

    @property
    def num_open(self) -> int:
        """Sequences and embedding requests let in and not settled."""
        return self._num_open

    def admit(self, tenant: Tenant, *, slots: int, count: int = 1) -> Ticket:
        """Let a request of ``count`` sequences in, on a model with ``slots``.

        Raises ``TenantQueueFullError``, ``OverloadedError``, ``RequestRateError``, and
        ``InvalidRequestError`` for a ``count`` that can never be let in.
        """
        account = self._accounts.setdefault(tenant.id, _Account())
        try:
            self._check_room(tenant, account, slots, count)
            self._check_rate(tenant, account)
        except Exception:
            account.usage.refused += 1
            raise
        if not self._num_open:
            self._pace.note_start(self._clock())
        account.num_open += count
        account.usage.requests += 1
        self._num_open += count
        return Ticket(self, tenant, count)

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

    def settle(self, tenant: Tenant, count: int, spent: _Spent | None, used: TenantUsage) -> None:
        """For ``Ticket.settle``."""
        account = self._accounts[tenant.id]
        account.num_open -= count
        self._num_open -= count
        if used.prompt_tokens:
            self._pace.note_end(self._clock(), is_busy=self._num_open > 0)
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
        """Tenants that have asked for anything."""
        return list(self._accounts)

    def _check_room(self, tenant: Tenant, account: _Account, slots: int, count: int) -> None:
        limits = tenant.limits
        places = min(slots, limits.max_concurrency or slots) + limits.max_queue
        most = min(places, slots + self._max_queue)
        if count > most:
            message = f"At most {most} answers are made at once, and this asks for {count}."
            raise InvalidRequestError(message)
        if account.num_open + count > places:
            raise TenantQueueFullError(limits.max_queue, self._pace.appointment_s(self._clock()))
        # A tenant below its equal part of the queue is let in all the same: a flood fills only its own.
        num_tenants = sum(other.num_open > 0 for other in self._accounts.values() if other is not account) + 1
        is_small = account.num_open + count <= (slots + self._max_queue) // num_tenants
        if self._num_open + count > slots + self._max_queue and not (is_small and num_tenants > 1):
            raise OverloadedError(self._max_queue, self._pace.appointment_s(self._clock()))

    def _check_rate(self, tenant: Tenant, account: _Account) -> None:
        limit = tenant.limits.requests_per_minute
        if limit is None:
            return
        now = self._clock()
        account.expire(now)
        if len(account.requests) >= limit:
            raise RequestRateError(limit, account.requests[-limit] + WINDOW_S - now)
        account.requests.append(now)
