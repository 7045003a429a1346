"""What every route may use, made when the application starts."""

import math
from dataclasses import dataclass
from typing import TypedDict, cast

from starlette.requests import Request

from nexa_runtime.config import ServerSettings
from nexa_runtime.server.auth import Gate
from nexa_runtime.server.body import read_json_object
from nexa_runtime.server.metadata import About
from nexa_runtime.server.metrics import Metrics
from nexa_runtime.server.readiness import Readiness
from nexa_runtime.serving.call import Call
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.embedding import EmbeddingService
from nexa_runtime.serving.generation_service import GenerationService
from nexa_runtime.serving.pulling import Puller
from nexa_runtime.serving.reranking import RerankService
from nexa_runtime.serving.text import TextService
from nexa_runtime.telemetry import bind_caller
from nexa_runtime.tenancy.admission import RateState
from nexa_runtime.tenancy.setup import Tenancy
from nexa_runtime.tenancy.tenant import Tenant
from nexa_runtime.usage.totals import UsageTotals


@dataclass(frozen=True, slots=True)
class Services:
    """The layer below, and the server's own settings."""

    gate: Gate
    tenancy: Tenancy
    dispatcher: Dispatcher
    generation: GenerationService
    embedding: EmbeddingService
    puller: Puller
    settings: ServerSettings
    reranking: RerankService
    text: TextService
    readiness: Readiness
    about: About
    metrics: Metrics
    totals: UsageTotals


class State(TypedDict):
    """Starlette's lifespan state."""

    services: Services


def services(request: Request) -> Services:
    """The services of the application that got this request."""
    return cast(Services, request.state.services)


async def tenant_of(request: Request) -> Tenant:
    """The tenant that a request acts for; from now on its log lines and its answer say so.

    Raises as ``Gate.tenant``.
    """
    tenant = await services(request).gate.tenant(request)
    bind_caller(tenant.id, request.state.key_id)
    request.state.tenant_id = tenant.id
    admission = services(request).dispatcher.admission
    request.state.answer_headers = lambda: _rate_headers(admission.rates(tenant))
    return tenant


async def tenant_and_body(request: Request) -> tuple[Tenant, dict[str, object]]:
    """Who asks, and what: nobody's body is read before they are known, and their limits are those that hold
    when it is there. Raises as ``tenant_of`` and ``read_json_object``.
    """
    tenant = await tenant_of(request)
    body = await read_json_object(request, services(request).settings)
    request.state.model = body.get("model")
    tenant = await services(request).tenancy.directory.resolve(tenant.id)
    request.state.logged_body = body if tenant.limits.logs_prompts else None
    return tenant, body


def call_of(request: Request) -> Call:
    """What the layers below need to know of a request. With ``x-nexa-wait: 0`` it waits for no model."""
    return Call(
        request_id=request.state.request_id,
        endpoint=request.url.path,
        key_id=request.state.key_id,
        is_patient=request.headers.get("x-nexa-wait") != "0",
        on_admitted=lambda: setattr(request.state, "is_admitted", True),
        body=request.state.logged_body,
    )


def _rate_headers(rates: dict[str, RateState]) -> dict[str, str]:
    """OpenAI's ``x-ratelimit-*`` for what is limited."""
    headers = {}
    for name, rate in rates.items():
        headers[f"x-ratelimit-limit-{name}"] = str(rate.limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(rate.remaining)
        headers[f"x-ratelimit-reset-{name}"] = _duration(rate.reset_s)
    return headers


def _duration(seconds: float) -> str:
    """As OpenAI writes it: ``0s``, ``12s``, ``1m0s``."""
    whole = max(math.ceil(seconds), 0)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
