"""``POST /v1/chat/completions`` and ``POST /v1/completions``.

Owns the way from a body to a generation and from there to a response. ``protocol`` knows the wire,
``serving`` generates, ``stream`` writes; ``app`` routes here.
"""

import time
import uuid

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.chat.messages import ToolMode
from nexa_runtime.lora import adapters_text
from nexa_runtime.server.ignored import ignored_header
from nexa_runtime.server.protocol.anthropic import MessagesRequest
from nexa_runtime.server.protocol.chat import ChatRequest
from nexa_runtime.server.protocol.chat_writer import ChatWriter
from nexa_runtime.server.protocol.common import CommonRequest
from nexa_runtime.server.protocol.completion_writer import CompletionWriter
from nexa_runtime.server.protocol.completions import CompletionRequest
from nexa_runtime.server.protocol.logprobs import TokenTexts
from nexa_runtime.server.protocol.parameters import CHAT, COMPLETION, read_fields
from nexa_runtime.server.services import is_patient, services, tenant_and_body
from nexa_runtime.server.stream import Writer, respond, stream, while_connected
from nexa_runtime.serving.generation import Generation


async def chat_completions(request: Request) -> Response:
    """OpenAI's chat completions."""
    tenant, body = await tenant_and_body(request)
    wire, ignored = read_fields(ChatRequest, body, CHAT)
    conversation = wire.to_conversation()
    opening = services(request).generation.open_chat(
        tenant, conversation, wire.to_options(), is_patient=is_patient(request)
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
        tenant, wire.prompt, wire.to_options(), is_patient=is_patient(request)
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


def token_texts(wire: CommonRequest, generation: Generation) -> TokenTexts:
    """How the answer's tokens are written."""
    return TokenTexts(generation.pieces, as_ids=bool(wire.return_tokens_as_token_ids))


async def answer(
    request: Request,
    wire: CommonRequest | MessagesRequest,
    generation: Generation,
    writer: Writer,
    ignored: list[str],
    *,
    cap: str = "max_tokens",
) -> Response:
    """The answer, streamed or not, with what a client is told of its request beside it. ``ignored``: fields
    that nobody reads. ``cap``: the API's name for it.
    """
    headers = ignored_header(ignored)
    if generation.clamped_max_tokens is not None:
        headers["x-nexa-clamped"] = f"{cap}={generation.clamped_max_tokens}"
    if generation.adapters:
        headers["x-nexa-lora"] = adapters_text(generation.adapters)
    wants_timings = isinstance(wire, CommonRequest) and bool(wire.timings)
    write = stream if wire.stream else respond
    return await write(request, generation, writer, headers, wants_timings=wants_timings)
