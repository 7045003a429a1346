"""What is sent in the place of a logged request.

Owns the bodies: the logged one where there is one, else made-up tokens, as many as there were. It sends
nothing. ``replay_run`` calls it.

Deliberate: made-up prompts are token ids of ``/v1/completions``, also in the place of chats: no text has
exactly so many tokens with every tokenizer and template. As many of them as were cached begin alike for a
tenant, the others are a request's own.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from nexa_runtime.usage.log_line import LoggedRequest

_EMBEDDINGS = "/v1/embeddings"
_COMPLETIONS = "/v1/completions"
_GENERATING = frozenset({_COMPLETIONS, "/v1/chat/completions", "/v1/responses", "/v1/messages"})
_OPENAI = frozenset({_COMPLETIONS, "/v1/chat/completions"})
_MAX_INPUT_TOKENS = 256
"""Of a made-up input to embed: how many there were is not logged, and one alone may be too long."""
MAX_TOKENS = 2**19
"""Of a made-up prompt."""

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Sending:
    """A request to send."""

    path: str
    body: Json


def skip_reason(request: LoggedRequest) -> str | None:
    """Why a request is not sent; None if it is."""
    if request.endpoint not in _GENERATING and request.endpoint != _EMBEDDINGS:
        return f"{request.endpoint} is not replayed"
    if request.body is not None:
        return None
    if not request.prompt_tokens:
        return "it had used no tokens"
    return f"it had more than {MAX_TOKENS} tokens" if request.prompt_tokens > MAX_TOKENS else None


def logged_body(request: LoggedRequest, body: Json, model: str | None) -> Sending:
    """What the client had sent, but for the ``model`` if one is given, and asking for usage in streams."""
    body = body | ({} if model is None else {"model": model})
    if request.endpoint in _OPENAI and body.get("stream"):
        body["stream_options"] = {"include_usage": True}
    return Sending(request.endpoint, body)


def made_up_body(request: LoggedRequest, model: str, token_ids: Sequence[int], number: int) -> Sending:
    """As many tokens in and out as there were. ``number``: of the request, so that no other is like it."""
    prompt = _tokens(request, token_ids, number)
    if request.endpoint == _EMBEDDINGS:
        inputs = [prompt[at : at + _MAX_INPUT_TOKENS] for at in range(0, len(prompt), _MAX_INPUT_TOKENS)]
        return Sending(_EMBEDDINGS, {"model": model, "input": inputs, "encoding_format": "base64"})
    body: Json = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max(request.completion_tokens, 1),
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return Sending(_COMPLETIONS, body)


def _tokens(request: LoggedRequest, token_ids: Sequence[int], number: int) -> list[int]:
    shared = random.Random(request.tenant_id).choices(token_ids, k=request.cached_tokens)
    own = random.Random(number).choices(token_ids, k=request.prompt_tokens - request.cached_tokens)
    return shared + own
