"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``.

Owns the way from Anthropic's body to a generation, or to its prompt's length, and from there to a response.
``protocol`` knows the wire, ``serving`` generates, ``stream`` writes; ``app`` routes here.
"""

import uuid

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.server.errors import json_response
from nexa_runtime.server.ignored import ignored_header
from nexa_runtime.server.protocol.anthropic import FIELDS, MessagesRequest
from nexa_runtime.server.protocol.anthropic_writer import AnthropicWriter
from nexa_runtime.server.protocol.parameters import read_fields
from nexa_runtime.server.routes.answering import answer
from nexa_runtime.server.services import call_of, services, tenant_and_body
from nexa_runtime.server.stream import while_connected


async def create_message(request: Request) -> Response:
    """Anthropic's messages."""
    tenant, body = await tenant_and_body(request)
    wire, ignored = read_fields(MessagesRequest, body, FIELDS)
    opening = services(request).generation.open_chat(
        tenant, call_of(request), wire.to_conversation(), wire.to_options()
    )
    generation = await while_connected(request, opening)
    writer = AnthropicWriter(
        f"msg_{uuid.uuid4().hex}",
        generation.model_name,
        request.state.request_id,
        shows_thinking=wire.shows_thinking,
    )
    return await answer(request, wire, generation, writer, ignored)


async def count_tokens(request: Request) -> Response:
    """How long the prompt of a message is; takes the same body, and is a request like any other."""
    tenant, body = await tenant_and_body(request)
    wire, ignored = read_fields(MessagesRequest, body, FIELDS)
    wire.to_options()  # what cannot be answered has no prompt either
    counting = services(request).text.count(
        tenant, call_of(request), wire.to_conversation(), model_name=wire.model
    )
    num_tokens = await while_connected(request, counting)
    return json_response({"input_tokens": num_tokens}, headers=ignored_header(ignored))
