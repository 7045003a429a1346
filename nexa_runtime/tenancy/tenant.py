"""A tenant and its limits, and how they are read from a secret.

Owns the form of a tenant id, the secret keys with their ranges and defaults, and the sentences about bad
values. It never fetches, caches or applies limits, and never repeats a value. ``directory`` parses here what
a source has read; ``server/auth`` checks ids; the admin and ``nexa-runtime tenants`` describe limits.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nexa_runtime.errors import InvalidTenantIdError
from nexa_runtime.lora import MAX_CHOSEN, MAX_SCALE, NAME, AdapterChoice

TENANT_ID = re.compile(r"^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$")
"""For ``fullmatch``: with ``match``, ``$`` would let a line end pass."""

TENANT_ID_RULE = '1 to 64 of a-z, 0-9 and "-", with no "-" at either end'

_MAX_ECHO = 64
_MAX_NAME_LENGTH = 200
_MAX_NAMES = 256
_MAX_DIGESTS = 64

_INTEGER = re.compile(r"[0-9]{1,18}")
_NUMBER = re.compile(r"[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18}")
_ADAPTER = re.compile(rf"({NAME.strip('^$')})(?::(-?)({_NUMBER.pattern}))?")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def check_tenant_id(text: str) -> str:
    """``text``, if it has the form of a tenant id. Raises ``InvalidTenantIdError``."""
    if TENANT_ID.fullmatch(text) is None:
        raise InvalidTenantIdError(
            f"{text[:_MAX_ECHO]!a} is not a tenant id, which is {TENANT_ID_RULE}.", param="X-Tenant-Id"
        )
    return text


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may do. None: as much as the server or the model allows."""

    model_id: str | None = None
    max_context_tokens: int | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    guaranteed_slots: int = 1
    max_queue: int = 256
    queue_timeout_s: float = 300.0
    weight: float = 1.0
    allowed_models: tuple[str, ...] | None = None
    key_digests: tuple[bytes, ...] = field(default=(), repr=False)
    logs_prompts: bool = False
    lora: AdapterChoice | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """One version of a tenant that was good.

    ``source``: ``vault``, ``file`` or ``default``. ``problems``: of a newer version, which for their sake is
    not in force. ``unknown_keys``: of the secret. ``era``: another one for each time that a tenant of this id
    came into being, so that a new one inherits nothing.
    """

    id: str
    limits: Limits
    source: str
    version: str
    problems: tuple[str, ...] = ()
    unknown_keys: tuple[str, ...] = ()
    era: int = 0


@dataclass(frozen=True, slots=True)
class ParsedLimits:
    """``limits`` is None if and only if there are ``problems``: a sentence each, never with a value."""

    limits: Limits | None
    problems: tuple[str, ...]
    unknown_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a value must be. ``read`` raises ValueError for any other; its text goes nowhere."""

    range: str
    read: Callable[[object], object]


def parse_limits(values: Mapping[str, object]) -> ParsedLimits:
    """The limits that a secret's values state; what is absent, null or blank has its default."""
    read: dict[str, Any] = {}
    problems = []
    for key, (name, kind) in _KEYS.items():
        value = values.get(key)
        if _is_absent(value):
            continue
        try:
            read[name] = kind.read(value)
        except ValueError:
            problems.append(f"{key} must be {kind.range}.")
    unknown = sorted(str(key)[:_MAX_ECHO] for key in values if key not in _KEYS)
    return ParsedLimits(None if problems else Limits(**read), tuple(problems), tuple(unknown))


def describe(limits: Limits) -> dict[str, object]:
    """The value in force for each secret key; of API keys only how many there are."""
    described = {key: getattr(limits, name) for key, (name, _) in _KEYS.items()}
    if limits.allowed_models is not None:
        described["NEXA_ALLOWED_MODELS"] = list(limits.allowed_models)
    if limits.lora is not None:
        described["NEXA_LORA"] = [
            name if scale is None else f"{name}:{scale:g}" for name, scale in limits.lora
        ]
    count = len(limits.key_digests)
    described["NEXA_API_KEY_SHA256"] = f"{count} digest{'s' * (count > 1)}" if count else None
    return described


def key_ranges() -> dict[str, str]:
    """What the value of each secret key must be, in words."""
    return {key: kind.range for key, (_, kind) in _KEYS.items()}


def _is_absent(value: object) -> bool:
    # An empty list is not: who writes one may mean "none", where absent means "all".
    return value is None or (isinstance(value, str) and not value.strip())


