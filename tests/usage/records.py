"""Records for tests that have no server."""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from nexa_runtime.usage import UsageRecord

NOON = datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)


def record(*, body: Mapping[str, object] | None = None, **fields: Any) -> UsageRecord:
    """A chat of ten tokens at half a minute past noon, but for ``fields``."""
    usual: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "request_id": "req_1",
        "tenant_id": "acme",
        "model": "demo",
        "endpoint": "/v1/chat/completions",
        "status": 200,
        "finish_reason": "stop",
        "prompt_tokens": 7,
        "cached_tokens": 2,
        "completion_tokens": 3,
        "queue_ms": 0.5,
        "ttft_ms": 4.0,
        "response_time_ms": 9.5,
        "created_at": NOON,
    }
    made = UsageRecord(**usual | fields)
    return made if body is None else made.with_body(body)
