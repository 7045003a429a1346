"""Keys that clients show: made, recognised, compared.

Owns the form of a tenant key, ``nexa_<tenant>_<43 base64url>``. It never keeps a key or learns whose it
really is: a key only claims a tenant until its digest is among that tenant's. ``server/auth`` checks keys
here, ``nexa-runtime keys`` makes them.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable

from nexa_runtime.tenancy.tenant import TENANT_ID, check_tenant_id

_NUM_SECRET_BYTES = 32
_NUM_ID_DIGITS = 8

# A tenant id has no underscore, so the first one behind it is where it ends.
_TENANT_KEY = re.compile(r"nexa_([a-z0-9-]{1,64})_[A-Za-z0-9_-]{43}")


def create_key(tenant_id: str) -> str:
    """A new key of a tenant, with 256 random bits. Raises ``InvalidTenantIdError``."""
    return f"nexa_{check_tenant_id(tenant_id)}_{secrets.token_urlsafe(_NUM_SECRET_BYTES)}"


def digest(key: str) -> bytes:
    """The SHA-256 of a key in UTF-8, 32 bytes."""
    # What a client sends may hold lone surrogates; it is a wrong key then, not an error.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def key_id(key: str) -> str:
    """What names a key in logs: how its digest begins, which is in the settings or limits it is known by."""
    return digest(key).hex()[:_NUM_ID_DIGITS]


def tenant_of(key: str) -> str | None:
    """The tenant that a key claims to be; None for a text that is no tenant key."""
    match = _TENANT_KEY.fullmatch(key)
    if match is None or TENANT_ID.fullmatch(match[1]) is None:
        return None
    return match[1]


def matches(key: str, digests: Iterable[bytes]) -> bool:
    """Whether the key's digest is among ``digests``. The time it takes tells nothing of which one."""
    own = digest(key)
    is_match = False
    for known in digests:
        is_match |= hmac.compare_digest(own, known)
    return is_match
