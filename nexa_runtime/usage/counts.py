"""What all requests come to: the counts behind the metrics of requests.

Owns that each request is counted once: one that was admitted by its record, as for every other sink, and any
other one when it has been answered. Lives on the event loop. ``server/metrics`` makes and reads it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from nexa_runtime.telemetry.metrics import catalogue
from nexa_runtime.telemetry.metrics.histogram import Histogram
from nexa_runtime.telemetry.metrics.labels import OTHER, TenantLabels
from nexa_runtime.telemetry.metrics.reading import Reading
from nexa_runtime.usage.record import UsageRecord


@dataclass(slots=True)
class _Use:
    """What a tenant has had of a model."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue: Histogram = field(default_factory=Histogram)
    first_token: Histogram = field(default_factory=Histogram)
    request: Histogram = field(default_factory=Histogram)


class RequestCounts:
    """A sink that keeps sums. ``is_model``: whether an id is one of a model, and not whatever a client has
    named. Paths are those of routes, for nothing else is admitted.
    """

    name = "metrics"
    backlog = 0
    dropped = 0

    def __init__(self, is_model: Callable[[str], bool]) -> None:
        self.tenants = TenantLabels()
        self._is_model = is_model
        self._requests: Counter[tuple[str, str, str, int]] = Counter()
        self._answers: Counter[tuple[str, str, str]] = Counter()
        self._errors: Counter[tuple[str, str]] = Counter()
        self._uses: dict[tuple[str, str], _Use] = {}

    def put(self, record: UsageRecord, /) -> None:
        """Count a request that was admitted."""
        tenant = self.tenants.label(record.tenant_id)
        model = record.model if self._is_model(record.model) else OTHER
        self._requests[tenant, model, record.endpoint, record.status] += 1
        if record.finish_reason is not None:
            self._answers[tenant, model, record.finish_reason] += 1
        use = self._uses.setdefault((tenant, model), _Use())
        use.prompt_tokens += record.prompt_tokens
        use.cached_tokens += record.cached_tokens
        use.completion_tokens += record.completion_tokens
        use.request.observe(record.response_time_ms / 1e3)
        if record.queue_ms is not None:
            use.queue.observe(record.queue_ms / 1e3)
        if record.ttft_ms is not None:
            use.first_token.observe(record.ttft_ms / 1e3)

    def put_other(self, endpoint: str, status: int, tenant_id: str | None) -> None:
        """Count a request that left no record. ``tenant_id``: None if nobody knows."""
        self._requests[self._tenant(tenant_id), "", endpoint, status] += 1

    def put_error(self, code: str, tenant_id: str | None) -> None:
        """Count an error that was an answer, of any request."""
        self._errors[self._tenant(tenant_id), code] += 1

    def start(self) -> None:
        """Nothing is to be done."""

    async def close(self) -> None:
        """Nothing is kept."""

    def read(self, reading: Reading) -> None:
        """Put everything into ``reading``."""
        for (tenant, model, endpoint, status), number in self._requests.items():
            reading.add(catalogue.REQUESTS, number, tenant, model, endpoint, str(status))
        for answer, number in self._answers.items():
            reading.add(catalogue.ANSWERS, number, *answer)
        for error, number in self._errors.items():
            reading.add(catalogue.REFUSALS, number, *error)
        for who, use in self._uses.items():
            reading.add(catalogue.PROMPT_TOKENS, use.prompt_tokens, *who)
            reading.add(catalogue.CACHED_TOKENS, use.cached_tokens, *who)
            reading.add(catalogue.COMPLETION_TOKENS, use.completion_tokens, *who)
            reading.add_histogram(catalogue.QUEUE, use.queue, *who)
            reading.add_histogram(catalogue.FIRST_TOKEN, use.first_token, *who)
            reading.add_histogram(catalogue.REQUEST_TIME, use.request, *who)

    def _tenant(self, tenant_id: str | None) -> str:
        return "" if tenant_id is None else self.tenants.label(tenant_id)
