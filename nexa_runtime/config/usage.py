"""Settings of what requests leave behind on this box."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from nexa_runtime.config.base import Slice, parse_bytes


class UsageSettings(Slice):
    """The request log."""

    request_log: Path | None = Field(
        None,
        validation_alias="NEXA_REQUEST_LOG",
        description="file that gets one JSON line per request, for nexa-runtime replay",
    )
    request_log_max_bytes: Annotated[int, BeforeValidator(parse_bytes)] = Field(
        100 * 2**20,
        validation_alias="NEXA_REQUEST_LOG_MAX_BYTES",
        ge=4096,
        le=2**50,
        description="size at which that file becomes .1, in bytes or like 100M; five old ones are kept",
    )
