"""Every endpoint of the server, in one table: what it takes, what it answers, with which statuses it refuses.

Owns what the API's document (``server/openapi``), its pages and the README's table of parameters are made of.
It routes nothing; a test holds it to the routes of ``server/app``. A new endpoint is one more entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from nexa_runtime.server.protocol import (
    admin_shapes,
    anthropic,
    anthropic_shapes,
    metadata_shapes,
    ollama,
    pulls,
    rerank,
    responses,
    responses_shapes,
    shapes,
    text_shapes,
    tokens,
    usage,
)
from nexa_runtime.server.protocol.chat import ChatRequest
from nexa_runtime.server.protocol.completions import CompletionRequest
from nexa_runtime.server.protocol.embeddings import EmbeddingRequest
from nexa_runtime.server.protocol.parameters import CHAT, COMPLETION, EMBEDDING, Support
from nexa_runtime.server.protocol.pulls import PullRequest
from nexa_runtime.server.protocol.wire import WireModel

EVENTS = "text/event-stream"
HTML = "text/html"
TEXT = "text/plain"

_MODEL = (404, 503)
"""The model that a request names is not there, is on its way, or does not fit."""
_WORK = (404, 429, 503, 504)
"""What a model is to compute meets the limits of the tenant and of the box, too."""
_BODY = (400, 408, 413)
"""Whatever reads a body refuses some."""


class Access(Enum):
    """Who may ask. OPEN: everyone, of a server without keys; with keys the endpoint is not there."""

    TENANT = "tenant"
    ADMIN = "admin"
    PUBLIC = "public"
    OPEN = "open"


_REFUSED: Mapping[Access, tuple[int, ...]] = {
    Access.TENANT: (400, 401, 403, 500, 503),
    Access.ADMIN: (401, 403, 500),
    Access.PUBLIC: (500,),
    Access.OPEN: (403, 500),
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path.

    ``answer``: a type that pydantic can describe; None where there is none but errors. ``event``: a type for
    each event of a stream, the last one of a stream that is cut among them. ``refusals``: statuses of errors,
    besides those that follow from ``access`` and from there being a request; ``error`` is their body.
    ``others``: of answers that are no errors.
    ``fields``: what becomes of each field of the body. ``example``: a body. ``query``: what each parameter of
    the query means.
    """

    method: str
    path: str
    summary: str
    access: Access
    answer: object | None = None
    answer_type: str = "application/json"
    event: object | None = None
    request: type[WireModel] | None = None
    fields: Mapping[str, Support] = field(default_factory=dict)
    example: Mapping[str, object] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    refusals: tuple[int, ...] = ()
    error: object = shapes.ErrorBody
    others: Mapping[int, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A name for programs, such as ``post_v1_chat_completions``."""
        parts = self.path.translate(str.maketrans("/-.", "___", "{}")).strip("_")
        return f"{self.method.lower()}_{parts}"

    @property
    def statuses(self) -> list[int]:
        """Of all errors that it may answer, but for those of any path (405)."""
        asked = _BODY if self.request is not None else ()
        return sorted({*self.refusals, *_REFUSED[self.access], *asked} - {*self.others})

    def of(self, support: Support) -> list[str]:
        """The fields of the body with this support."""
        return [name for name, is_so in self.fields.items() if is_so is support]


_QUESTION = [{"role": "user", "content": "What is the capital of France?"}]

_RERANKS = ("/v1/rerank", "/v1/reranking", "/rerank")

ENDPOINTS = (
    Endpoint(
        "POST", "/v1/chat/completions", "Answer a chat, streamed or not", Access.TENANT,
        request=ChatRequest, fields=CHAT, answer=shapes.ChatCompletion,
        event=shapes.ChatChunk | shapes.ErrorBody, refusals=_WORK,
        example={"messages": _QUESTION, "stream": True},
    ),
    Endpoint(
        "POST", "/v1/completions", "Continue one prompt or several, streamed or not", Access.TENANT,
        request=CompletionRequest, fields=COMPLETION, answer=shapes.TextCompletion,
        event=shapes.TextChunk | shapes.ErrorBody, refusals=_WORK,
        example={"prompt": "Once upon a time", "max_tokens": 32},
    ),
    Endpoint(
        "POST", "/v1/responses", "Answer a list of items, streamed or not; nothing is kept", Access.TENANT,
        request=responses.ResponsesRequest, fields=responses.FIELDS, answer=responses_shapes.Response,
        event=responses_shapes.Event, refusals=_WORK,
        example={"input": "What is the capital of France?"},
    ),
    *(
        Endpoint(
            method, "/v1/responses/{id}", "Find nothing: no response is kept", Access.TENANT, refusals=(404,)
        )
        for method in ("GET", "DELETE")
    ),
    Endpoint(
        "POST", "/v1/messages", "Answer Anthropic's messages, streamed or not", Access.TENANT,
        request=anthropic.MessagesRequest, fields=anthropic.FIELDS, answer=anthropic_shapes.Message,
        event=anthropic_shapes.Event, refusals=_WORK, error=anthropic_shapes.AnthropicErrorBody,
        example={"messages": _QUESTION, "max_tokens": 64},
    ),
    Endpoint(
        "POST", "/v1/messages/count_tokens", "Count the tokens of the same body's prompt", Access.TENANT,
        request=anthropic.MessagesRequest, fields=anthropic.FIELDS, answer=anthropic_shapes.TokenCount,
        refusals=_WORK, error=anthropic_shapes.AnthropicErrorBody, example={"messages": _QUESTION},
    ),
    Endpoint(
        "POST", "/v1/embeddings", "Turn texts into vectors", Access.TENANT,
        request=EmbeddingRequest, fields=EMBEDDING, answer=shapes.EmbeddingList, refusals=_WORK,
        example={"input": ["Hello", "Hola"]},
    ),
    *(
        Endpoint(
            "POST", path, "Order documents by how well they answer a query", Access.TENANT,
            request=rerank.RerankRequest, fields=rerank.FIELDS, answer=text_shapes.RankingList,
            refusals=_WORK, example={"query": "Where is Lima?", "documents": ["In Peru.", "In the morning."]},
        )
        for path in _RERANKS
    ),
    Endpoint(
        "POST", "/v1/chat/completions/input_tokens", "Count the tokens of a chat's prompt", Access.TENANT,
        request=ChatRequest, fields=CHAT, answer=text_shapes.InputTokens, refusals=_WORK,
        example={"messages": _QUESTION},
    ),
    Endpoint(
        "POST", "/apply-template", "Show a chat's prompt", Access.TENANT,
        request=ChatRequest, fields=CHAT, answer=text_shapes.RenderedPrompt, refusals=_WORK,
        example={"messages": _QUESTION},
    ),
    Endpoint(
        "POST", "/tokenize", "Turn a text into tokens", Access.TENANT,
        request=tokens.TokenizeRequest, fields=tokens.TOKENIZE, answer=text_shapes.TokenList, refusals=_WORK,
        example={"content": "Hello", "with_pieces": True},
    ),
    Endpoint(
        "POST", "/detokenize", "Turn tokens into a text", Access.TENANT,
        request=tokens.DetokenizeRequest, fields=tokens.DETOKENIZE, answer=text_shapes.Content,
        refusals=_WORK, example={"tokens": [1, 2, 3]},
    ),
    Endpoint(
        "GET", "/v1/metadata", "What this server is and can do, for gateways", Access.PUBLIC,
        answer=metadata_shapes.Metadata, refusals=(403,),
    ),
    Endpoint(
        "GET", "/v1/models", "List the names that are served", Access.TENANT, answer=shapes.ServedModelList
    ),
    Endpoint(
        "GET", "/v1/models/{name}", "Look at one of these names", Access.TENANT,
        answer=shapes.ServedModel, refusals=(404,),
    ),
    Endpoint("GET", "/api/version", "The version of this server", Access.PUBLIC, answer=text_shapes.Version),
    Endpoint(
        "GET", "/api/tags", "List the names that are served, in Ollama's words", Access.TENANT,
        answer=text_shapes.TagList,
    ),
    Endpoint(
        "POST", "/api/show", "Look at one of these names, in Ollama's words", Access.TENANT,
        request=ollama.ShowRequest, fields=ollama.FIELDS, answer=text_shapes.ShownModel, refusals=(404,),
        example={"model": "demo"},
    ),
    Endpoint("GET", "/health", "Whether the process answers", Access.PUBLIC, answer=admin_shapes.Health),
    Endpoint(
        "GET", "/readyz", "Whether requests are taken, and what the engine holds", Access.PUBLIC,
        answer=admin_shapes.Readiness, others={503: admin_shapes.Readiness},
    ),
    Endpoint(
        "GET", "/metrics", "All numbers, for Prometheus", Access.ADMIN, answer=str, answer_type=TEXT,
        query={"aliases": "`1`: also the names that llama-server and vLLM have for the same."},
        refusals=(400,),
    ),
    Endpoint(
        "GET", "/admin/models", "Every model of the store and every loaded one", Access.ADMIN,
        answer=admin_shapes.ModelStates,
    ),
    Endpoint(
        "POST", "/admin/models/pull", "Bring a model into the store", Access.ADMIN,
        request=PullRequest, fields=pulls.FIELDS, event=admin_shapes.PullEvent | shapes.ErrorBody,
        refusals=(403, 404, 502, 503, 507), example={"model": "llama-3-8b-instruct"},
    ),
    Endpoint(
        "POST", "/admin/models/{name}/load", "Load a model now", Access.ADMIN,
        answer=admin_shapes.ModelStates, refusals=_MODEL,
    ),
    Endpoint(
        "POST", "/admin/models/{name}/unload", "Free a model, unless it is used", Access.ADMIN,
        answer=admin_shapes.ModelStates, refusals=(404, 409),
    ),
    Endpoint(
        "GET", "/admin/tenants", "What each tenant runs, holds and has used", Access.ADMIN,
        answer=admin_shapes.TenantList,
    ),
    Endpoint(
        "GET", "/admin/tenants/{tenant_id}/config", "A tenant's limits in force", Access.ADMIN,
        answer=admin_shapes.TenantConfig, refusals=(400, 404, 503),
    ),
    Endpoint(
        "POST", "/admin/tenants/{tenant_id}/refresh", "The same, after asking their source anew",
        Access.ADMIN, answer=admin_shapes.TenantConfig, refusals=(400, 404, 503),
    ),
    Endpoint(
        "GET", "/admin/usage", "What was used since a moment, by tenant and model", Access.ADMIN,
        answer=admin_shapes.UsageSums, query=usage.QUERY, refusals=(400,),
    ),
    Endpoint("GET", "/admin/live", "What the box does, once a second", Access.ADMIN, event=admin_shapes.Live),
    Endpoint("GET", "/console", "The owner's page", Access.PUBLIC, answer=str, answer_type=HTML),
    Endpoint("GET", "/openapi.json", "This document", Access.OPEN, answer=dict[str, object]),
    Endpoint("GET", "/docs", "A page to read and try the API", Access.OPEN, answer=str, answer_type=HTML),
    Endpoint("GET", "/redoc", "A page to read the API", Access.OPEN, answer=str, answer_type=HTML),
)  # fmt: skip
