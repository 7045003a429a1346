"""Settings of what the server says of itself."""

from typing import Literal

from pydantic import AliasChoices, Field, field_validator

from nexa_runtime.config.base import Slice


class FileSettings(Slice):
    """Where further settings are written."""

    env_file: str | None = Field(
        None,
        validation_alias="NEXA_ENV_FILE",
        min_length=1,
        description="file with settings as lines of NAME=value, which win over the environment",
    )


class LogSettings(Slice):
    """What is written to stderr."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO",
        validation_alias=AliasChoices("NEXA_LOG_LEVEL", "LOG_LEVEL"),
        description="least severe log line that is written",
    )

    @field_validator("level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value