def _integer(low: int, high: int) -> _Kind:
    def read(value: object) -> int:
        if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
            value = int(value.strip())
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise ValueError

    return _Kind(f"an integer from {low} to {high}", read)


def _number(low: float, high: float, *, is_above: bool = False) -> _Kind:
    """``is_above``: ``low`` itself is too low. Comparing refuses nan."""

    def read(value: object) -> float:
        if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            value = float(value.strip())
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and low <= value <= high and not (is_above and value == low):  # type: ignore[operator]
            return float(value)  # type: ignore[arg-type]
        raise ValueError

    if is_above:
        return _Kind(f"a number above {low:g} and at most {high:g}", read)
    return _Kind(f"a number from {low:g} to {high:g}", read)


def _boolean(value: object) -> bool:
    """YAML gives true and 1 without quotes as bool and int."""
    if isinstance(value, (str, int)) and (text := str(value).strip().lower()) in _BOOLEANS:
        return _BOOLEANS[text]
    raise ValueError


def _name(value: object) -> str:
    if isinstance(value, str):
        name = value.strip()
        if 0 < len(name) <= _MAX_NAME_LENGTH and name.isprintable():
            return name
    raise ValueError


def _names(value: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_name(part) for part in _parts(value, _MAX_NAMES)))


def _adapters(value: object) -> AdapterChoice:
    """Names, and scales behind colons."""
    choice: dict[str, float | None] = {}
    for part in _parts(value, MAX_CHOSEN):
        match = _ADAPTER.fullmatch(part)
        if match is None or match[1] in choice:
            raise ValueError
        scale = None if match[3] is None else float(match[2] + match[3])
        if scale is not None and abs(scale) > MAX_SCALE:
            raise ValueError
        choice[match[1]] = scale
    return tuple(choice.items())


def _digests(value: object) -> tuple[bytes, ...]:
    parts = _parts(value, _MAX_DIGESTS)
    if not all(_DIGEST.fullmatch(part) for part in parts):
        raise ValueError
    return tuple(dict.fromkeys(bytes.fromhex(part) for part in parts))


def _parts(value: object, most: int) -> list[str]:
    """The parts of a text with commas, or of a list; blank ones do not count, but one must be left."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise ValueError
    parts = [part for part in (item.strip() for item in items) if part]
    if not 1 <= len(parts) <= most:
        raise ValueError
    return parts


_TOKENS = _integer(1, 10_000_000)

_KEYS: dict[str, tuple[str, _Kind]] = {
    "NEXA_MODEL_ID": (
        "model_id",
        _Kind(f"the name of a model, of 1 to {_MAX_NAME_LENGTH} printable characters", _name),
    ),
    "NEXA_MAX_CONTEXT_TOKENS": ("max_context_tokens", _TOKENS),
    "NEXA_MAX_OUTPUT_TOKENS": ("max_output_tokens", _TOKENS),
    "NEXA_TEMPERATURE": ("temperature", _number(0, 2)),
    "TENANT_HARD_LIMIT_RPM": ("requests_per_minute", _integer(1, 1_000_000)),
    "TENANT_HARD_LIMIT_TPM": ("tokens_per_minute", _integer(1, 1_000_000_000)),
    "NEXA_MAX_CONCURRENCY": ("max_concurrency", _integer(1, 128)),
    "NEXA_GUARANTEED_SLOTS": ("guaranteed_slots", _integer(0, 128)),
    "NEXA_MAX_QUEUE": ("max_queue", _integer(0, 1_000_000)),
    "NEXA_QUEUE_TIMEOUT_S": ("queue_timeout_s", _number(0, 86_400, is_above=True)),
    "NEXA_WEIGHT": ("weight", _number(0.01, 100)),
    "NEXA_ALLOWED_MODELS": (
        "allowed_models",
        _Kind(f"1 to {_MAX_NAMES} names of models, separated by commas", _names),
    ),
    "NEXA_API_KEY_SHA256": (
        "key_digests",
        _Kind(f"1 to {_MAX_DIGESTS} SHA-256 digests of 64 hexadecimal digits, separated by commas", _digests),
    ),
    "NEXA_LORA": (
        "lora",
        _Kind(
            f"1 to {MAX_CHOSEN} names of adapters, each once, alone or as name:scale with a scale from"
            f" {-MAX_SCALE:g} to {MAX_SCALE:g}, separated by commas",
            _adapters,
        ),
    ),
    "NEXA_LOG_PROMPTS": ("logs_prompts", _Kind("true or false", _boolean)),
}

LIMIT_KEYS: tuple[str, ...] = tuple(_KEYS)
"""All secret keys, in the order in which they are shown."""
