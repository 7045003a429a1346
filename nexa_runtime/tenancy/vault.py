"""Limits from HashiCorp Vault (KV version 2).

Owns all that is said to Vault: reading a tenant's secret, logging in, keeping the token alive. It is the
only module that imports hvac. It never caches a secret or judges its values, and never lets an answer's text,
a token or a secret id into a log line or an error. ``directory`` calls it, in worker threads.

Deliberate oddities:

1. hvac hands over every answer as it came: the text of its exceptions can hold bodies, and a page of HTML
   with status 200 is no error to it.
2. ``requests.Session`` is not promised to be thread-safe, so each call borrows a client of its own. A lock
   around reads would let one that hangs hold up all others; the only lock is around login and renewal.
3. A 404 counts as "no such tenant" only in Vault's own two forms: a proxy's 404 page must revoke nobody.
4. Vault locks an AppRole out, for every box that uses it, after five refused logins without 15 minutes'
   pause between them. So a refused credential is tried three times, then only after a longer pause.
"""

import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn, Protocol

import hvac  # type: ignore[import-untyped,unused-ignore]
from hvac.adapters import RawAdapter  # type: ignore[import-untyped,unused-ignore]

from nexa_runtime.config import VaultSettings
from nexa_runtime.errors import ConfigError, SourceUnavailableError
from nexa_runtime.telemetry import get_logger
from nexa_runtime.tenancy.source import Secret

_log = get_logger("tenancy.vault")

Clock = Callable[[], float]

RENEW_AT = 2 / 3
"""The part of a lease after which a token is renewed."""
RETRY_S = 5.0
"""Seconds until a renewal that failed is tried again."""
FUTILE_S = 300.0
"""Seconds in which a login that did not mend a 403 is not repeated."""
OUTAGE_WAITS_S = (5.0, 10.0, 20.0, 30.0)
"""Pauses after logins that got no answer; the last one repeats. They harm nobody, so they stay short."""
REFUSED_WAITS_S = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
"""Pauses after refused logins."""
LOCKOUT_WAITS_S = (5.0, 300.0, 960.0)
"""The same where Vault counts refusals (see 4)."""

_PLACEHOLDER = re.compile(r"\{\{\s*tenant_id\s*\}\}")
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
        self._keeper = _TokenKeeper(self._vault, _login_of(settings), clock)
        self._has_answered = False

    @property
    def name(self) -> str:
        """For the admin."""
        return "vault"

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
        self._has_answered = True
        return secret

    def close(self) -> None:
        """Close the connections."""
        self._vault.close()

    def _read(self, tenant_id: str, token: "_Token") -> "_Answer":
        path = _PLACEHOLDER.sub(tenant_id, self._path)
        return self._vault.call(
            token.grant.token,
            lambda client: client.secrets.kv.v2.read_secret_version(
                path=path, mount_point=self._mount, raise_on_deleted_version=False
            ),
        )


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
        error = _RefusedError if self.is_refusal else SourceUnavailableError
        note = ", a redirect, which is not followed" if 300 <= self.status < 400 else ""
        note = ", it is sealed or in standby" if self.status == 503 else note
        raise error(f"Vault answered {what} with {self.status}{note}")


class _RefusedError(SourceUnavailableError):
    """Vault does not accept what was presented; to repeat it helps little and may do harm."""


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


@dataclass(frozen=True, slots=True)
class _Grant:
    """A token as Vault gave it; ``lease_s`` 0: it does not end."""

    token: str = field(repr=False)
    lease_s: float
    is_renewable: bool


def _grant_of(answer: _Answer, what: str) -> _Grant:
    token, lease_s = answer.at("auth", "client_token"), answer.at("auth", "lease_duration")
    if answer.status == 200 and token and isinstance(token, str) and isinstance(lease_s, int):
        return _Grant(token, lease_s, answer.at("auth", "renewable") is True)
    answer.fail(what)


class _Login(Protocol):
    """One way to a token. ``refused_waits_s``: pauses after refusals, empty where it cannot be repeated."""

    method: str
    refused_waits_s: tuple[float, ...]

    def credential(self) -> str:
        """What will be presented, read anew."""

    def log_in(self, vault: _Vault, credential: str) -> _Grant:
        """Raises ``_RefusedError``, or ``SourceUnavailableError`` when Vault gives no word."""


