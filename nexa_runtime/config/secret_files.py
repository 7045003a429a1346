"""Secrets from files, as containers are given them: ``NAME_FILE`` names the file with the value of ``NAME``.

Owns which settings may come so, and the sentence for a file that cannot be read. Read once, at the start.
"""

import os
from collections.abc import Mapping

from nexa_runtime.config.base import Slice, env_names, is_secret
from nexa_runtime.errors import ConfigError

_MAX_SECRET_CHARS = 65_536


def file_names(cls: type[Slice]) -> dict[str, str]:
    """By the name of each secret, the name of the variable that may name a file with it."""
    names = [name for field in cls.model_fields.values() for name in env_names(field)]
    secrets = [name for field in cls.model_fields.values() if is_secret(field) for name in env_names(field)]
    return {name: f"{name}_FILE" for name in secrets if f"{name}_FILE" not in names}


def secrets_of_files(cls: type[Slice], given: Mapping[str, object]) -> dict[str, object]:
    """The secrets that the environment, or what is ``given`` in its place, names files of.

    Raises ``ConfigError``.
    """
    said = {**os.environ, **given}
    secrets: dict[str, object] = {}
    for name, file_name in file_names(cls).items():
        if not (path := str(said.get(file_name) or "")):
            continue
        if said.get(name):
            raise ConfigError(f"{name} and {file_name} are both set: one of them must go.")
        try:
            with open(path, encoding="utf-8") as file:
                secret = file.read(_MAX_SECRET_CHARS + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it holds no text"
            raise ConfigError(f"{file_name} is {path[:200]!r}, which cannot be read: {reason}.") from None
        if len(secret) > _MAX_SECRET_CHARS:
            raise ConfigError(f"{file_name} is {path[:200]!r}, which is larger than any secret.")
        if not (secret := secret.strip()):
            raise ConfigError(f"{file_name} is {path[:200]!r}, which is empty.")
        secrets[name] = secret
    return secrets
