"""``POST /v1/rerank``."""

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.server.errors import json_response
from nexa_runtime.server.ignored import ignored_header
from nexa_runtime.server.protocol import rerank as wire_format
from nexa_runtime.server.protocol.parameters import read_fields
from nexa_runtime.server.services import call_of, services, tenant_and_body
from nexa_runtime.server.stream import while_connected


async def rerank(request: Request) -> Response:
    """Jina's reranking."""
    tenant, body = await tenant_and_body(request)
    wire, ignored = read_fields(wire_format.RerankRequest, body, wire_format.FIELDS)
    ranking = await while_connected(
        request,
        services(request).reranking.rerank(
            tenant,
            call_of(request),
            wire.query,
            wire.texts,
            model_name=wire.model,
            top_n=wire.top_n,
            is_raw=wire.raw_scores,
        ),
    )
    return json_response(wire_format.response(wire, ranking), headers=ignored_header(ignored))
