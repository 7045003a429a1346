"""The shapes of answers to tenants, for the API's document.

Owns a type per body that writers and routes make; ``endpoints`` names them, a test holds real answers to
them. It never makes an answer. A field that is not required here is left out where it has nothing to say.

``typing_extensions``' ``TypedDict``: pydantic wants it before Python 3.12.
"""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

Finish = Literal["stop", "length", "tool_calls"]


class ErrorDetail(TypedDict):
    """What was wrong, in one sentence; ``code`` never changes once released."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(TypedDict):
    """The body of every error; a stream that is cut ends with it."""

    error: ErrorDetail


class CachedTokens(TypedDict):
    """Prompt tokens that were not computed again."""

    cached_tokens: int


class TokenUsage(TypedDict):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Timing(TypedDict):
    """Where the time went, with ``timings: true``; milliseconds."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float
    queue_ms: float


class TokenChance(TypedDict):
    """A token and the logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenToken(TokenChance):
    """A token that was chosen, and the likeliest ones in its place."""

    top_logprobs: list[TokenChance]


class ChatLogprobs(TypedDict):
    """Log-probabilities of a chat's choice."""

    content: list[ChosenToken]
    refusal: None


class CalledFunction(TypedDict):
    """What is called. ``arguments``: JSON text."""

    name: str
    arguments: str


class Call(TypedDict):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(TypedDict):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Call]]


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(TypedDict):
    """An answer of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage
    timings: NotRequired[Timing]


class CalledFunctionPart(TypedDict):
    """The name comes first, the arguments bit by bit."""

    name: NotRequired[str]
    arguments: str


class CallPart(TypedDict):
    """Part of a call; ``id`` and ``type`` come with the first one."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: CalledFunctionPart


class ChatDelta(TypedDict):
    """What is new."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[CallPart]]


class ChatChunkChoice(TypedDict):
    """News of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(TypedDict):
    """An event of a streamed chat; the last one has no choices, and usage or timings if they were asked for.
    A stream that is complete ends with ``[DONE]``.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[TokenUsage]
    timings: NotRequired[Timing]


class TextLogprobs(TypedDict):
    """Log-probabilities of a completion's choice, a list entry per token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(TypedDict):
    """One continuation."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(TypedDict):
    """An answer of ``/v1/completions``."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: TokenUsage
    timings: NotRequired[Timing]


class TextChunkChoice(TypedDict):
    """News of one continuation."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextChunk(TypedDict):
    """An event of a streamed completion; the last one has no choices, and usage or timings if asked for. A
    stream that is complete ends with ``[DONE]``.
    """

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChunkChoice]
    usage: NotRequired[TokenUsage]
    timings: NotRequired[Timing]


class Embedding(TypedDict):
    """One vector; as base64 it is little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class ReadUsage(TypedDict):
    """Tokens of a request whose answer has none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(TypedDict):
    """An answer of ``/v1/embeddings``."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: ReadUsage


class ServedAdapter(TypedDict):
    """An adapter of a model, and how strong it is where a request does not say."""

    name: str
    scale: float


class ServedModel(TypedDict):
    """A name that is served; what only loading tells is null until then. ``lora``: what may be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["nexa-runtime"]
    context_length: int | None
    kinds: list[Literal["chat", "completion", "embedding", "rerank"]] | None
    lora: list[ServedAdapter]


class ServedModelList(TypedDict):
    """Every name that the tenant may use."""

    object: Literal["list"]
    data: list[ServedModel]
