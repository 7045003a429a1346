"""``POST /tokenize``, ``/detokenize``, ``/apply-template`` and ``/v1/chat/completions/input_tokens``.

They compute nothing: what they ask of a model is its tokenizer and its template. ``serving`` counts them as
requests all the same.
"""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.server.errors import json_response
from nexa_runtime.server.ignored import ignored_header
from nexa_runtime.server.protocol import tokens as wire_format
from nexa_runtime.server.protocol.chat import ChatRequest
from nexa_runtime.server.protocol.parameters import CHAT, read_fields
from nexa_runtime.server.services import call_of, services, tenant_and_body
from nexa_runtime.server.stream import while_connected
from nexa_runtime.serving.loaded import LoadedModel
from nexa_runtime.tenancy.tenant import Tenant


async def tokenize(request: Request) -> Response:
    """llama-server's: a text to tokens."""
    tenant, body = await tenant_and_body(request)
    wire, ignored = read_fields(wire_format.TokenizeRequest, body, wire_format.TOKENIZE)
    return await _encoded(
        request, tenant, wire.model, lambda model: wire_format.tokenized(wire, model.model.vocab), ignored
    )


async def detokenize(request: Request) -> Response:
    """llama-server's: tokens to a text."""
    tenant, body = await tenant_and_body(request)
    wire, ignored = read_fields(wire_format.DetokenizeRequest, body, wire_format.DETOKENIZE)
    return await _encoded(
        request, tenant, wire.model, lambda model: wire_format.detokenized(wire, model.model.vocab), ignored
    )


async def apply_template(request: Request) -> Response:
    """llama-server's: the prompt that a chat of the same body would have."""
    tenant, wire, headers = await _chat(request)
    rendering = services(request).text.render(
        tenant, call_of(request), wire.to_conversation(), model_name=wire.model
    )
    return json_response({"prompt": await while_connected(request, rendering)}, headers=headers)


async def count_chat_tokens(request: Request) -> Response:
    """llama-server's, in the words of OpenAI's ``/v1/responses/input_tokens``: how long that prompt is."""
    tenant, wire, headers = await _chat(request)
    counting = services(request).text.count(
        tenant, call_of(request), wire.to_conversation(), model_name=wire.model
    )
    num_tokens = await while_connected(request, counting)
    body = {"object": "response.input_tokens", "input_tokens": num_tokens}
    return json_response(body, headers=headers)


async def _chat(request: Request) -> tuple[Tenant, ChatRequest, dict[str, str]]:
    """Who asks, a body of ``/v1/chat/completions``, and the header that names what of it nobody reads."""
    tenant, body = await tenant_and_body(request)
    wire, ignored = read_fields(ChatRequest, body, CHAT)
    wire.to_options()  # what cannot be answered has no prompt either
    return tenant, wire, ignored_header(ignored)


async def _encoded(
    request: Request,
    tenant: Tenant,
    model_name: str | None,
    work: Callable[[LoadedModel], bytes],
    ignored: list[str],
) -> Response:
    """A response whose JSON ``work`` makes, for any kind of model."""
    running = services(request).text.run(tenant, call_of(request), work, model_name=model_name)
    content = await while_connected(request, running)
    return Response(content, media_type="application/json", headers=ignored_header(ignored))
