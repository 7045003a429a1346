"""Who is asking: from address, key and ``X-Tenant-Id`` to a tenant.

Owns the three kinds of keys and what each opens. It never decides how much a tenant may do. Routes call it
before they read a body.

- A *tenant key* (``tenancy/keys``) is its tenant; a header that names another is refused.
- The *service key* acts for the tenant that the header names.
- The *admin key* opens ``/admin`` and ``/metrics``, and nothing else.
- A bare header counts where the owner says so: ``NEXA_TRUST_TENANT_HEADER``, from ``NEXA_TRUSTED_CIDRS``.
- With neither of these keys nor that trust the server is *open*: the header counts, any other key is ignored,
  and only tenants that have keys of their own must show them. An open server listens on loopback only, and
  answers only to loopback names, so that no web page can reach it under a name of its own.
"""

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from pydantic import SecretStr
from starlette.requests import Request

from nexa_runtime.config import AccessSettings
from nexa_runtime.errors import (
    AccessError,
    AddressDeniedError,
    AuthenticationError,
    ConfigError,
    InvalidTenantIdError,
    TenantMismatchError,
    TenantUnknownError,
)
from nexa_runtime.tenancy import keys
from nexa_runtime.tenancy.setup import Tenancy
from nexa_runtime.tenancy.tenant import Tenant, check_tenant_id

Address = IPv4Address | IPv6Address
Networks = tuple[IPv4Network | IPv6Network, ...]

TENANT_HEADER = "x-tenant-id"


def check_exposure(host: str, access: AccessSettings) -> None:
    """Refuse to listen where others can reach a server without keys. Raises ``ConfigError``."""
    if access.trusts_tenant_header and not access.trusted_cidrs:
        raise ConfigError("NEXA_TRUST_TENANT_HEADER is set; NEXA_TRUSTED_CIDRS must say from which networks.")
    if _has_server_key(access) or access.trusts_tenant_header or _is_loopback(host):
        return
    raise ConfigError(
        f"NEXA_HOST is {host!r}, where others can reach this server, and it has no keys: set NEXA_API_KEY"
        " and NEXA_ADMIN_KEY, or NEXA_TRUST_TENANT_HEADER with NEXA_TRUSTED_CIDRS, or listen on 127.0.0.1."
    )


