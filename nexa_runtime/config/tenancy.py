"""Settings of who the tenants are, and of where their limits are written."""

import re
from typing import Literal

from pydantic import Field, SecretStr

from nexa_runtime.config.base import Slice, unset


class TenancySettings(Slice):
    """Who the tenants are."""

    mode: Literal["single", "multi"] | None = Field(
        None,
        validation_alias="TENANT_MODE",
        json_schema_extra=unset("multi with Vault or a tenants file, else single"),
        description="single: everyone is the default tenant; multi: the key or X-Tenant-Id says who",
    )
    default_tenant_id: str | None = Field(
        None,
        validation_alias="DEFAULT_TENANT_ID",
        min_length=1,
        json_schema_extra=unset("`demo` in single mode"),
        description="the tenant of a request that names none",
    )
    tenants_file: str | None = Field(
        None,
        validation_alias="NEXA_TENANTS_FILE",
        min_length=1,
        description="YAML file with the tenants' limits, for a box without Vault",
    )


PLACEHOLDER = re.compile(r"\{\{\s*tenant_id\s*\}\}")
"""Where a tenant's id goes in ``NEXA_VAULT_PATH_TEMPLATE``."""


class VaultSettings(Slice):
    """HashiCorp Vault."""

    address: str | None = Field(
        None,
        validation_alias="VAULT_ADDR",
        pattern=r"^https?://\S+$",
        examples=["https://vault.example:8200"],
        description="URL of Vault; its limits hold then",
    )
    token: SecretStr | None = Field(
        None,
        validation_alias="VAULT_TOKEN",
        description="log in to Vault with this token, or with AppRole or Kubernetes",
    )
    namespace: str | None = Field(
        None, validation_alias="VAULT_NAMESPACE", description="Vault Enterprise namespace"
    )
    path_template: str = Field(
        "secret/data/tenant/{{tenant_id}}/nexa",
        validation_alias="NEXA_VAULT_PATH_TEMPLATE",
        pattern=r"^[^/\s]+/data/\S*\{\{\s*tenant_id\s*\}\}\S*$",
        examples=["secret/data/tenant/{{tenant_id}}/nexa"],
        description="where a tenant's secret is (KV v2): mount, /data/, and a path with {{tenant_id}}",
    )
    role_id: str | None = Field(
        None, validation_alias="NEXA_VAULT_ROLE_ID", description="AppRole: the role id"
    )
    secret_id: SecretStr | None = Field(
        None,
        validation_alias="NEXA_VAULT_SECRET_ID",
        description="AppRole: the secret id, or its wrapping token",
    )
    secret_id_file: str | None = Field(
        None,
        validation_alias="NEXA_VAULT_SECRET_ID_FILE",
        description="AppRole: file with the secret id or its wrapping token, read at each login",
    )
    is_secret_id_wrapped: bool = Field(
        False,
        validation_alias="NEXA_VAULT_SECRET_ID_WRAPPED",
        description="whether the secret id given is a wrapping token; only one made for a secret id is"
        " opened",
    )
    kubernetes_role: str | None = Field(
        None,
        validation_alias="NEXA_VAULT_KUBERNETES_ROLE",
        description="role to log in with by the pod's service account",
    )
    kubernetes_token_file: str = Field(
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
        validation_alias="NEXA_VAULT_KUBERNETES_TOKEN_FILE",
        description="file with the token of the pod's service account",
    )
    timeout_s: float = Field(
        2.5,
        validation_alias="NEXA_VAULT_TIMEOUT_S",
        gt=0,
        le=30,
        description="seconds that Vault may take for one answer",
    )