class _StaticToken:
    method = "token"
    refused_waits_s: tuple[float, ...] = ()

    def __init__(self, token: str) -> None:
        self._token = token

    def credential(self) -> str:
        return self._token

    def log_in(self, vault: _Vault, credential: str) -> _Grant:
        answer = vault.call(credential, lambda client: client.auth.token.lookup_self())
        ttl_s = answer.at("data", "ttl")
        if answer.status == 200 and isinstance(ttl_s, int):
            return _Grant(credential, ttl_s, answer.at("data", "renewable") is True)
        if answer.is_refusal:
            # A token may read secrets and yet not look at itself: the read decides.
            return _Grant(credential, 0, False)
        answer.fail("a look at the token")


class _AppRole:
    method = "approle"
    refused_waits_s: tuple[float, ...] = LOCKOUT_WAITS_S

    def __init__(self, role_id: str, secret_id: Callable[[], str], *, is_wrapped: bool) -> None:
        self._role_id = role_id
        self._secret_id = secret_id
        self._is_wrapped = is_wrapped
        self._unwrapped = ("", "")

    def credential(self) -> str:
        return self._secret_id()

    def log_in(self, vault: _Vault, credential: str) -> _Grant:
        secret_id = self._unwrap(vault, credential) if self._is_wrapped else credential
        answer = vault.call(
            "", lambda client: client.auth.approle.login(self._role_id, secret_id, use_token=False)
        )
        return _grant_of(answer, "the AppRole login")

    def _unwrap(self, vault: _Vault, wrapping_token: str) -> str:
        """The secret id inside; remembered, for a wrapping token opens once and logins come again."""
        if self._unwrapped[0] == wrapping_token:
            return self._unwrapped[1]
        lookup = vault.call(
            "",
            lambda client: client.adapter.post("/v1/sys/wrapping/lookup", json={"token": wrapping_token}),
        )
        created_by = lookup.at("data", "creation_path")
        if not isinstance(created_by, str):
            lookup.fail("a look at the wrapping token")
        if not _WRAPPED_BY.fullmatch(created_by):
            raise _RefusedError(
                "the wrapping token was not made for a secret id, somebody may have put it there"
            )
        answer = vault.call(wrapping_token, lambda client: client.sys.unwrap())
        secret_id = answer.at("data", "secret_id")
        if not isinstance(secret_id, str):
            answer.fail("the unwrapping of the secret id")
        self._unwrapped = (wrapping_token, secret_id)
        return secret_id


class _Kubernetes:
    method = "kubernetes"
    refused_waits_s: tuple[float, ...] = REFUSED_WAITS_S

    def __init__(self, role: str, jwt: Callable[[], str]) -> None:
        self._role = role
        self._jwt = jwt

    def credential(self) -> str:
        return self._jwt()

    def log_in(self, vault: _Vault, credential: str) -> _Grant:
        answer = vault.call(
            "", lambda client: client.auth.kubernetes.login(self._role, credential, use_token=False)
        )
        return _grant_of(answer, "the Kubernetes login")


def _login_of(settings: VaultSettings) -> _Login:
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
        return _StaticToken(token)
    if settings.kubernetes_role:
        return _Kubernetes(
            settings.kubernetes_role,
            _file_reader(settings.kubernetes_token_file, "NEXA_VAULT_KUBERNETES_TOKEN_FILE"),
        )
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
    return _AppRole(settings.role_id, read, is_wrapped=settings.is_secret_id_wrapped)


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


@dataclass(frozen=True, slots=True)
class _Token:
    """The token in use. ``generation`` counts logins; times are the clock's."""

    grant: _Grant
    generation: int
    renew_at: float
    ends_at: float

    def extended(self, lease_s: float, now: float) -> "_Token":
        """The same token with a lease that begins now."""
        length_s = lease_s or math.inf
        return replace(self, renew_at=now + RENEW_AT * length_s, ends_at=now + length_s)