class Gate:
    """Resolves requests to tenants. ``is_open``: the server has no keys, and trusts no network instead.

    ``request.state.key_id`` names the key that was shown, also one that is refused.
    """

    def __init__(self, access: AccessSettings, tenancy: Tenancy) -> None:
        self._access = access
        self._tenancy = tenancy
        self._service_digests = _digests(access.api_key, access.api_key_sha256)
        self._admin_digests = _digests(access.admin_key, access.admin_key_sha256)
        self.is_open = not _has_server_key(access) and not access.trusts_tenant_header

    async def tenant(self, request: Request) -> Tenant:
        """The tenant that a request acts for.

        Raises ``AddressDeniedError``, ``AuthenticationError``, ``AccessError``, ``InvalidTenantIdError``,
        and what ``TenantDirectory.resolve`` does.
        """
        self._check_address(request)
        key = _key_of(request, is_strict=not self.is_open)
        if key is not None and (not self.is_open or self._is_ours(key)):
            return await self._tenant_of_key(request, key)
        is_trusted = self._access.trusts_tenant_header and _is_in(_peer(request), self._access.trusted_cidrs)
        if not self.is_open and not is_trusted:
            raise AuthenticationError("A key is needed: send it as Authorization: Bearer or X-API-Key.")
        tenant = await self._named(request)
        if tenant.limits.key_digests and not is_trusted:
            raise AuthenticationError(f'The tenant "{tenant.id}" has keys: one of them is needed.')
        return tenant

    def check_admin(self, request: Request) -> None:
        """Let only the admin pass.

        Raises ``AddressDeniedError``, ``AuthenticationError``, ``AccessError``.
        """
        self._check_address(request)
        if self.is_open:
            return
        if not self._admin_digests:
            raise AuthenticationError("This is closed: NEXA_ADMIN_KEY is not set.")
        key = _key_of(request, is_strict=True)
        if key is None:
            raise AuthenticationError("The admin key is needed: send it as Authorization: Bearer.")
        request.state.key_id = keys.key_id(key)
        if keys.matches(key, self._admin_digests):
            return
        if keys.matches(key, self._service_digests):
            raise AccessError("The service key does not open this; NEXA_ADMIN_KEY does.")
        raise AuthenticationError("This is not the admin key.")

    def check_reader(self, request: Request) -> None:
        """Let everyone read what an open server says of itself. Raises ``AddressDeniedError``."""
        self._check_address(request)

    async def _tenant_of_key(self, request: Request, key: str) -> Tenant:
        request.state.key_id = keys.key_id(key)
        if keys.matches(key, self._service_digests):
            return await self._named(request)
        if keys.matches(key, self._admin_digests):
            raise AccessError("The admin key opens /admin and /metrics only.")
        tenant_id = keys.tenant_of(key)
        if tenant_id is None or not (self._tenancy.is_multi or tenant_id == self._tenancy.default_id):
            raise AuthenticationError("This key is not known here.")
        named = _named_id(request) if self._tenancy.is_multi else None
        if named not in (None, tenant_id):
            assert named is not None
            raise TenantMismatchError(named)
        try:
            tenant = await self._tenancy.directory.resolve(tenant_id, is_claim=True)
        except TenantUnknownError:  # whoever guesses must not learn who is a tenant here
            raise AuthenticationError("This key is not known here.") from None
        if not keys.matches(key, tenant.limits.key_digests):
            raise AuthenticationError("This key is not known here.")
        return tenant

    async def _named(self, request: Request) -> Tenant:
        """The tenant of the header, or the default one."""
        tenant_id = _named_id(request) if self._tenancy.is_multi else None
        tenant_id = tenant_id or self._tenancy.default_id
        if tenant_id is None:
            raise InvalidTenantIdError("X-Tenant-Id must name a tenant.", param="X-Tenant-Id")
        return await self._tenancy.directory.resolve(tenant_id)

    def _is_ours(self, key: str) -> bool:
        """Whether a key has the form of a tenant's that can be one here."""
        tenant_id = keys.tenant_of(key)
        return tenant_id is not None and (self._tenancy.is_multi or tenant_id == self._tenancy.default_id)

    def _check_address(self, request: Request) -> None:
        if self.is_open and not _is_loopback_name(request.url.hostname or ""):
            raise AddressDeniedError("a web page of another name")
        allowed = self._access.ip_allowlist
        if not allowed:
            return
        address = _client(request, self._access.forwarded_allow_ips)
        if not _is_in(address, allowed):
            raise AddressDeniedError(str(address) if address is not None else "an unknown address")


def _digests(key: SecretStr | None, sha256: tuple[str, ...]) -> tuple[bytes, ...]:
    given = tuple(bytes.fromhex(one) for one in sha256)
    return (keys.digest(key.get_secret_value()), *given) if key else given


def _has_server_key(access: AccessSettings) -> bool:
    return bool(access.api_key or access.api_key_sha256 or access.admin_key or access.admin_key_sha256)


def _key_of(request: Request, *, is_strict: bool) -> str | None:
    """The key that came with a request, from either header.

    Raises ``AuthenticationError`` for an ``Authorization`` of another form, if ``is_strict``.
    """
    authorization = request.headers.get("authorization", "")
    if authorization:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            return key.strip()
        if is_strict:
            raise AuthenticationError("Authorization must be Bearer and a key.")
    return request.headers.get("x-api-key") or None


def _named_id(request: Request) -> str | None:
    """The tenant that the header names. Raises ``InvalidTenantIdError``."""
    names = {name for name in request.headers.getlist(TENANT_HEADER) if name}
    if len(names) > 1:
        raise InvalidTenantIdError("X-Tenant-Id must name one tenant.", param="X-Tenant-Id")
    return check_tenant_id(names.pop()) if names else None


def _peer(request: Request) -> Address | None:
    return _address(request.client.host) if request.client else None


def _client(request: Request, proxies: Networks) -> Address | None:
    """The client's address: the peer's, or, behind proxies that are believed, the first that is none."""
    address = _peer(request)
    forwarded = ",".join(request.headers.getlist("x-forwarded-for")).split(",")
    while forwarded and _is_in(address, proxies):
        text = forwarded.pop().strip()
        if not text:
            break
        address = _address(text)
    return address


def _address(text: str) -> Address | None:
    """An address as proxies write it: alone, in brackets, or with a port."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _is_in(address: Address | None, networks: Networks) -> bool:
    return address is not None and any(address in network for network in networks)


def _is_loopback_name(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    addresses = [_address(str(one[4][0]).partition("%")[0]) for one in found]
    return all(address is not None and address.is_loopback for address in addresses)
