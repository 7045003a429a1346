"""``/v1/completions`` on the wire: the request.

Owns the fields that only completions have, and that they agree with each other; ``completion_writer`` writes
the answer. Source: OpenAI's legacy completions API.
"""

from dataclasses import replace
from typing import cast

from pydantic import Field, field_validator
from pydantic.config import JsonDict, JsonValue

from nexa_runtime.errors import InvalidRequestError, UnsupportedParameterError
from nexa_runtime.server.protocol.common import MAX_CHOICES, MAX_LOGPROBS, CommonRequest
from nexa_runtime.server.protocol.wire import check_texts_or_tokens, texts_or_tokens_schema
from nexa_runtime.serving.generation_service import GenerationOptions

MAX_PROMPTS = 64


def _or_false(schema: JsonDict) -> None:
    """``logprobs`` may be false."""
    schema["anyOf"] = [*cast(list[JsonValue], schema["anyOf"]), {"const": False}]


class CompletionRequest(CommonRequest):
    """A body of ``/v1/completions``, null fields left out. ``prompt``: an entry per prompt, text or token
    ids. ``logprobs``: of how many tokens beside the chosen one.
    """

    prompt: list[str | list[int]] = Field(json_schema_extra=texts_or_tokens_schema(MAX_PROMPTS))
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    echo: bool | None = None
    suffix: str | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, json_schema_extra=_or_false)

    @field_validator("prompt", mode="plain")
    @classmethod
    def _check_prompt(cls, value: object) -> list[str | list[int]]:
        return check_texts_or_tokens(value, MAX_PROMPTS)

    @field_validator("logprobs", mode="before")
    @classmethod
    def _false_is_none(cls, value: object) -> object:
        return None if value is False else value

    def to_options(self) -> GenerationOptions:
        """What the client asked for. Raises ``InvalidRequestError``."""
        best_of = self.best_of
        if best_of is not None and best_of < self.num_choices:
            raise InvalidRequestError("best_of: must be at least n.", param="best_of")
        if best_of is not None and best_of > self.num_choices and self.stream:
            message = "best_of: the best answers are known at the end only, so they cannot be streamed."
            raise InvalidRequestError(message, param="best_of")
        if self.echo and self.logprobs is not None:
            raise UnsupportedParameterError("logprobs", "a prompt that is echoed has none")
        return replace(
            self.options(num_logprobs=self.logprobs),
            best_of=best_of,
            echo=bool(self.echo),
            suffix=self.suffix or None,
        )
