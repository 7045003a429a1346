"""Settings of what listens, and of who may ask."""

from pydantic import AliasChoices, Field, SecretStr

from nexa_runtime.config.base import Digests, Networks, Slice


class ServerSettings(Slice):
    """Where HTTP listens and what it takes in."""

    host: str = Field(
        "127.0.0.1", validation_alias="NEXA_HOST", min_length=1, description="address to listen on"
    )
    port: int = Field(
        8080,
        validation_alias="NEXA_PORT",
        ge=0,
        le=65_535,
        description="TCP port to listen on; 0: any free one",
    )
    max_body_bytes: int = Field(
        4 * 1024 * 1024,
        validation_alias="NEXA_MAX_BODY_BYTES",
        ge=1024,
        le=1024**3,
        description="largest request body, in bytes",
    )
    body_timeout_s: float = Field(
        30,
        validation_alias="NEXA_BODY_TIMEOUT_S",
        gt=0,
        le=3600,
        description="seconds in which a request body must arrive",
    )


class AccessSettings(Slice):
    """Who may ask at all."""

    api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("NEXA_API_KEY", "API_KEY"),
        description="the service key: it acts for the tenant that X-Tenant-Id names",
    )
    api_key_sha256: Digests = Field(
        (),
        validation_alias="NEXA_API_KEY_SHA256",
        description="SHA-256 of the service key in hex, instead of the key; several with commas",
    )
    admin_key: SecretStr | None = Field(
        None,
        validation_alias="NEXA_ADMIN_KEY",
        description="the key that opens /admin and /metrics, and nothing else",
    )
    admin_key_sha256: Digests = Field(
        (),
        validation_alias="NEXA_ADMIN_KEY_SHA256",
        description="SHA-256 of the admin key in hex, instead of the key; several with commas",
    )
    trusts_tenant_header: bool = Field(
        False,
        validation_alias="NEXA_TRUST_TENANT_HEADER",
        description="whether X-Tenant-Id alone, without a key, is believed from NEXA_TRUSTED_CIDRS",
    )
    trusted_cidrs: Networks = Field(
        (),
        validation_alias="NEXA_TRUSTED_CIDRS",
        description="networks of immediate peers whose bare X-Tenant-Id is believed, with commas",
    )
    ip_allowlist: Networks = Field(
        (),
        validation_alias="NEXA_IP_ALLOWLIST",
        description="networks of clients whose requests are taken, with commas; unset: all",
    )
    forwarded_allow_ips: Networks = Field(
        (),
        validation_alias="NEXA_FORWARDED_ALLOW_IPS",
        description="networks of proxies whose X-Forwarded-For is believed, with commas",
    )
