"""``POST /v1/embeddings``."""

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.server.errors import json_response
from nexa_runtime.server.ignored import ignored_header
from nexa_runtime.server.protocol import embeddings as wire_format
from nexa_runtime.server.protocol.parameters import EMBEDDING, read_fields
from nexa_runtime.server.services import call_of, services, tenant_and_body
from nexa_runtime.server.stream import while_connected


async def embeddings(request: Request) -> Response:
    """OpenAI's embeddings."""
    tenant, body = await tenant_and_body(request)
    wire, ignored = read_fields(wire_format.EmbeddingRequest, body, EMBEDDING)
    result = await while_connected(
        request,
        services(request).embedding.embed(
            tenant,
            call_of(request),
            wire.input,
            model_name=wire.model,
            dimensions=wire.dimensions,
        ),
    )
    return json_response(wire_format.response(wire, result), headers=ignored_header(ignored))
