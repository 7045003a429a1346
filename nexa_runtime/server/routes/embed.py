"""``POST /v1/embeddings``."""

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.server.body import read_json_object
from nexa_runtime.server.errors import json_response
from nexa_runtime.server.ignored import ignored_header
from nexa_runtime.server.protocol import embeddings as wire_format
from nexa_runtime.server.protocol.common import parse, unknown_fields
from nexa_runtime.server.protocol.parameters import EMBEDDING, split_fields
from nexa_runtime.server.services import services, tenant_of
from nexa_runtime.server.stream import while_connected


async def embeddings(request: Request) -> Response:
    """OpenAI's embeddings."""
    tenant = await tenant_of(request)
    body = await read_json_object(request, services(request).settings)
    fields, unknown = split_fields(body, EMBEDDING)
    wire = parse(wire_format.EmbeddingRequest, fields)
    result = await while_connected(
        request,
        services(request).embedding.embed(
            tenant, wire.input, model_name=wire.model, dimensions=wire.dimensions
        ),
    )
    return json_response(
        wire_format.response(wire, result), headers=ignored_header([*unknown, *unknown_fields(wire)])
    )
