"""Settings of the database that usage records go to."""

from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr

from nexa_runtime.config.base import Slice, parse_bytes


class UsageDatabaseSettings(Slice):
    """The table of usage, and what may wait for it on disk."""

    dsn: SecretStr | None = Field(
        None,
        validation_alias="NEXA_USAGE_DSN",
        description="PostgreSQL or Supabase for usage records: postgresql://user:password@host:5432/name, or"
        " key=value pairs",
    )
    spool_bytes: Annotated[int, BeforeValidator(parse_bytes)] = Field(
        64_000_000,
        validation_alias="NEXA_USAGE_SPOOL_BYTES",
        ge=65_536,
        le=2**50,
        description="bytes of usage records that may wait on disk for the database, like 64MB",
    )
