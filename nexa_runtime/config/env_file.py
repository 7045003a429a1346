"""Settings from a file: lines of ``NAME=value``, as systemd and Docker take them.

Owns the form of such a file. It never judges a value, and no message holds one: secrets are among them.
"""

import re
from pathlib import Path

from nexa_runtime.errors import ConfigError

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
_MAX_BYTES = 1024 * 1024


def read_env_file(path: Path) -> dict[str, str]:
    """The values by name; an empty one counts as not there. Raises ``ConfigError``."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1).decode()
    except OSError as error:
        raise ConfigError(f"NEXA_ENV_FILE: {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"NEXA_ENV_FILE: {path} is not in UTF-8.") from None
    if len(text) > _MAX_BYTES:
        raise ConfigError(f"NEXA_ENV_FILE: {path} is larger than {_MAX_BYTES} bytes.")
    values = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(f"NEXA_ENV_FILE: {path}, line {number} is not NAME=value.")
        values[match[1].upper()] = _unquoted(match[2].strip())
    return {name: value for name, value in values.items() if value}


def _unquoted(text: str) -> str:
    is_quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if is_quoted else text
