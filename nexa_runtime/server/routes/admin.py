"""``/admin/tenants``: what tenants may do, do, and have used. The admin key opens it."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.errors import TenantUnknownError
from nexa_runtime.server.errors import error_body, json_response
from nexa_runtime.server.services import Services, services
from nexa_runtime.serving.tenants import PUBLIC_TENANT_ID, max_sequence_tokens, share_of
from nexa_runtime.tenancy.tenant import Tenant, check_tenant_id, describe


async def list_tenants(request: Request) -> Response:
    """Every tenant that is known here: what it runs, holds and has used since the start."""
    services(request).gate.check_admin(request)
    dispatcher = services(request).dispatcher
    engine = dispatcher.pool.default.engine
    known = {tenant.id: tenant for tenant in services(request).tenancy.directory.known()}
    counts = engine.tenant_counts
    names = {*known, *dispatcher.admission.tenant_ids(), *counts} - {PUBLIC_TENANT_ID}
    tenants = []
    for name in sorted(names):
        count = counts.get(name)
        tenants.append(
            {
                "tenant_id": name,
                "source": known[name].source if name in known else None,
                "version": known[name].version if name in known else None,
                "running": count.num_running if count else 0,
                "queued": count.num_waiting if count else 0,
                "resident_cells": count.num_cells if count else 0,
                "virtual_time": round(count.virtual_time, 1) if count else 0.0,
                "usage": asdict(dispatcher.admission.usage(name)),
            }
        )
    return json_response({"tenants": tenants})


async def tenant_config(request: Request) -> Response:
    """The limits in force for one tenant, as this box applies them."""
    return await _config(request, services(request).tenancy.directory.resolve)


async def refresh_tenant(request: Request) -> Response:
    """The same, after asking the source anew."""
    return await _config(request, services(request).tenancy.directory.refresh)


async def _config(request: Request, look_up: Callable[[str], Awaitable[Tenant]]) -> Response:
    services(request).gate.check_admin(request)
    tenant_id = check_tenant_id(request.path_params["tenant_id"])
    try:
        tenant = await look_up(tenant_id)
    except TenantUnknownError as error:
        # For the admin this is an answer, not a refusal.
        return json_response(error_body(error), status=404)
    return json_response(_config_body(services(request), tenant))


def _config_body(all_services: Services, tenant: Tenant) -> dict[str, object]:
    model = all_services.dispatcher.pool.default
    share = share_of(tenant, model)
    age_s = all_services.tenancy.directory.age_s(tenant.id)
    max_tokens = max_sequence_tokens(tenant, model)
    limits = describe(tenant.limits) | {
        "NEXA_MODEL_ID": tenant.limits.model_id or model.id,
        "NEXA_MAX_CONTEXT_TOKENS": max_tokens,
        "NEXA_MAX_OUTPUT_TOKENS": min(tenant.limits.max_output_tokens or max_tokens, max_tokens),
        "NEXA_MAX_CONCURRENCY": min(share.max_slots or model.slots, model.slots),
        "NEXA_GUARANTEED_SLOTS": share.guaranteed_slots,
    }
    return {
        "tenant_id": tenant.id,
        "source": tenant.source,
        "version": tenant.version,
        "age_s": None if age_s is None else round(age_s, 1),
        "limits": limits,
        "problems": list(tenant.problems),
    }
