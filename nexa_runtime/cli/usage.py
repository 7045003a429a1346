"""``nexa-runtime usage``: the table of usage in PostgreSQL or Supabase (``NEXA_USAGE_DSN``).

Makes it and sums it up; asks the database itself, no server. ``main`` calls it.
"""

from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from nexa_runtime.cli.output import Output, table
from nexa_runtime.config import Settings
from nexa_runtime.errors import ConfigError, InvalidTenantIdError, UsageError
from nexa_runtime.tenancy.tenant import check_tenant_id
from nexa_runtime.usage.database import open_table
from nexa_runtime.usage.since import parse_since
from nexa_runtime.usage.table import CREATE, TABLE, UsageSummary

if TYPE_CHECKING:
    from nexa_runtime.usage.postgres import UsageTable

_HEADERS = (
    "TENANT", "MODEL", "REQUESTS", "ERRORS", "PROMPT", "CACHED", "COMPLETION", "TOTAL", "MEAN MS", "P95 MS",
)  # fmt: skip


def init(settings: Settings, output: Output, *, is_printed: bool) -> None:
    """Make the table, or bring an older one up to date; or print the SQL that does."""
    if is_printed:
        sql = "".join(f"{statement};\n" for statement in CREATE)
        output.result({"sql": sql}, sql.rstrip())
        return
    with closing(_table(settings)) as usage_table:
        usage_table.create()
    output.result({"table": TABLE}, f"The table {TABLE} is there.")


def summarize(settings: Settings, output: Output, *, tenant_id: str | None, since: str) -> None:
    """What each tenant has asked of each model."""
    moment = _moment(since)
    if tenant_id is not None:
        _check_tenant(tenant_id)
    with closing(_table(settings)) as usage_table:
        found = usage_table.summarize(moment, tenant_id)
    document = {"since": moment.isoformat(), "usage": [asdict(one) for one in found]}
    output.result(document, table(_HEADERS, [_row(one) for one in found], right=range(2, len(_HEADERS))))


def _check_tenant(tenant_id: str) -> None:
    try:
        check_tenant_id(tenant_id)
    except InvalidTenantIdError as error:
        raise UsageError(f"--tenant: {error}") from None


def _moment(text: str) -> datetime:
    try:
        return parse_since(text, datetime.now(UTC))
    except ValueError:
        raise UsageError(
            f"--since is {text[:100]!r}, but must be a time like 2026-01-31T08:00, or a duration like 24h."
        ) from None


def _table(settings: Settings) -> "UsageTable":
    opened = open_table(settings.usage_database)
    if opened is None:
        raise ConfigError("NEXA_USAGE_DSN is not set: it says where the usage table is.")
    return opened


def _row(one: UsageSummary) -> list[str]:
    tokens = (one.prompt_tokens, one.cached_tokens, one.completion_tokens, one.total_tokens)
    times = (one.mean_response_time_ms, one.p95_response_time_ms)
    return [
        one.tenant_id,
        one.model,
        *map(str, (one.requests, one.errors, *tokens)),
        *("-" if ms is None else f"{ms:.0f}" for ms in times),
    ]
