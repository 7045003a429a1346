"""``POST /v1/chat/completions`` and ``POST /v1/completions``."""

import time
import uuid

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.server.body import read_json_object
from nexa_runtime.server.ignored import ignored_header
from nexa_runtime.server.protocol.chat import ChatRequest, ChatWriter
from nexa_runtime.server.protocol.common import CommonRequest, parse, unknown_fields
from nexa_runtime.server.protocol.completions import CompletionRequest, CompletionWriter
from nexa_runtime.server.protocol.parameters import CHAT, COMPLETION, split_fields
from nexa_runtime.server.services import services, tenant_of
from nexa_runtime.server.stream import Writer, respond, stream
from nexa_runtime.serving.generation import Generation


async def chat_completions(request: Request) -> Response:
    """OpenAI's chat completions."""
    tenant = await tenant_of(request)
    body = await read_json_object(request, services(request).settings)
    fields, unknown = split_fields(body, CHAT)
    wire = parse(ChatRequest, fields)
    generation = await services(request).generation.open_chat(tenant, wire.to_messages(), wire.to_options())
    writer = ChatWriter(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), generation.model_name)
    return await _answer(request, wire, generation, writer, unknown)


async def completions(request: Request) -> Response:
    """OpenAI's legacy completions."""
    tenant = await tenant_of(request)
    body = await read_json_object(request, services(request).settings)
    fields, unknown = split_fields(body, COMPLETION)
    wire = parse(CompletionRequest, fields)
    generation = await services(request).generation.open_completion(tenant, wire.prompt, wire.options())
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
