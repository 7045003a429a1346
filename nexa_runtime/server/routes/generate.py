"""``POST /v1/chat/completions`` and ``POST /v1/completions``."""

import time
import uuid

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.server.ignored import ignored_header
from nexa_runtime.server.protocol.chat import ChatRequest, ChatWriter
from nexa_runtime.server.protocol.common import CommonRequest, parse, unknown_fields
from nexa_runtime.server.protocol.completions import CompletionRequest, CompletionWriter
from nexa_runtime.server.protocol.parameters import CHAT, COMPLETION, split_fields
from nexa_runtime.server.services import is_patient, services, tenant_and_body
from nexa_runtime.server.stream import Writer, respond, stream, while_connected
from nexa_runtime.serving.generation import Generation


async def chat_completions(request: Request) -> Response:
    """OpenAI's chat completions."""
    tenant, body = await tenant_and_body(request)
    fields, unknown = split_fields(body, CHAT)
    wire = parse(ChatRequest, fields)
    opening = services(request).generation.open_chat(
        tenant, wire.to_messages(), wire.to_options(), is_patient=is_patient(request)
    )
    generation = await while_connected(request, opening)
    writer = ChatWriter(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), generation.model_name)
    return await _answer(request, wire, generation, writer, unknown)


async def completions(request: Request) -> Response:
    """OpenAI's legacy completions."""
    tenant, body = await tenant_and_body(request)
    fields, unknown = split_fields(body, COMPLETION)
    wire = parse(CompletionRequest, fields)
    opening = services(request).generation.open_completion(
        tenant, wire.prompt, wire.options(), is_patient=is_patient(request)
    )
    generation = await while_connected(request, opening)
    writer = CompletionWriter(f"cmpl-{uuid.uuid4().hex}", int(time.time()), generation.model_name)
    return await _answer(request, wire, generation, writer, unknown)


async def _answer(
    request: Request, wire: CommonRequest, generation: Generation, writer: Writer, unknown: list[str]
) -> Response:
    headers = ignored_header([*unknown, *unknown_fields(wire)])
    if generation.clamped_max_tokens is not None:
        headers["x-nexa-clamped"] = f"max_tokens={generation.clamped_max_tokens}"
    if wire.stream:
        return await stream(request, generation, writer, headers, wants_usage=wire.wants_usage)
    return await respond(request, generation, writer, headers)
