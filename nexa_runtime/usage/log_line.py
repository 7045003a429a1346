"""One line of the request log: how it is written, and how a line of any file is read.

Owns the line's fields. ``request_log`` writes them; ``cli/replay`` reads them back, from files that anyone
may have changed.
"""

from typing import Annotated

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from nexa_runtime.usage.record import RECORD_FIELDS, RecordWithBody, UsageRecord

_Tokens = Annotated[int, Field(ge=0, le=10_000_000)]
_Ms = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class LoggedRequest(BaseModel):
    """What a replay needs of a line. ``body``: what the client sent, where the tenant allows that."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    tenant_id: str = Field(pattern="^[a-z0-9-]{1,64}$")
    model: str = Field(min_length=1, max_length=512)
    endpoint: str = Field(max_length=256)
    status: int = Field(ge=100, le=599)
    prompt_tokens: _Tokens
    cached_tokens: _Tokens
    completion_tokens: _Tokens
    ttft_ms: _Ms | None
    response_time_ms: _Ms
    created_at: AwareDatetime
    body: dict[str, object] | None = None

    @model_validator(mode="after")
    def _check_cached(self) -> "LoggedRequest":
        if self.cached_tokens > self.prompt_tokens:
            raise ValueError("cached_tokens are more than prompt_tokens")
        return self


class LineError(ValueError):
    """A line is no record; the text says why."""


def write_line(record: UsageRecord) -> bytes:
    """A line with its end; without the body where that cannot be written, such as one nested too deeply."""
    line = {name: getattr(record, name) for name in RECORD_FIELDS} | {"total_tokens": record.total_tokens}
    if not isinstance(record, RecordWithBody):
        return _dump(line)
    try:
        return _dump(line | {"body": record.body})
    except TypeError:
        return _dump(line)


def read_line(line: bytes) -> LoggedRequest:
    """What a line says. Raises ``LineError``."""
    try:
        return LoggedRequest.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise LineError(f"{place}: {first['msg']}" if place else first["msg"]) from None


def _dump(line: dict[str, object]) -> bytes:
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)
