"""``POST /v1/chat/completions`` and ``POST /v1/completions``.

Owns the way from a body to a generation and from there to a response. ``protocol`` knows the wire,
``serving`` generates, ``stream`` writes; ``app`` routes here.
"""

import time
import uuid

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.chat.messages import ToolMode
from nexa_runtime.server.protocol.chat import ChatRequest
from nexa_runtime.server.protocol.chat_writer import ChatWriter
from nexa_runtime.server.protocol.completion_writer import CompletionWriter
from nexa_runtime.server.protocol.completions import CompletionRequest
from nexa_runtime.server.protocol.parameters import CHAT, COMPLETION, read_fields
from nexa_runtime.server.routes.answering import answer, token_texts
from nexa_runtime.server.services import call_of, services, tenant_and_body
from nexa_runtime.server.stream import while_connected


async def chat_completions(request: Request) -> Response:
    """OpenAI's chat completions."""
    tenant, body = await tenant_and_body(request)
    wire, ignored = read_fields(ChatRequest, body, CHAT)
    conversation = wire.to_conversation()
    opening = services(request).generation.open_chat(
        tenant, call_of(request), conversation, wire.to_options()
    )
    generation = await while_connected(request, opening)
    writer = ChatWriter(
        f"chatcmpl-{uuid.uuid4().hex}",
        int(time.time()),
        generation.model_name,
        token_texts(wire, generation),
        is_named=conversation.tool_choice.mode is ToolMode.NAMED,
        wants_usage=wire.wants_usage,
    )
    return await answer(request, wire, generation, writer, ignored)


async def completions(request: Request) -> Response:
    """OpenAI's legacy completions."""
    tenant, body = await tenant_and_body(request)
    wire, ignored = read_fields(CompletionRequest, body, COMPLETION)
    opening = services(request).generation.open_completion(
        tenant, call_of(request), wire.prompt, wire.to_options()
    )
    generation = await while_connected(request, opening)
    writer = CompletionWriter(
        f"cmpl-{uuid.uuid4().hex}",
        int(time.time()),
        generation.model_name,
        token_texts(wire, generation),
        wants_usage=wire.wants_usage,
    )
    return await answer(request, wire, generation, writer, ignored)
