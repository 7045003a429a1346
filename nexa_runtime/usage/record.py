"""What one request leaves behind.

Owns the record's fields and their meaning. ``serving`` makes one for each request that was admitted, once it
has ended and given back all it held; ``recorder`` hands it to the sinks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """``id``: a UUID of the record's own, by which a sink knows it again. ``request_id``: what the client got
    as ``x-request-id``; it may be the client's own, so that nothing keeps it from coming twice.

    ``model``: the id of the one that was asked; what the client named, if there was none. ``status``: the
    HTTP status, or the one that it would have had if the answer had not been on its way already; 499 for a
    client that left. ``finish_reason``: of the first choice; None where no answer was finished.

    ``cached_tokens`` are some of ``prompt_tokens``. ``queue_ms``: how long its sequences waited for a slot;
    ``ttft_ms``: from its admission until the first text; None where it did not come so far. ``created_at``:
    when it was admitted, in UTC.
    """

    id: str
    request_id: str
    tenant_id: str
    model: str
    endpoint: str
    status: int
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_ms: float | None
    ttft_ms: float | None
    response_time_ms: float
    created_at: datetime

    @property
    def total_tokens(self) -> int:
        """Of prompt and answer."""
        return self.prompt_tokens + self.completion_tokens

    def with_body(self, body: Mapping[str, object]) -> "RecordWithBody":
        """The same, and what the client sent."""
        return RecordWithBody(**{name: getattr(self, name) for name in RECORD_FIELDS}, body=body)


RECORD_FIELDS = tuple(one.name for one in fields(UsageRecord))


@dataclass(frozen=True, slots=True)
class RecordWithBody(UsageRecord):
    """Of a tenant that lets its prompts be logged. The request log alone keeps ``body``: it is no field of a
    record's, so that no other sink stores it unawares.
    """

    body: Mapping[str, object] = field(repr=False)

    def without_body(self) -> UsageRecord:
        """The record alone."""
        return UsageRecord(**{name: getattr(self, name) for name in RECORD_FIELDS})
