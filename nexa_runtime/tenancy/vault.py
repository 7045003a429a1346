"""Limits from HashiCorp Vault (KV version 2).

Owns all that is said to Vault: reading a tenant's secret, and the ways to log in; when that is due, is for
``vault_token`` to say. It is the only module that imports hvac. It never caches a secret or judges its
values, and never lets an answer's text, a token or a secret id into an error. ``directory`` calls it, in
worker threads.

Deliberate oddities:

1. hvac hands over every answer as it came: the text of its exceptions can hold bodies, and a page of HTML
   with status 200 is no error to it.
2. ``requests.Session`` is not promised to be thread-safe, so each call borrows a client of its own. A lock
   around reads would let one that hangs hold up all others.
3. A 404 counts as "no such tenant" only in Vault's own two forms: a proxy's 404 page must revoke nobody.
"""

import re
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

import hvac  # type: ignore[import-untyped,unused-ignore]
from hvac.adapters import RawAdapter  # type: ignore[import-untyped,unused-ignore]

from nexa_runtime.config import PLACEHOLDER, VaultSettings
from nexa_runtime.errors import ConfigError, SourceUnavailableError
from nexa_runtime.tenancy.source import Secret
from nexa_runtime.tenancy.vault_token import (
    LOCKOUT_WAITS_S,
    REFUSED_WAITS_S,
    Clock,
    Grant,
    Login,
    RefusedError,
    Token,
    TokenKeeper,
)

FRESH_S = 60.0
"""How long a secret is used without asking again."""

_WRAPPED_BY = re.compile(r"auth/approle/role/[^/]+/secret-id")


class VaultSource:
    """Implements ``LimitsSource``. The constructor asks Vault nothing.

    Raises ``ConfigError`` unless the settings name exactly one way to log in.
    """

    def __init__(self, settings: VaultSettings, clock: Clock = time.monotonic) -> None:
        if not settings.address:
            raise ConfigError("VAULT_ADDR is not set.")
        self._mount, _, self._path = settings.path_template.partition("/data/")
        self._vault = _Vault(settings)
        self._keeper = TokenKeeper(_login_of(settings, self._vault), self._renew, clock)
        self._has_answered = False

    @property
    def name(self) -> str:
        """For the admin."""
        return "vault"

    @property
    def fresh_s(self) -> float:
        """Vault has no word of its own on changes, so it is asked again."""
        return FRESH_S

    @property
    def has_answered(self) -> bool:
        """Whether Vault has ever answered a read with our token; "there is no such secret" is an answer."""
        return self._has_answered

    def fetch(self, tenant_id: str) -> Secret | None:
        """See ``LimitsSource``. A hang ends it after one timeout; a slow Vault may take one per answer."""
        token = self._keeper.current()
        answer = self._read(tenant_id, token)
        if answer.is_forbidden:
            token = self._keeper.after_refusal(token.generation)
            answer = self._read(tenant_id, token)
            if answer.is_forbidden:
                self._keeper.note_futile(token.generation)
        secret = _secret_of(answer)
        self._keeper.note_good()
        self._has_answered = True
        return secret

    def close(self) -> None:
        """Close the connections."""
        self._vault.close()

    def _read(self, tenant_id: str, token: Token) -> "_Answer":
        path = PLACEHOLDER.sub(tenant_id, self._path)
        return self._vault.call(
            token.grant.token,
            lambda client: client.secrets.kv.v2.read_secret_version(
                path=path, mount_point=self._mount, raise_on_deleted_version=False
            ),
        )

    def _renew(self, grant: Grant) -> float:
        answer = self._vault.call(grant.token, lambda client: client.auth.token.renew_self())
        return _grant_of(answer, "the renewal").lease_s


