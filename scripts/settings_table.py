"""The README's tables of settings, one for each slice of ``nexa_runtime/config``.

Names, defaults and meanings are the fields' own, flags those of ``serve``. Run by ``scripts/settings_table``
after a setting has come, gone or changed its words.
"""

import re

from pydantic.fields import FieldInfo
from typer.main import get_command

from nexa_runtime.cli.main import app
from nexa_runtime.config import SLICES, env_names, is_secret, shown_default
from scripts.readme import README, as_markdown, replaced, row

BEGIN = "<!-- scripts/settings_table writes what follows -->\n"
END = "<!-- end of the settings -->\n"

_SEE = {
    "NEXA_MAX_QUEUE": "[Overload](#overload)",
    "NEXA_PUBLIC_PREFIXES_FILE": "[Tenants](#tenants)",
    "NEXA_TENANTS_FILE": "[Tenants](#tenants)",
    "NEXA_API_KEY": "[Keys](#keys)",
    "NEXA_ADMIN_KEY": "[Keys](#keys)",
    "NEXA_REQUEST_LOG": "[Usage](#usage)",
    "NEXA_USAGE_DSN": "[Usage in PostgreSQL](#usage-in-postgresql)",
    "NEXA_METRICS_PORT": "[Metrics](#metrics)",
    "NEXA_STEP_LIMIT_S": "[Health](#health)",
    "NEXA_DRAIN_S": "[The end](#the-end)",
    "NEXA_ETCD_URL": "[Discovery](#discovery)",
}
"""By name, where the README says more."""


def tables() -> str:
    """A heading and a table for each slice."""
    flags = _flags()
    parts = []
    for cls in SLICES:
        heading = (cls.__doc__ or "").partition("\n")[0].rstrip(".")
        parts.append(f"\n**{heading}**\n\n{row('name', 'flag', 'default', 'meaning')}|---|---|---|---|\n")
        parts += [_row(field, flags) for field in cls.model_fields.values()]
    return "".join(parts) + "\n"


def _row(field: FieldInfo, flags: dict[str, str]) -> str:
    names = env_names(field)
    meaning = as_markdown(field.description or "")
    if (see := _SEE.get(names[0])) is not None:
        meaning += f"; see {see}"
    if is_secret(field):
        meaning += " (secret)"
    flag = flags.get(names[0])
    shown = " or ".join(f"`{name}`" for name in names)
    return row(shown, f"`{flag}`" if flag else "", _default(field), meaning)


def _default(field: FieldInfo) -> str:
    """As code where it is a value that could be written so."""
    text = shown_default(field)
    return f"`{text}`" if isinstance(field.default, str) else as_markdown(text)


def _flags() -> dict[str, str]:
    """By setting, the flag of ``serve`` that says in its help that it overrides it."""
    found = {}
    for parameter in get_command(app).commands["serve"].params:  # type: ignore[attr-defined]
        if match := re.search(r"\[env: ([A-Z_]+)", getattr(parameter, "help", None) or ""):
            found[match[1]] = parameter.opts[0]
    return found


def written(readme: str) -> str:
    """A README with its settings as they must be."""
    return replaced(readme, BEGIN, tables(), END)


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
