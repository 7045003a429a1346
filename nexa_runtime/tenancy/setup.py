"""From settings to a directory of tenants: which mode, which source.

Owns the choice and the refusal of settings that contradict each other. ``cli`` calls it before anything slow.

Deliberate: ``vault``, and hvac with it, is imported where Vault is asked: that takes a tenth of a start.
"""

from dataclasses import dataclass
from pathlib import Path

from nexa_runtime.config import TenancySettings, VaultSettings
from nexa_runtime.errors import ConfigError, InvalidTenantIdError
from nexa_runtime.tenancy.directory import TenantDirectory
from nexa_runtime.tenancy.file_source import FileSource
from nexa_runtime.tenancy.source import LimitsSource
from nexa_runtime.tenancy.tenant import check_tenant_id

SINGLE_TENANT = "demo"


@dataclass(frozen=True, slots=True)
class Tenancy:
    """``default_id``: the tenant of a request that names none; everyone's unless ``is_multi``."""

    directory: TenantDirectory
    is_multi: bool
    default_id: str | None


def open_tenancy(settings: TenancySettings, vault: VaultSettings) -> Tenancy:
    """Choose mode and source; nothing is asked yet. Raises ``ConfigError``."""
    if vault.address and settings.tenants_file:
        raise ConfigError("VAULT_ADDR and NEXA_TENANTS_FILE are both set; limits come from one of them.")
    source: LimitsSource | None = None
    if vault.address:
        from nexa_runtime.tenancy.vault import VaultSource

        source = VaultSource(vault)
    elif settings.tenants_file:
        source = FileSource(Path(settings.tenants_file).expanduser())
    is_multi = settings.mode == "multi" if settings.mode else source is not None
    if is_multi and source is None:
        raise ConfigError("TENANT_MODE is multi, but neither VAULT_ADDR nor NEXA_TENANTS_FILE says who is.")
    default_id = settings.default_tenant_id or (None if is_multi else SINGLE_TENANT)
    if default_id is not None:
        try:
            check_tenant_id(default_id)
        except InvalidTenantIdError as error:
            raise ConfigError(f"DEFAULT_TENANT_ID: {error}") from None
    return Tenancy(TenantDirectory(source), is_multi, default_id)
