"""Usage records for tests."""

import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from nexa_runtime.usage import UsageRecord

_RECORD = UsageRecord(
    id="",
    request_id="req-1",
    tenant_id="demo",
    model="demo",
    endpoint="/v1/chat/completions",
    status=200,
    finish_reason="stop",
    prompt_tokens=20,
    cached_tokens=5,
    completion_tokens=10,
    queue_ms=0.4,
    ttft_ms=12.6,
    response_time_ms=100.0,
    created_at=datetime(2026, 1, 31, 8, tzinfo=UTC),
)

NOON = datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)


def a_record(**changes: object) -> UsageRecord:
    """One with an id of its own."""
    return replace(_RECORD, **{"id": str(uuid.uuid4()), **changes})  # type: ignore[arg-type]


def some_records(number: int) -> list[UsageRecord]:
    """So many, each with a request id that says which."""
    return [a_record(request_id=f"req-{at}") for at in range(number)]


def record(*, body: Mapping[str, object] | None = None, **changes: object) -> UsageRecord:
    """A short chat of half a minute past noon, with what the client sent."""
    usual = {"tenant_id": "acme", "prompt_tokens": 7, "cached_tokens": 2, "completion_tokens": 3}
    made = a_record(**{**usual, "created_at": NOON, **changes})
    return made if body is None else made.with_body(body)
