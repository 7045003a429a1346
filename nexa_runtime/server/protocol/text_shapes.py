"""The shapes of answers about texts and models that generate nothing, for the API's document.

Owns a type per body of ``routes/rerank``, ``routes/text`` and ``routes/ollama``; ``endpoints`` names them, a
test holds real answers to them. It never makes an answer. Sources: Jina, llama-server, Ollama.
"""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from nexa_runtime.server.protocol.shapes import ReadUsage


class RankedText(TypedDict):
    """The text of a document."""

    text: str


class RankedDocument(TypedDict):
    """A document's place in the request, and how well it answers the query."""

    index: int
    relevance_score: float
    document: NotRequired[RankedText]


class RankingList(TypedDict):
    """An answer of ``/v1/rerank``, best first."""

    model: str
    object: Literal["list"]
    usage: ReadUsage
    results: list[RankedDocument]


class TokenPiece(TypedDict):
    """A token with its text, or with its bytes where they are no text by themselves."""

    id: int
    piece: str | list[int]


class TokenList(TypedDict):
    """An answer of ``/tokenize``; objects with ``with_pieces``."""

    tokens: list[int] | list[TokenPiece]


class Content(TypedDict):
    """An answer of ``/detokenize``."""

    content: str


class RenderedPrompt(TypedDict):
    """An answer of ``/apply-template``."""

    prompt: str


class InputTokens(TypedDict):
    """An answer of ``/v1/chat/completions/input_tokens``."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class Version(TypedDict):
    """The version of Nexa Runtime."""

    version: str


class TagDetails(TypedDict):
    """What a model is made of; texts are empty until it is known."""

    parent_model: Literal[""]
    format: Literal["gguf"]
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Tag(TypedDict):
    """A name that is served."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: TagDetails


class TagList(TypedDict):
    """Every name that the tenant may use."""

    models: list[Tag]


class ShownModel(TypedDict):
    """One of these names; what only loading tells is empty until then."""

    details: TagDetails
    model_info: dict[str, str | int | None]
    capabilities: list[Literal["completion", "embedding", "rerank"]]
    modified_at: str
    template: str
    license: str
