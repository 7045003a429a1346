"""``GET /admin/usage`` on the wire: its query, and its answer.

Owns how a moment is written and how a client may name one. ``usage/totals`` counts.
"""

from collections.abc import Mapping
from datetime import datetime

from starlette.datastructures import QueryParams

from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.server.protocol.admin_shapes import UsageCounts, UsageSums
from nexa_runtime.tenancy.tenant import TENANT_ID, TENANT_ID_RULE
from nexa_runtime.usage.since import parse_since
from nexa_runtime.usage.totals import Counts, UsageReport

QUERY: Mapping[str, str] = {
    "tenant": "Of this tenant alone; absent: of all.",
    "since": "A date or a time in ISO 8601 (UTC, unless it has a zone), or a time back from now such as"
    " `90s`, `15m`, `24h` or `7d`; absent: since the start.",
}
"""What each parameter means; there are no others."""

_MAX_ECHO = 64


def read_query(params: QueryParams, now: datetime) -> tuple[str | None, datetime | None]:
    """The tenant, and the moment in UTC. Raises ``InvalidRequestError``."""
    for name in params:
        if name not in QUERY:
            shown = name[:_MAX_ECHO]
            raise InvalidRequestError(f"{shown!a}: there are only {' and '.join(QUERY)}.", param=shown)
        if len(params.getlist(name)) > 1:
            raise InvalidRequestError(f"{name}: must be there once.", param=name)
    tenant_id, since = params.get("tenant"), params.get("since")
    if tenant_id is not None and TENANT_ID.fullmatch(tenant_id) is None:
        shown = ascii(tenant_id[:_MAX_ECHO])
        message = f"tenant: {shown} is not a tenant id, which is {TENANT_ID_RULE}."
        raise InvalidRequestError(message, param="tenant")
    return tenant_id, None if since is None else _moment(since, now)


def response(report: UsageReport) -> UsageSums:
    """The body of an answer, the largest users first."""
    total = Counts()
    for counts in report.counts.values():
        total.add(counts)
    by_size = sorted(report.counts.items(), key=lambda one: (-one[1].total_tokens, str(one[0])))
    return {
        "started_at": _written(report.started_at),
        "complete_since": _written(report.complete_since),
        "since": _written(report.since),
        "until": _written(report.until),
        "total": _counts(total),
        "usage": [
            {"tenant_id": tenant_id, "model": model, **_counts(counts)}
            for (tenant_id, model), counts in by_size
        ],
    }


def _moment(text: str, now: datetime) -> datetime:
    try:
        return parse_since(text, now)
    except ValueError:
        raise InvalidRequestError(
            f"since: {text[:_MAX_ECHO]!a} is no date or time in ISO 8601 (a + in it is written %2B), and no"
            " time back from now such as 90s, 15m, 24h or 7d.",
            param="since",
        ) from None


def _written(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _counts(counts: Counts) -> UsageCounts:
    return {
        "requests": counts.requests,
        "statuses": dict(sorted(counts.statuses.items())),
        "prompt_tokens": counts.prompt_tokens,
        "cached_tokens": counts.cached_tokens,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": counts.total_tokens,
    }
