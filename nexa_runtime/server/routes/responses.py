"""``POST /v1/responses``, and what is asked about a response later.

Owns the way from a body to a generation and from there to a response; nothing of it is kept. ``protocol``
knows the wire, ``serving`` generates, ``stream`` writes; ``app`` routes here.
"""

import time
import uuid

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.errors import ResponseNotFoundError
from nexa_runtime.server.protocol.responses import read_request
from nexa_runtime.server.protocol.responses_writer import ResponsesWriter
from nexa_runtime.server.routes.answering import answer, token_texts
from nexa_runtime.server.services import call_of, services, tenant_and_body, tenant_of
from nexa_runtime.server.stream import while_connected


async def create_response(request: Request) -> Response:
    """OpenAI's responses."""
    tenant, body = await tenant_and_body(request)
    wire, ignored = read_request(body)
    conversation = wire.to_conversation()
    opening = services(request).generation.open_chat(
        tenant, call_of(request), conversation, wire.to_options()
    )
    generation = await while_connected(request, opening)
    writer = ResponsesWriter(
        f"resp_{uuid.uuid4().hex}",
        int(time.time()),
        generation.model_name,
        token_texts(wire, generation),
        wire.settings(conversation, generation.clamped_max_tokens),
        shows_summary=wire.shows_summary,
    )
    return await answer(request, wire, generation, writer, ignored, cap="max_output_tokens")


async def stored_response(request: Request) -> Response:
    """A response that was made before: there is none."""
    await tenant_of(request)
    raise ResponseNotFoundError(request.path_params["id"])
