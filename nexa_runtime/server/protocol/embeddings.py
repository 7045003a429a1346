"""``/v1/embeddings`` on the wire: request and response.

Source: OpenAI's embeddings API; base64 is little-endian float32.
"""

import base64
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from nexa_runtime.server.protocol.common import WireModel
from nexa_runtime.server.protocol.completions import TokenIds
from nexa_runtime.serving.embedding import Embeddings
from nexa_runtime.serving.generation import Prompt

MAX_INPUTS = 2048


class EmbeddingRequest(WireModel):
    """A body of ``/v1/embeddings``, null fields left out. ``input``: one or several, text or token ids."""

    input: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS)]
    )
    model: str | None = Field(None, max_length=512)
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=2**20)

    def to_inputs(self) -> list[Prompt]:
        """One entry per vector."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [[token for token in self.input if isinstance(token, int)]]
        return [one for one in self.input if not isinstance(one, int)]


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
