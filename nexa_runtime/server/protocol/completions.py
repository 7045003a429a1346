"""``/v1/completions`` on the wire: request, response and stream chunks.

Source: OpenAI's legacy completions API.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.server.protocol.common import CommonRequest, finish_name, usage_body
from nexa_runtime.serving.generation import Prompt, Usage

MAX_PROMPTS = 64

TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]


class CompletionRequest(CommonRequest):
    """A body of ``/v1/completions``, null fields left out. ``prompt``: one or several, text or token ids."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )

    def to_prompts(self) -> list[Prompt]:
        """One entry per choice."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]


class CompletionWriter:
    """Writes the answers to one completion request."""

    def __init__(self, completion_id: str, created: int, model: str) -> None:
        self._head = {
            "id": completion_id,
            "object": "text_completion",
            "created": created,
            "model": model,
        }

    def response(self, texts: list[str], reasons: list[FinishReason], usage: Usage) -> Mapping[str, object]:
        """The whole answer."""
        choices = [
            _choice(index, text, reason)
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return self._head | {"choices": choices, "usage": usage_body(usage)}

    def first_chunk(self, index: int) -> None:
        """Completions have none."""

    def chunk(self, index: int, text: str) -> Mapping[str, object]:
        """A chunk of text."""
        return self._head | {"choices": [_choice(index, text, None)]}

    def last_chunk(self, index: int, reason: FinishReason) -> Mapping[str, object]:
        """The chunk that says why a choice ended."""
        return self._head | {"choices": [_choice(index, "", reason)]}

    def usage_chunk(self, usage: Usage) -> Mapping[str, object]:
        """The chunk without choices, where the client asked for usage."""
        return self._head | {"choices": [], "usage": usage_body(usage)}


def _choice(index: int, text: str, reason: FinishReason | None) -> dict[str, object]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_name(reason)}
