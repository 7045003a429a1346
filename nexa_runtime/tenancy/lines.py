"""The lines that requests wait in: how long they may become, and when who is refused may come back.

Owns the bound of a line and the pace at which it moves. It never says who is next: the engine does.
``admission`` has one line of sequences, which need slots, and one of requests that need none.

A burst may fill a line. Once somebody was refused for that, the line is *overrun*: until nobody waits any
more, only as many may wait as there are slots, so that whoever is let in waits as long as one answer takes.
A standing excess has to be refused sooner or later; in a long line it only waits before.
"""

from collections.abc import Callable

_MAX_RETRY_S = 60.0
_SMOOTHING = 0.2
_MARGIN = 1.5
"""Requests are not all of one length: whoever comes back should find a place."""

Clock = Callable[[], float]


class Line:
    """What is open of one kind."""

    def __init__(self, clock: Clock) -> None:
        self.num_open = 0
        self._clock = clock
        self._by_tenant: dict[str, int] = {}
        """None has zero."""
        self._pace = _Pace()
        self._is_overrun = False

    def has_place(self, tenant_id: str, count: int, slots: int, max_queue: int) -> bool:
        """Whether ``count`` more may enter, with ``slots`` that answer and at most ``max_queue`` that wait.

        A tenant that has less than an equal part of all places may always: a flood fills only its own. What
        is larger than all places together enters where a slot is free, and waits for its own.
        """
        if self.num_open <= slots:
            self._is_overrun = False
        places = slots + (min(max_queue, slots) if self._is_overrun else max_queue)
        if self.num_open + count <= places or (count > places and self.num_open < slots):
            return True
        num_tenants = len(self._by_tenant.keys() | {tenant_id})
        if self._by_tenant.get(tenant_id, 0) + count <= places // num_tenants:
            return True
        self._is_overrun = True
        return False

    def enter(self, tenant_id: str, count: int) -> None:
        """So many of a tenant's are let in."""
        if not self.num_open:
            self._pace.note_start(self._clock())
        self.num_open += count
        self._by_tenant[tenant_id] = self._by_tenant.get(tenant_id, 0) + count

    def leave(self, tenant_id: str, count: int, *, has_run: bool) -> None:
        """They have ended. ``has_run``: they tell how fast the line moves."""
        self.num_open -= count
        self._by_tenant[tenant_id] -= count
        if not self._by_tenant[tenant_id]:
            del self._by_tenant[tenant_id]
        if has_run:
            self._pace.note_end(self._clock(), is_busy=self.num_open > 0)

    def appointment_s(self) -> float:
        """When one who is refused may come back, in seconds."""
        return self._pace.appointment_s(self._clock())


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
        self._booked_until = min(max(self._booked_until, now) + step_s, now + _MAX_RETRY_S)
        return self._booked_until - now
