"""What chat, response and completion requests have in common.

Owns the shared fields, their ranges and caps, and what of them becomes ``GenerationOptions``. ``chat``,
``responses`` and ``completions`` are built on it.
"""

from typing import Annotated

from pydantic import Field, WithJsonSchema, field_validator
from pydantic.config import JsonDict

from nexa_runtime.chat.messages import Tool, ToolChoice, ToolMode
from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.server.protocol.constraints import ConstraintFields
from nexa_runtime.server.protocol.lora import LoraFields
from nexa_runtime.server.protocol.sampling import SamplingFields
from nexa_runtime.server.protocol.wire import WireModel, at_most
from nexa_runtime.serving.generation_service import GenerationOptions

MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_STOP_TOKENS = 64
MAX_CHOICES = 16
MAX_LOGPROBS = 20

NOT_ZERO: JsonDict = {"description": "At least 1, or -1: no cap.", "not": {"const": 0}}

Stop = Annotated[str, WithJsonSchema({"type": "string", "maxLength": MAX_STOP_BYTES})]
NonEmptyStop = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_STOP_BYTES})]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class StreamOptions(WireModel):
    """Options of a stream."""

    include_usage: bool | None = None


class CommonRequest(SamplingFields, ConstraintFields, LoraFields):
    """Fields of both ``/v1/chat/completions`` and ``/v1/completions``. ``max_tokens`` -1: no cap."""

    model: str | None = Field(None, max_length=512)
    max_tokens: int | None = Field(None, ge=-1, le=2**31, json_schema_extra=NOT_ZERO)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: Annotated[Stop | list[Stop] | None, at_most(MAX_STOPS)] = None
    stop_token_ids: Annotated[list[TokenId] | None, at_most(MAX_STOP_TOKENS)] = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    timings: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    @field_validator("max_tokens")
    @classmethod
    def _not_zero(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("must be at least 1, or -1 for no cap")
        return value

    @field_validator("stop")
    @classmethod
    def _check_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if any(len(stop.encode("utf-8", "surrogatepass")) > MAX_STOP_BYTES for stop in stops):
            raise ValueError(f"must be texts of at most {MAX_STOP_BYTES} bytes")
        return value

    @property
    def num_choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def options(self, *, max_tokens: int | None = None, num_logprobs: int | None = None) -> GenerationOptions:
        """What the client asked for; ``max_tokens`` in place of the field of that name, if given.

        Raises ``InvalidRequestError`` for fields that contradict each other.
        """
        asked = self.max_tokens if max_tokens is None else max_tokens
        cap = None if asked is None or asked < 0 else asked
        if cap is not None and (self.min_tokens or 0) > cap:
            raise InvalidRequestError("min_tokens: must not be more than max_tokens.", param="min_tokens")
        sampling = self.sampling()
        if num_logprobs is not None:
            sampling["num_logprobs"] = num_logprobs
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return GenerationOptions(
            model=self.model,
            max_tokens=cap,
            sampling=sampling,
            stops=tuple(stop for stop in stops if stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            num_choices=self.num_choices,
            grammar=self.constraint(),
            lora=self.chosen_adapters(),
        )

    def check_constraint(self, tools: tuple[Tool, ...], choice: ToolChoice) -> None:
        """With tools that may be called, nothing else says what the answer looks like.

        Raises ``InvalidRequestError``.
        """
        if not tools or choice.mode is ToolMode.NONE or (grammar := self.constraint()) is None:
            return
        field = grammar.param.partition(".")[0]
        if choice.is_forced:
            raise InvalidRequestError(f"tool_choice and {field} cannot be combined.", param=field)
        message = f"{field} and tools are not supported together yet: set tool_choice to 'none'."
        raise InvalidRequestError(message, param=field)