class _Response(Protocol):
    status_code: int

    def json(self) -> object: ...


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came back over HTTP; ``body`` is empty where it was no JSON object."""

    status: int
    body: dict[str, object] = field(repr=False)

    @classmethod
    def of(cls, response: _Response) -> "_Answer":
        try:
            body = response.json()
        except ValueError:
            body = None
        return cls(response.status_code, body if isinstance(body, dict) else {})

    def at(self, *keys: str) -> object:
        """The value under nested keys; None where there is none."""
        value: object = self.body
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def is_refusal(self) -> bool:
        """Whether Vault itself, not something in between, says that the request is at fault."""
        return 400 <= self.status < 500 and self.status != 429 and isinstance(self.at("errors"), list)

    @property
    def is_forbidden(self) -> bool:
        return self.status == 403 and self.is_refusal

    def fail(self, what: str) -> NoReturn:
        """Raise for an answer that is of no use, by its status alone."""
        if self.status == 200:
            raise SourceUnavailableError(f"Vault's answer to {what} is not in Vault's form")
        error = RefusedError if self.is_refusal else SourceUnavailableError
        note = ", a redirect, which is not followed" if 300 <= self.status < 400 else ""
        note = ", it is sealed or in standby" if self.status == 503 else note
        raise error(f"Vault answered {what} with {self.status}{note}")


def _secret_of(answer: _Answer) -> Secret | None:
    values, metadata = answer.at("data", "data"), answer.at("data", "metadata")
    version = answer.at("data", "metadata", "version")
    is_gone = values is None and isinstance(metadata, dict)
    if is_gone and answer.status in (200, 404):
        return None
    if answer.status == 404 and answer.at("errors") == []:
        return None
    if answer.status == 200 and isinstance(values, dict) and isinstance(version, int):
        return Secret(values, str(version))
    answer.fail("a read")


class _Vault:
    """HTTP to one Vault. Any thread."""

    def __init__(self, settings: VaultSettings) -> None:
        self._settings = settings
        self._idle: deque[hvac.Client] = deque()
        self._is_closed = False

    def call(self, token: str, ask: Callable[[hvac.Client], _Response]) -> _Answer:
        """Let ``ask`` say one thing as the owner of ``token``. Raises ``SourceUnavailableError``."""
        try:
            client = self._idle.pop()
        except IndexError:
            client = self._make_client()
        client.token = token
        try:
            answer = _Answer.of(ask(client))
        except Exception as error:  # noqa: BLE001 - from hvac, requests, urllib3, ssl and json
            client.adapter.close()
            raise SourceUnavailableError(f"Vault gave no answer ({type(error).__name__})") from None
        if self._is_closed:
            client.adapter.close()
        else:
            self._idle.append(client)
        return answer

    def close(self) -> None:
        self._is_closed = True
        with suppress(IndexError):
            while True:
                self._idle.pop().adapter.close()

    def _make_client(self) -> hvac.Client:
        return hvac.Client(
            url=self._settings.address,
            token="",  # with None, hvac looks into VAULT_TOKEN and ~/.vault-token
            namespace=self._settings.namespace,
            timeout=self._settings.timeout_s,
            allow_redirects=False,  # a redirect would take the token to another host
            adapter=RawAdapter,
            ignore_exceptions=True,
        )


def _grant_of(answer: _Answer, what: str) -> Grant:
    token, lease_s = answer.at("auth", "client_token"), answer.at("auth", "lease_duration")
    if answer.status == 200 and token and isinstance(token, str) and isinstance(lease_s, int):
        return Grant(token, lease_s, answer.at("auth", "renewable") is True)
    answer.fail(what)


class _StaticToken:
    method = "token"
    refused_waits_s: tuple[float, ...] = ()

    def __init__(self, vault: _Vault, token: str) -> None:
        self._vault = vault
        self._token = token

    def credential(self) -> str:
        return self._token

    def log_in(self, credential: str) -> Grant:
        answer = self._vault.call(credential, lambda client: client.auth.token.lookup_self())
        ttl_s = answer.at("data", "ttl")
        if answer.status == 200 and isinstance(ttl_s, int):
            return Grant(credential, ttl_s, answer.at("data", "renewable") is True)
        if answer.is_refusal:
            # A token may read secrets and yet not look at itself: the read decides.
            return Grant(credential, 0, False)
        answer.fail("a look at the token")


class _AppRole:
    method = "approle"
    refused_waits_s: tuple[float, ...] = LOCKOUT_WAITS_S

    def __init__(
        self, vault: _Vault, role_id: str, secret_id: Callable[[], str], *, is_wrapped: bool
    ) -> None:
        self._vault = vault
        self._role_id = role_id
        self._secret_id = secret_id
        self._is_wrapped = is_wrapped
        self._unwrapped = ("", "")

    def credential(self) -> str:
        return self._secret_id()

    def log_in(self, credential: str) -> Grant:
        secret_id = self._unwrap(credential) if self._is_wrapped else credential
        answer = self._vault.call(
            "", lambda client: client.auth.approle.login(self._role_id, secret_id, use_token=False)
        )
        return _grant_of(answer, "the AppRole login")

    def _unwrap(self, wrapping_token: str) -> str:
        """The secret id inside; remembered, for a wrapping token opens once and logins come again."""
        if self._unwrapped[0] == wrapping_token:
            return self._unwrapped[1]
        lookup = self._vault.call(
            "",
            lambda client: client.adapter.post("/v1/sys/wrapping/lookup", json={"token": wrapping_token}),
        )
        created_by = lookup.at("data", "creation_path")
        if not isinstance(created_by, str):
            lookup.fail("a look at the wrapping token")
        if not _WRAPPED_BY.fullmatch(created_by):
            raise RefusedError(
                "the wrapping token was not made for a secret id, somebody may have put it there"
            )
        answer = self._vault.call(wrapping_token, lambda client: client.sys.unwrap())
        secret_id = answer.at("data", "secret_id")
        if not isinstance(secret_id, str):
            answer.fail("the unwrapping of the secret id")
        self._unwrapped = (wrapping_token, secret_id)
        return secret_id


class _Kubernetes:
    method = "kubernetes"
    refused_waits_s: tuple[float, ...] = REFUSED_WAITS_S

    def __init__(self, vault: _Vault, role: str, jwt: Callable[[], str]) -> None:
        self._vault = vault
        self._role = role
        self._jwt = jwt

    def credential(self) -> str:
        return self._jwt()

    def log_in(self, credential: str) -> Grant:
        answer = self._vault.call(
            "", lambda client: client.auth.kubernetes.login(self._role, credential, use_token=False)
        )
        return _grant_of(answer, "the Kubernetes login")


def _login_of(settings: VaultSettings, vault: _Vault) -> Login:
    """The way that is configured; a second one is an error, for no order among them would be obvious."""
    token = settings.token.get_secret_value() if settings.token else ""
    secret_id = settings.secret_id.get_secret_value() if settings.secret_id else ""
    secret_id_file = settings.secret_id_file or ""
    ways = {
        "VAULT_TOKEN": token,
        "AppRole": settings.role_id or secret_id or secret_id_file,
        "NEXA_VAULT_KUBERNETES_ROLE": settings.kubernetes_role,
    }
    given = [way for way, value in ways.items() if value]
    if len(given) > 1:
        raise ConfigError(f"Vault takes one way to log in, but {' and '.join(given)} are configured.")
    if token:
        return _StaticToken(vault, token)
    if settings.kubernetes_role:
        jwt = _file_reader(settings.kubernetes_token_file, "NEXA_VAULT_KUBERNETES_TOKEN_FILE")
        return _Kubernetes(vault, settings.kubernetes_role, jwt)
    if not given:
        raise ConfigError(
            "VAULT_ADDR is set, but no way to log in: set VAULT_TOKEN, NEXA_VAULT_KUBERNETES_ROLE,"
            " or NEXA_VAULT_ROLE_ID with NEXA_VAULT_SECRET_ID or NEXA_VAULT_SECRET_ID_FILE."
        )
    if not settings.role_id or bool(secret_id) == bool(secret_id_file):
        raise ConfigError(
            "AppRole needs NEXA_VAULT_ROLE_ID, and either NEXA_VAULT_SECRET_ID or NEXA_VAULT_SECRET_ID_FILE."
        )
    read = _file_reader(secret_id_file, "NEXA_VAULT_SECRET_ID_FILE") if secret_id_file else lambda: secret_id
    return _AppRole(vault, settings.role_id, read, is_wrapped=settings.is_secret_id_wrapped)


def _file_reader(path: str, setting: str) -> Callable[[], str]:
    def read() -> str:
        try:
            text = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise SourceUnavailableError(f"{setting} cannot be read ({type(error).__name__})") from None
        if not text:
            raise SourceUnavailableError(f"the file of {setting} is empty")
        return text

    return read
