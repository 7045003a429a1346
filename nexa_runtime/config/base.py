"""What a slice of settings is made of.

Owns the types of values that come as texts. The slices beside it are made of them.
"""

import re
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, get_args, get_origin

from pydantic import AliasChoices, BeforeValidator, SecretStr, StringConstraints
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Slice(BaseSettings):
    """Settings of one layer: frozen, from the environment."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)


def _split(value: object) -> object:
    """A text with commas as a tuple of its parts."""
    parts = value.split(",") if isinstance(value, str) else value
    if isinstance(parts, (list, tuple)):
        return tuple(part for part in (str(one).strip() for one in parts) if part)
    return value


_UNITS_BYTES = {
    "": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"([0-9]{1,16}(?:\.[0-9]{1,9})?)\s*([A-Z]*)")


def parse_bytes(value: object) -> object:
    """A number of bytes, also as a text: ``6G`` is 6 x 2**30 of them, ``6GB`` 6 x 10**9."""
    if value is None:
        return None
    match = _SIZE.fullmatch(str(value).strip().upper())
    if match is None or match[2] not in _UNITS_BYTES:
        raise ValueError("must be bytes, or a text like 6GB")
    return int(float(match[1]) * _UNITS_BYTES[match[2]]) if match[2] or "." in match[1] else int(match[1])


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
DigestList = tuple[Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{64}$")], ...]
Digests = Annotated[DigestList, NoDecode, BeforeValidator(_split)]
NetworkList = tuple[IPv4Network | IPv6Network, ...]
Networks = Annotated[NetworkList, NoDecode, BeforeValidator(_split)]
OriginList = tuple[Annotated[str, StringConstraints(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/*\s]+)$")], ...]
Origins = Annotated[OriginList, NoDecode, BeforeValidator(_split)]

LISTS: dict[object, str] = {
    DigestList: "digests of 64 hex digits, with commas",
    NetworkList: "networks like 10.0.0.0/8, with commas",
    OriginList: "origins like https://chat.example (no slash behind it), with commas, or *",
}


def env_names(field: FieldInfo) -> tuple[str, ...]:
    """The environment names of a setting, the preferred one first."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(str(choice) for choice in alias.choices)
    return (str(alias),)


def options(field: FieldInfo) -> tuple[object, ...]:
    """The alternatives of a field's type."""
    return get_args(field.annotation) if get_origin(field.annotation) is not tuple else ()


def unset(text: str) -> JsonDict:
    """For ``json_schema_extra`` of a setting whose default is not one value: what holds where it is unset."""
    return {"unset": text}


def shown_default(field: FieldInfo) -> str:
    """A setting's default as a person writes it."""
    if isinstance(field.json_schema_extra, dict) and (text := field.json_schema_extra.get("unset")):
        return str(text)
    if field.default in (None, ()):
        return "none"
    if any(isinstance(item, BeforeValidator) and item.func is parse_bytes for item in field.metadata):
        return _shown_bytes(field.default)
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def _shown_bytes(size: int) -> str:
    return f"{size >> 20} MiB" if size % 2**20 == 0 else f"{size // 10**6} MB"


def is_secret(field: FieldInfo) -> bool:
    """Whether its value is never shown."""
    return SecretStr in options(field)
