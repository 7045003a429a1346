"""``/v1/embeddings`` on the wire: request and response.

Source: OpenAI's embeddings API; base64 is little-endian float32.
"""

import base64
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from nexa_runtime.server.protocol.wire import WireModel, check_texts_or_tokens, texts_or_tokens_schema
from nexa_runtime.serving.embedding import Embeddings

MAX_INPUTS = 2048


class EmbeddingRequest(WireModel):
    """A body of ``/v1/embeddings``, null fields left out. ``input``: an entry per vector."""

    input: list[str | list[int]] = Field(json_schema_extra=texts_or_tokens_schema(MAX_INPUTS))
    model: str | None = Field(None, max_length=512)
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=2**20)

    @field_validator("input", mode="plain")
    @classmethod
    def _check_input(cls, value: object) -> list[str | list[int]]:
        return check_texts_or_tokens(value, MAX_INPUTS)


def response(request: EmbeddingRequest, embeddings: Embeddings) -> Mapping[str, object]:
    """The whole answer."""
    is_base64 = request.encoding_format == "base64"
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                if is_base64
                else vector.tolist(),
            }
            for index, vector in enumerate(embeddings.vectors)
        ],
        "model": embeddings.model_name,
        "usage": {"prompt_tokens": embeddings.prompt_tokens, "total_tokens": embeddings.prompt_tokens},
    }
