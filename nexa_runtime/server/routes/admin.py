"""``/admin``: what tenants may do, do, and have used; which models are loaded. The admin key opens it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime

from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.errors import NexaError, TenantUnknownError
from nexa_runtime.server.body import read_json_object
from nexa_runtime.server.errors import error_body, json_response
from nexa_runtime.server.frames import DONE, frame
from nexa_runtime.server.ignored import ignored_header
from nexa_runtime.server.live import tenant_states
from nexa_runtime.server.protocol import pulls
from nexa_runtime.server.protocol import usage as usage_format
from nexa_runtime.server.protocol.parameters import read_fields
from nexa_runtime.server.services import Services, services
from nexa_runtime.server.stream import KEEP_ALIVE_S, WITHHOLD_S
from nexa_runtime.serving.pool import ModelPool
from nexa_runtime.serving.pulling import Pull
from nexa_runtime.serving.tenants import max_sequence_tokens, share_of
from nexa_runtime.tenancy.tenant import Tenant, check_tenant_id, describe


async def list_models(request: Request) -> Response:
    """Every model of the store: whether it is loaded, and what it takes."""
    services(request).gate.check_admin(request)
    pool = services(request).dispatcher.pool
    body = {"budget_bytes": pool.budget_bytes, "used_bytes": pool.used_bytes, "models": pool.describe()}
    return json_response(body)


async def load_model(request: Request) -> Response:
    """Load a model now, and wait for it."""
    services(request).gate.check_admin(request)
    name = request.path_params["name"]
    await services(request).dispatcher.pool.load(name)
    return await list_models(request)


async def pull_model(request: Request) -> Response:
    """Bring a model into the store: a stream of events, the last one ``[DONE]`` or an error.

    The status is withheld until the files themselves come, so that what is refused before is a real one. The
    pull goes on when the client leaves.
    """
    services(request).gate.check_admin(request)
    body = await read_json_object(request, services(request).settings)
    wire, ignored = read_fields(pulls.PullRequest, body, pulls.FIELDS)
    headers = ignored_header(ignored)
    running = services(request).puller.start(wire.model)
    await running.wait_begun(WITHHOLD_S)
    return EventSourceResponse(_pull_frames(running), headers=headers, ping=KEEP_ALIVE_S, sep="\n")


async def _pull_frames(running: Pull) -> AsyncIterator[bytes]:
    try:
        async for event in running.events():
            yield frame(asdict(event))
        yield DONE
    except NexaError as error:
        yield frame(error_body(error))


async def unload_model(request: Request) -> Response:
    """Free a model now, unless it is used."""
    services(request).gate.check_admin(request)
    name = request.path_params["name"]
    await services(request).dispatcher.pool.unload(name)
    return await list_models(request)


async def list_tenants(request: Request) -> Response:
    """Every tenant that is known here: what it runs, holds and has used since the start."""
    services(request).gate.check_admin(request)
    return json_response({"tenants": tenant_states(services(request))})


async def usage(request: Request) -> Response:
    """What tenants have used since a moment, as far as memory goes back."""
    services(request).gate.check_admin(request)
    tenant_id, since = usage_format.read_query(request.query_params, datetime.now(UTC))
    report = services(request).totals.report(tenant_id=tenant_id, since=since)
    return json_response(usage_format.response(report))


async def tenant_config(request: Request) -> Response:
    """The limits in force for one tenant, as this box applies them."""
    return await _config(request, services(request).tenancy.directory.resolve)


async def refresh_tenant(request: Request) -> Response:
    """The same, after asking the source anew."""
    return await _config(request, services(request).tenancy.directory.refresh)


async def _config(request: Request, look_up: Callable[[str], Awaitable[Tenant]]) -> Response:
    services(request).gate.check_admin(request)
    tenant_id = check_tenant_id(request.path_params["tenant_id"])
    tenancy = services(request).tenancy
    try:
        if not tenancy.is_multi and tenant_id != tenancy.default_id:
            raise TenantUnknownError(tenant_id)
        tenant = await look_up(tenant_id)
    except TenantUnknownError as error:
        # For the admin this is an answer, not a refusal.
        return json_response(error_body(error), status=404)
    return json_response(_config_body(services(request), tenant))


def _config_body(all_services: Services, tenant: Tenant) -> dict[str, object]:
    age_s = all_services.tenancy.directory.age_s(tenant.id)
    return {
        "tenant_id": tenant.id,
        "source": tenant.source,
        "version": tenant.version,
        "age_s": None if age_s is None else round(age_s, 1),
        "limits": describe(tenant.limits) | _effective(all_services.dispatcher.pool, tenant),
        "problems": list(tenant.problems),
        "unknown_keys": list(tenant.unknown_keys),
    }


def _effective(pool: ModelPool, tenant: Tenant) -> dict[str, object]:
    """Caps as they hold on the tenant's model, once that is loaded: never above what the model has."""
    effective: dict[str, object] = {"NEXA_MODEL_ID": tenant.limits.model_id or pool.library.default_name}
    source = pool.library.find(tenant.limits.model_id) if tenant.limits.model_id else pool.library.default
    model = next((one for one in pool.models() if source is not None and one.id == source.id), None)
    if model is None:
        return effective
    share = share_of(tenant, model)
    max_tokens = max_sequence_tokens(tenant, model)
    return effective | {
        "NEXA_MAX_CONTEXT_TOKENS": max_tokens,
        "NEXA_MAX_OUTPUT_TOKENS": min(tenant.limits.max_output_tokens or max_tokens, max_tokens),
        "NEXA_MAX_CONCURRENCY": min(share.max_slots or model.slots, model.slots),
        "NEXA_GUARANTEED_SLOTS": share.guaranteed_slots,
    }
