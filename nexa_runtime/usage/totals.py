"""Sums of what was used, by tenant and model, since a moment.

Owns the counts in memory and what becomes of them when they are too many. A restart loses them: for the long
run there is the database. A ``Sink``; ``GET /admin/usage`` asks.

Deliberate: names come from clients, so there is a bound to how many are told apart. What is beyond it is
counted under ``None``, no name of anybody's. Counts are kept by the minute in which a request was admitted;
when there are too many of them, the oldest minute keeps its sums only for who asks since the start.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from nexa_runtime.usage.record import UsageRecord

MAX_TENANTS = 1000
MAX_MODELS = 32
"""Models of one tenant that are told apart."""
MAX_COUNTS = 20_000
"""Of all minutes together: summing them up holds the event loop for some milliseconds."""

_MINUTE = timedelta(minutes=1)

Key = tuple[str | None, str | None]
"""Tenant and model."""


@dataclass(slots=True)
class Counts:
    """``statuses``: requests by class, such as ``2xx``."""

    requests: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Of prompts and answers."""
        return self.prompt_tokens + self.completion_tokens

    def count(self, record: UsageRecord) -> None:
        """One more request."""
        self.requests += 1
        status = f"{record.status // 100}xx"
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.prompt_tokens += record.prompt_tokens
        self.cached_tokens += record.cached_tokens
        self.completion_tokens += record.completion_tokens

    def add(self, other: "Counts") -> None:
        """Those of ``other`` too."""
        self.requests += other.requests
        for status, number in other.statuses.items():
            self.statuses[status] = self.statuses.get(status, 0) + number
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.completion_tokens += other.completion_tokens


@dataclass(frozen=True, slots=True)
class UsageReport:
    """``since``: from when on it counts, which may be later than was asked. ``complete_since``: from when on
    any minute may be asked for; before it there is only all since ``started_at``.
    """

    started_at: datetime
    complete_since: datetime
    since: datetime
    until: datetime
    counts: Mapping[Key, Counts]


class UsageTotals:
    """The sink. ``now`` gives the time in UTC."""

    name = "totals"
    backlog = 0
    dropped = 0

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._started_at = self._complete_since = now()
        self._models: dict[str | None, set[str]] = {}
        """Those that are told apart, by tenant."""
        self._minutes: dict[datetime, dict[Key, Counts]] = {}
        self._merged: dict[Key, Counts] = {}
        """Of minutes that are no longer told apart."""
        self._num_counts = 0

    def start(self) -> None:
        """Nothing to do: the counts begin with the object."""

    async def close(self) -> None:
        """Nothing to do: the counts end with the process."""

    def put(self, record: UsageRecord) -> None:
        """Count it."""
        key = self._key(record)
        minute = _minute(record.created_at)
        if minute + _MINUTE <= self._complete_since:
            self._merged.setdefault(key, Counts()).count(record)
            return
        counts = self._minutes.setdefault(minute, {})
        if key not in counts:
            counts[key] = Counts()
            self._num_counts += 1
        counts[key].count(record)
        while self._num_counts > MAX_COUNTS and len(self._minutes) > 1:
            self._merge(min(self._minutes))

    def report(self, *, tenant_id: str | None = None, since: datetime | None = None) -> UsageReport:
        """What ``tenant_id`` (None: everyone) has used since the minute of ``since`` (None: the start)."""
        sums: dict[Key, Counts] = {}
        is_all = since is None or since <= self._started_at
        first = self._started_at if since is None or is_all else max(_minute(since), self._complete_since)
        kept = [counts for minute, counts in self._minutes.items() if is_all or minute >= _minute(first)]
        for counts in [*kept, self._merged] if is_all else kept:
            for key, one in counts.items():
                if tenant_id is None or key[0] == tenant_id:
                    sums.setdefault(key, Counts()).add(one)
        return UsageReport(self._started_at, self._complete_since, first, self._now(), sums)

    def _key(self, record: UsageRecord) -> Key:
        tenant_id: str | None = record.tenant_id
        if tenant_id not in self._models and len(self._models) >= MAX_TENANTS:
            tenant_id = None
        models = self._models.setdefault(tenant_id, set())
        if record.model not in models:
            if len(models) >= MAX_MODELS:
                return tenant_id, None
            models.add(record.model)
        return tenant_id, record.model

    def _merge(self, minute: datetime) -> None:
        counts = self._minutes.pop(minute)
        self._num_counts -= len(counts)
        for key, one in counts.items():
            self._merged.setdefault(key, Counts()).add(one)
        self._complete_since = max(self._complete_since, minute + _MINUTE)


def _minute(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(second=0, microsecond=0)