class _TokenKeeper:
    """Keeps one token for all threads: logs in, renews, logs in again, and pauses after failures."""

    def __init__(self, vault: _Vault, login: _Login, clock: Clock) -> None:
        self._vault = vault
        self._login = login
        self._clock = clock
        self._backoff = _Backoff(clock, login.refused_waits_s)
        self._lock = threading.Lock()
        self._token: _Token | None = None
        self._generation = 0
        self._futile = (0, -math.inf)

    def current(self) -> _Token:
        """The token to use now. Raises ``SourceUnavailableError`` while there is none."""
        token = self._token
        now = self._clock()
        if token is None or now >= token.ends_at:
            return self._log_in_after(token.generation if token else 0)
        if now >= token.renew_at and self._lock.acquire(blocking=False):
            # The others go on meanwhile: the token has a third of its lease left.
            try:
                token = self._renew(self._token) if self._token else token
            finally:
                self._lock.release()
        return token

    def after_refusal(self, generation: int) -> _Token:
        """A token of a later login than ``generation``, which Vault has forbidden to read."""
        if not self._login.refused_waits_s:
            self._forbid("Vault refuses the token given (403)")
        futile_generation, until = self._futile
        if generation == futile_generation and self._clock() < until:
            self._forbid("Vault forbids the read (403), and a new login did not help")
        return self._log_in_after(generation)

    def note_futile(self, generation: int) -> NoReturn:
        """A read was forbidden even after the login ``generation``: the policy is at fault, say so."""
        self._futile = (generation, self._clock() + FUTILE_S)
        self._forbid("Vault forbids the read (403), also after a new login")

    def _forbid(self, reason: str) -> NoReturn:
        _log.error("vault_forbidden", method=self._login.method, reason=reason)
        raise SourceUnavailableError(reason)

    def _log_in_after(self, generation: int) -> _Token:
        """One login serves all who wait here; if it fails, the pause that follows ends their waiting."""
        with self._lock:
            if self._token is None or self._token.generation <= generation:
                self._token = None
                self._token = self._log_in()
            return self._token

    def _log_in(self) -> _Token:
        credential = self._login.credential()
        self._backoff.check(credential)
        now = self._clock()
        try:
            grant = self._login.log_in(self._vault, credential)
        except SourceUnavailableError as error:
            wait_s = self._backoff.fail(credential, is_refused=isinstance(error, _RefusedError))
            _log.error("vault_login_failed", method=self._login.method, reason=error.reason, next_in_s=wait_s)
            raise
        self._backoff.reset()
        self._generation += 1
        _log.info("vault_login", method=self._login.method, lease_s=grant.lease_s)
        return _Token(grant, self._generation, 0, 0).extended(grant.lease_s, now)

    def _renew(self, token: _Token) -> _Token:
        """Renew, or log in where that does not bring the full lease. With the lock."""
        now = self._clock()
        if now < token.renew_at:
            return token
        # Whatever goes wrong below, it is not tried at every read.
        self._token = replace(token, renew_at=now + RETRY_S)
        lease_s = self._ask_renewal(token.grant)
        if lease_s is not None:
            self._token = token.extended(lease_s, now)
            # Vault rounds to whole seconds.
            if lease_s == 0 or lease_s >= token.grant.lease_s - 1:
                _log.info("vault_renewed", lease_s=lease_s)
                return self._token
        if not self._login.refused_waits_s:
            _log.warning("vault_token_ends", ends_in_s=round(self._token.ends_at - now))
            self._token = replace(self._token, renew_at=math.inf, ends_at=math.inf)
            return self._token
        try:
            self._token = self._log_in()
        except SourceUnavailableError:
            # What is left of the lease still serves.
            self._token = replace(self._token, renew_at=now + RETRY_S)
        return self._token

    def _ask_renewal(self, grant: _Grant) -> float | None:
        """The lease that Vault gives now; None where it gives none."""
        if not grant.is_renewable:
            return None
        try:
            answer = self._vault.call(grant.token, lambda client: client.auth.token.renew_self())
            return _grant_of(answer, "the renewal").lease_s
        except _RefusedError as error:
            _log.warning("vault_renewal_refused", reason=error.reason)
            return None


class _Backoff:
    """How long no login is tried after one that failed. A credential not tried before may go at once."""

    def __init__(self, clock: Clock, refused_waits_s: tuple[float, ...]) -> None:
        self._clock = clock
        self._refused_waits_s = refused_waits_s or REFUSED_WAITS_S
        self.reset()

    def reset(self) -> None:
        self._credential = ""
        self._until = -math.inf
        self._num_refused = 0
        self._num_outages = 0

    def check(self, credential: str) -> None:
        """Raise ``SourceUnavailableError`` while the pause lasts."""
        if credential != self._credential:
            self.reset()
        wait_s = self._until - self._clock()
        if wait_s > 0:
            raise SourceUnavailableError(
                f"the login to Vault has failed, the next is tried in {wait_s:.0f} s"
            )

    def fail(self, credential: str, *, is_refused: bool) -> float:
        """Start a pause; its seconds."""
        self._credential = credential
        if is_refused:
            waits_s, index = self._refused_waits_s, self._num_refused
            self._num_refused += 1
        else:
            waits_s, index = OUTAGE_WAITS_S, self._num_outages
            self._num_outages += 1
        wait_s = waits_s[min(index, len(waits_s) - 1)]
        self._until = self._clock() + wait_s
        return wait_s
