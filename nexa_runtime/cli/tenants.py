"""``nexa-runtime tenants`` and ``nexa-runtime keys``: what tenants may do, and their keys.

Asks a running server (``NEXA_URL``, ``NEXA_ADMIN_KEY``), or looks at a file; it never reads Vault itself.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from nexa_runtime.cli.client import ask_server
from nexa_runtime.config import PLACEHOLDER, Settings
from nexa_runtime.errors import ConfigError
from nexa_runtime.tenancy.file_source import load_tenants_file
from nexa_runtime.tenancy.keys import create_key
from nexa_runtime.tenancy.tenant import check_tenant_id, parse_limits


def create(tenant_id: str, settings: Settings) -> None:
    """Print a new key (stdout), its digest and how to put it into Vault (stderr)."""
    check_tenant_id(tenant_id)
    key = create_key(tenant_id)
    digest = hashlib.sha256(key.encode()).hexdigest()
    mount, _, path = settings.vault.path_template.partition("/data/")
    path = PLACEHOLDER.sub(tenant_id, path)
    typer.echo(key)
    typer.echo(
        f"This key is shown once. Its SHA-256: {digest}\n"
        "Put it into Vault (several digests, with commas, hold while keys are rotated):\n\n"
        f'  vault kv patch {mount}/{path} NEXA_API_KEY_SHA256="{digest}"\n',
        err=True,
    )


def list_all(settings: Settings) -> None:
    """A table of the tenants that the server knows."""
    table = Table("tenant", "source", "running", "queued", "cells", "requests", "refused", "tokens in", "out")
    for one in ask_server(settings, "GET", "/admin/tenants")["tenants"]:
        usage = one["usage"]
        numbers = (
            one["running"], one["queued"], one["cells"],
            usage["requests"], usage["refused"], usage["prompt_tokens"], usage["completion_tokens"],
        )  # fmt: skip
        table.add_row(one["tenant_id"], one["source"] or "-", *map(str, numbers))
    Console().print(table)


def show(tenant_id: str, settings: Settings, *, refresh: bool) -> None:
    """The limits in force for one tenant."""
    check_tenant_id(tenant_id)
    config = _config(settings, tenant_id, refresh=refresh)
    age = "" if config["age_s"] is None else f", {config['age_s']:g} s old"
    typer.echo(f"{tenant_id}: from {config['source']}, version {config['version'] or '-'}{age}", err=True)
    for name, value in config["limits"].items():
        typer.echo(f"{name}={'' if value is None else value}")
    _explain(config["problems"])


def check(tenant_id: str | None, settings: Settings, *, file: Path | None) -> None:
    """Say what is wrong with one tenant's limits, or with every tenant's of a file. Exit code 1 if any is."""
    if file is not None:
        tenants = load_tenants_file(file)
        if tenant_id is not None and tenant_id not in tenants:
            raise ConfigError(f'{file} has no tenant "{tenant_id}".')
        chosen = [tenant_id] if tenant_id is not None else sorted(tenants)
        found = [_problems_of(name, tenants[name]) for name in chosen]
        num_problems = sum(found)
    elif tenant_id is not None:
        check_tenant_id(tenant_id)
        config = _config(settings, tenant_id, refresh=True)
        _name_unknown(tenant_id, config["unknown_keys"])
        num_problems = _explain(config["problems"])
        chosen = [tenant_id]
    else:
        raise ConfigError("Name a tenant, or a file with --file.")
    if num_problems:
        raise typer.Exit(1)
    typer.echo(f"{', '.join(chosen)}: no problems.", err=True)


def _problems_of(tenant_id: str, values: Any) -> int:
    parsed = parse_limits(values)
    _name_unknown(tenant_id, parsed.unknown_keys)
    return _explain([f"{tenant_id}: {problem}" for problem in parsed.problems])


def _name_unknown(tenant_id: str, keys: Iterable[str]) -> None:
    for key in keys:
        typer.echo(f"{tenant_id}: {key} is not a key that is known; it is ignored.", err=True)


def _explain(problems: list[str]) -> int:
    for problem in problems:
        typer.echo(problem, err=True)
    return len(problems)


def _config(settings: Settings, tenant_id: str, *, refresh: bool) -> Any:
    path = f"/admin/tenants/{tenant_id}"
    if refresh:
        return ask_server(settings, "POST", f"{path}/refresh")
    return ask_server(settings, "GET", f"{path}/config")
