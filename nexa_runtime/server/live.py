"""What the box does at this moment, for its owner: tenants, engines and models as one value.

Owns how counts of several models become one per tenant. It only reads; nothing is counted for it, so that it
costs nothing while nobody asks. ``routes/admin`` and ``routes/console`` send it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import nexa_runtime
from nexa_runtime.engine.scheduler import TenantCounts
from nexa_runtime.server.services import Services
from nexa_runtime.serving.loaded import LoadedModel
from nexa_runtime.serving.tenants import PUBLIC_TENANT_ID

MAX_TENANTS = 100
"""That a page can show: those that do something now come first."""

_NONE = TenantCounts(0, 0, 0, 0, 0.0)
_STARTED_AT = time.monotonic()


def tenant_states(services: Services) -> list[dict[str, object]]:
    """Every tenant that is known here: what it runs, holds and has used since the start."""
    dispatcher = services.dispatcher
    known = {tenant.id: tenant for tenant in services.tenancy.directory.known()}
    counts = _sums([model.engine.tenant_counts for model in dispatcher.pool.models()])
    names = {*known, *dispatcher.admission.tenant_ids(), *counts} - {PUBLIC_TENANT_ID}
    return [
        {
            "tenant_id": name,
            "source": known[name].source if name in known else None,
            "version": known[name].version if name in known else None,
            "running": count.num_running,
            "queued": count.num_waiting,
            "cells": count.num_cells,
            "resident_cells": count.num_resident_cells,
            "virtual_time": round(count.virtual_time, 1),
            "usage": asdict(dispatcher.admission.usage(name)),
            "weight": known[name].limits.weight if name in known else 1.0,
            "generated_tokens": dispatcher.admission.usage(name).completion_tokens + count.num_new,
        }
        for name in sorted(names)
        for count in [counts.get(name, _NONE)]
    ]


def snapshot(services: Services) -> dict[str, object]:
    """All that the console shows."""
    dispatcher, pool = services.dispatcher, services.dispatcher.pool
    tenants = tenant_states(services)
    busiest = sorted(tenants, key=_is_busy, reverse=True)[:MAX_TENANTS]
    reasons = services.readiness.reasons()
    return {
        "version": nexa_runtime.__version__,
        "uptime_s": round(time.monotonic() - _STARTED_AT, 3),
        "is_ready": not reasons,
        "reason": reasons[0].message if reasons else None,
        "open_requests": dispatcher.num_open,
        "num_tenants": len(tenants),
        "tenants": busiest,
        "engines": [_engine(model) for model in pool.models()],
        "models": pool.describe(),
        "memory": {"budget_bytes": pool.budget_bytes, "used_bytes": pool.used_bytes},
    }


def _is_busy(tenant: Mapping[str, object]) -> tuple[bool, object]:
    return bool(tenant["running"] or tenant["queued"]), tenant["virtual_time"]


def _engine(model: LoadedModel) -> dict[str, object]:
    """What a loaded model runs; the counts of steps are since it was loaded."""
    stats, generation = model.engine.stats, model.engine.generation
    return {
        "name": model.id,
        "slots": model.slots if generation is not None else 0,
        "running": stats.num_running,
        "waiting": stats.num_waiting,
        "kv_cells": model.num_cells,
        "used_cells": stats.num_used_cells,
        "num_steps": generation.totals.num_steps if generation is not None else 0,
        "num_decode_rows": generation.totals.num_decode_rows if generation is not None else 0,
        "num_prefill_rows": generation.totals.num_prefill_rows if generation is not None else 0,
    }


def _sums(all_counts: Sequence[Mapping[str, TenantCounts]]) -> dict[str, TenantCounts]:
    """A tenant's counts over all models; its virtual time is one."""
    sums: dict[str, TenantCounts] = {}
    for counts in all_counts:
        for name, one in counts.items():
            other = sums.get(name, _NONE)
            sums[name] = TenantCounts(
                one.num_running + other.num_running,
                one.num_waiting + other.num_waiting,
                one.num_cells + other.num_cells,
                one.num_new + other.num_new,
                max(one.virtual_time, other.virtual_time),
                one.num_resident_cells + other.num_resident_cells,
            )
    return sums
