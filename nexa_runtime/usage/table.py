"""The table ``ai_runtime_logs``: its columns, and what is said to it in SQL.

Owns names, types and statements, and how a record becomes a row. It knows no driver: ``postgres`` sends the
statements, ``cli`` prints those that make the table.

``id`` is the record's own, made by this server, and what makes it come once. ``request_id`` has an index and
is not unique: it may be the client's own ``x-request-id``, and whoever sends one twice (or another tenant's)
would else make records vanish.
"""

from dataclasses import dataclass
from datetime import datetime

from nexa_runtime.usage.record import UsageRecord

TABLE = "ai_runtime_logs"

COLUMNS = {
    "id": "uuid",
    "request_id": "text",
    "tenant_id": "text",
    "model": "text",
    "endpoint": "text",
    "status": "int",
    "finish_reason": "text",
    "prompt_tokens": "int",
    "cached_tokens": "int",
    "completion_tokens": "int",
    "total_tokens": "int",
    "queue_ms": "int",
    "ttft_ms": "int",
    "response_time_ms": "int",
    "created_at": "timestamptz",
}
"""Names and types, as the fields of a record."""

CREATE = (
    f"""CREATE TABLE IF NOT EXISTS {TABLE} (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id text NOT NULL,
  model text NOT NULL,
  prompt_tokens int,
  completion_tokens int,
  total_tokens int,
  response_time_ms int,
  created_at timestamptz DEFAULT now()
)""",
    f"""ALTER TABLE {TABLE}
  ADD COLUMN IF NOT EXISTS request_id text,
  ADD COLUMN IF NOT EXISTS endpoint text,
  ADD COLUMN IF NOT EXISTS status int,
  ADD COLUMN IF NOT EXISTS finish_reason text,
  ADD COLUMN IF NOT EXISTS cached_tokens int,
  ADD COLUMN IF NOT EXISTS queue_ms int,
  ADD COLUMN IF NOT EXISTS ttft_ms int""",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_request_id ON {TABLE} (request_id)",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_tenant_id_created_at ON {TABLE} (tenant_id, created_at)",
    f"CREATE INDEX IF NOT EXISTS {TABLE}_created_at ON {TABLE} (created_at)",
)
"""Makes the table, or adds to an older one what it lacks; a second time it changes nothing."""

INSERT = (
    f"INSERT INTO {TABLE} ({', '.join(COLUMNS)})"
    f" SELECT * FROM unnest({', '.join(f'%s::{kind}[]' for kind in COLUMNS.values())})"
    " ON CONFLICT (id) DO NOTHING"
)
"""Takes one list per column: any number of records in one statement, all or none."""

FIND_COLUMNS = (
    f"SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass('{TABLE}')"
    " AND attnum > 0 AND NOT attisdropped"
)

SUMMARIZE = f"""SELECT tenant_id, model, count(*), count(*) FILTER (WHERE status >= 400),
  coalesce(sum(prompt_tokens), 0)::bigint, coalesce(sum(cached_tokens), 0)::bigint,
  coalesce(sum(completion_tokens), 0)::bigint, coalesce(sum(total_tokens), 0)::bigint,
  avg(response_time_ms)::float8,
  percentile_cont(0.95) WITHIN GROUP (ORDER BY response_time_ms)::float8
FROM {TABLE}
WHERE created_at >= %(since)s AND (%(tenant_id)s::text IS NULL OR tenant_id = %(tenant_id)s)
GROUP BY tenant_id, model ORDER BY tenant_id, model"""


@dataclass(frozen=True, slots=True)
class UsageSummary:
    """What one tenant has asked of one model. ``errors``: answers with a status from 400 on, 499 too.

    Times in milliseconds; None where no record has one.
    """

    tenant_id: str
    model: str
    requests: int
    errors: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int
    mean_response_time_ms: float | None
    p95_response_time_ms: float | None


def row_of(record: UsageRecord) -> list[str | int | datetime | None]:
    """A record's values in the order of ``COLUMNS``."""
    return [_value(getattr(record, name)) for name in COLUMNS]


def _value(value: object) -> str | int | datetime | None:
    """As the table takes it: whole milliseconds, and no character that PostgreSQL's texts cannot hold."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return round(value)
    assert value is None or isinstance(value, int | datetime)
    return value
