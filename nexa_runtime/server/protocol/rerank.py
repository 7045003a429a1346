"""``/v1/rerank`` on the wire: request and response.

Source: Jina's reranker API, which llama-server has too; ``raw_scores`` is of Hugging Face's text embeddings
inference.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from nexa_runtime.server.protocol.parameters import Support
from nexa_runtime.server.protocol.wire import WireModel, at_most
from nexa_runtime.serving.reranking import Ranking

MAX_DOCUMENTS = 2048

FIELDS: Mapping[str, Support] = {
    "query": Support.HONOURED,
    "documents": Support.HONOURED,
    "model": Support.HONOURED,
    "top_n": Support.HONOURED,
    "return_documents": Support.HONOURED,
    "raw_scores": Support.HONOURED,
    "user": Support.HARMLESS,
    # These would cut documents, or read only parts of them; nothing is ever truncated here.
    "max_tokens_per_doc": Support.REFUSED,
    "max_chunks_per_doc": Support.REFUSED,
    "rank_fields": Support.REFUSED,
    "truncate_prompt_tokens": Support.REFUSED,
}


class DocumentWire(WireModel):
    """A document as an object."""

    text: str


class RerankRequest(WireModel):
    """A body of ``/v1/rerank``, null fields left out."""

    query: str = Field(min_length=1)
    documents: Annotated[list[str | DocumentWire], at_most(MAX_DOCUMENTS), Field(min_length=1)]
    model: str | None = Field(None, max_length=512)
    top_n: int | None = Field(None, ge=1, le=2**31)
    return_documents: bool = True
    raw_scores: bool = False

    @property
    def texts(self) -> list[str]:
        """Of the documents, in their order."""
        return [one if isinstance(one, str) else one.text for one in self.documents]


def response(request: RerankRequest, ranking: Ranking) -> Mapping[str, object]:
    """The whole answer, best first."""
    texts = request.texts
    return {
        "model": ranking.model_name,
        "object": "list",
        "usage": {"prompt_tokens": ranking.prompt_tokens, "total_tokens": ranking.prompt_tokens},
        "results": [
            {"index": one.index, "relevance_score": one.score}
            | ({"document": {"text": texts[one.index]}} if request.return_documents else {})
            for one in ranking.ranked
        ],
    }
