"""How a generation becomes a response, for every endpoint that generates.

Owns the headers that tell a client what became of its request, and the choice between a stream and one body.
``stream`` writes; ``routes/generate``, ``routes/responses`` and ``routes/messages`` call it.
"""

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.lora import adapters_text
from nexa_runtime.server.ignored import ignored_header
from nexa_runtime.server.protocol.anthropic import MessagesRequest
from nexa_runtime.server.protocol.common import CommonRequest
from nexa_runtime.server.protocol.logprobs import TokenTexts
from nexa_runtime.server.stream import Writer, respond, stream
from nexa_runtime.serving.generation import Generation


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
