"""What chat and completion requests have in common, and how their errors name the field.

Owns the shared fields, their ranges and caps, and the translation of pydantic's errors into one sentence.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.serving.generation import Usage
from nexa_runtime.serving.generation_service import GenerationOptions

MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_LOGIT_BIAS = 1024
MAX_TOKEN_IDS = 2**20

RequestT = TypeVar("RequestT", bound="WireModel")

Bias = Annotated[float, Field(ge=-100, le=100)]


class WireModel(BaseModel):
    """Strict types, no NaN; unknown fields are kept, for ``unknown_fields`` to name."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


def at_most(max_items: int) -> BeforeValidator:
    """Refuse a longer list or object before its items are looked at, each of which could add an error."""

    def check(value: object) -> object:
        if isinstance(value, (list, dict)) and len(value) > max_items:
            raise ValueError(f"must have at most {max_items} entries")
        return value

    return BeforeValidator(check)


class StreamOptions(WireModel):
    """Options of a stream."""

    include_usage: bool | None = None


class CommonRequest(WireModel):
    """Fields of both ``/v1/chat/completions`` and ``/v1/completions``. ``max_tokens`` -1: no cap."""

    model: str | None = Field(None, max_length=512)
    max_tokens: int | None = Field(None, ge=-1, le=2**31)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Annotated[str | list[str] | None, at_most(MAX_STOPS)] = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repeat_penalty: float | None = Field(None, ge=0.01, le=10)
    logit_bias: Annotated[dict[str, Bias] | None, at_most(MAX_LOGIT_BIAS)] = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

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

    @field_validator("logit_bias")
    @classmethod
    def _check_bias(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            if not (key.isascii() and key.isdecimal() and len(key) < 10):
                raise ValueError("must map token ids to numbers from -100 to 100")
        return value

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def options(self, max_tokens: int | None = None) -> GenerationOptions:
        """What the client asked for; ``max_tokens`` in place of the field of that name, if given."""
        asked = self.max_tokens if max_tokens is None else max_tokens
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return GenerationOptions(
            model=self.model,
            max_tokens=None if asked is None or asked < 0 else asked,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            repeat_penalty=self.repeat_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
            stops=tuple(stop for stop in stops if stop),
            ignore_eos=bool(self.ignore_eos),
        )


def parse(cls: type[RequestT], fields: Mapping[str, object]) -> RequestT:
    """Fields to a request. Raises ``InvalidRequestError`` that names the field at fault."""
    try:
        return cls.model_validate(fields)
    except ValidationError as error:
        param, message = _sentence(fields, error)
        raise InvalidRequestError(f"{param or 'The body'}: {message}.", param=param or None) from None


def unknown_fields(model: BaseModel, path: str = "") -> list[str]:
    """Where in a request there are fields that nobody reads, nulls aside, such as ``messages[0].mood``."""
    found = [f"{path}{name}" for name, value in (model.model_extra or {}).items() if value is not None]
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            found += unknown_fields(value, f"{path}{name}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    found += unknown_fields(item, f"{path}{name}[{index}].")
    return found


def check_texts_or_tokens(value: object, max_items: int) -> list[str | list[int]]:
    """One text, several, token ids, or several lists of these; one entry each.

    Looks at types in bulk: a body of a million wrong items costs no more than one.
    """
    shape = "must be a text, a list of texts, token ids, or a list of these"
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError(shape)
    if type(value[0]) is int:
        return [_token_ids(value, shape)]
    if len(value) > max_items:
        raise ValueError(f"must have at most {max_items} entries")
    kinds = set(map(type, value))
    if kinds == {str}:
        return list(value)
    if kinds == {list}:
        return [_token_ids(item, shape) for item in value]
    raise ValueError(shape)


def _token_ids(value: list[object], shape: str) -> list[int]:
    if len(value) > MAX_TOKEN_IDS:
        raise ValueError(f"must have at most {MAX_TOKEN_IDS} token ids")
    if set(map(type, value)) != {int}:
        raise ValueError(shape)
    ids = cast(list[int], value)
    if not 0 <= min(ids) <= max(ids) < 2**31:
        raise ValueError("must have token ids from 0 on")
    return ids


def field_path(body: object, loc: Sequence[int | str], *, is_missing: bool = False) -> str:
    """A place in a body such as ``messages[0].content``; pydantic's names of union members are left out."""
    path = ""
    here = body
    for part in loc:
        if isinstance(part, int) and isinstance(here, list) and part < len(here):
            path += f"[{part}]"
            here = here[part]
        elif isinstance(part, str) and isinstance(here, Mapping) and (part in here or is_missing):
            path += f".{part}" if path else part
            here = here.get(part)
    return path


def _sentence(body: object, error: ValidationError) -> tuple[str, str]:
    """The deepest field at fault, and what it should be; a field of several types lists them."""
    by_path: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        is_missing = item["type"] == "missing"
        path = field_path(body, item["loc"], is_missing=is_missing)
        text = "is required" if is_missing else item["msg"].removeprefix("Value error, ")
        text = "an object" if item["type"] in ("model_type", "model_attributes_type") else text
        by_path.setdefault(path, []).append(text.removeprefix("Input should be "))
    path = max(by_path, key=lambda path: path.count(".") + path.count("["))
    texts = list(dict.fromkeys(by_path[path]))
    is_type = texts[0].startswith(("a ", "an ", "greater", "less", "'"))
    return path, f"{'must be ' if is_type else ''}{' or '.join(texts)}"


def usage_body(usage: Usage) -> dict[str, object]:
    """OpenAI's ``usage``."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def finish_name(reason: FinishReason | None) -> str | None:
    """OpenAI's ``finish_reason``."""
    return None if reason is None else reason.value
