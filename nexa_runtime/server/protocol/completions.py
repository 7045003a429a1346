"""``/v1/completions`` on the wire: request, response and stream chunks.

Source: OpenAI's legacy completions API.
"""

from collections.abc import Mapping

from pydantic import field_validator

from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.server.protocol.common import (
    CommonRequest,
    check_texts_or_tokens,
    finish_name,
    usage_body,
)
from nexa_runtime.serving.generation import Usage

MAX_PROMPTS = 64


class CompletionRequest(CommonRequest):
    """A body of ``/v1/completions``, null fields left out. ``prompt``: an entry per choice, text or token
    ids.
    """

    prompt: list[str | list[int]]

    @field_validator("prompt", mode="plain")
    @classmethod
    def _check_prompt(cls, value: object) -> list[str | list[int]]:
        return check_texts_or_tokens(value, MAX_PROMPTS)


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
