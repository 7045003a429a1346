"""The life of the token that Vault is read with.

Owns when to log in, when to renew, when to log in again, and how long to pause after a failure. It reaches
Vault only through a ``Login`` and a callable that renews: it knows neither hvac nor HTTP, and never lets a
token or a credential into a log line or an error. ``vault`` calls it, from any thread.

Deliberate oddities:

1. The lock is held while a login or a renewal goes over the network: one login serves all who wait for it. No
   read is made under it, and while a renewal goes on the others use the token as it is.
2. Vault locks an AppRole out, for every box that uses it, after five refused logins without 15 minutes'
   pause between them. So a refused credential is tried three times, then only after a longer pause.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NoReturn, Protocol

from nexa_runtime.errors import SourceUnavailableError
from nexa_runtime.telemetry import get_logger

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
"""The same where Vault counts refusals (see 2)."""


class RefusedError(SourceUnavailableError):
    """Vault does not accept what was presented; to repeat it helps little and may do harm."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A token as Vault gave it; ``lease_s`` 0: it does not end."""

    token: str = field(repr=False)
    lease_s: float
    is_renewable: bool


class Login(Protocol):
    """One way to a token. ``method`` names it in the log.

    ``refused_waits_s``: pauses after refusals; empty where a login is never refused and cannot be repeated.
    """

    method: str
    refused_waits_s: tuple[float, ...]

    def credential(self) -> str:
        """What will be presented, read anew."""

    def log_in(self, credential: str) -> Grant:
        """Raises ``RefusedError``, or ``SourceUnavailableError`` when Vault gives no word."""


@dataclass(frozen=True, slots=True)
class Token:
    """The token in use. ``generation`` counts logins; times are the clock's."""

    grant: Grant
    generation: int
    renew_at: float
    ends_at: float

    def extended(self, lease_s: float, now: float) -> "Token":
        """The same token with a lease that begins now."""
        length_s = lease_s or math.inf
        return replace(self, renew_at=now + RENEW_AT * length_s, ends_at=now + length_s)


class TokenKeeper:
    """Keeps one token for all threads: logs in, renews, logs in again, and pauses after failures.

    ``renew``: asks Vault to begin the grant's lease anew; the seconds it gave. Raises as ``Login.log_in``.
    """

    def __init__(self, login: Login, renew: Callable[[Grant], float], clock: Clock) -> None:
        self._login = login
        self._renewal = renew
        self._clock = clock
        self._backoff = _Backoff(clock, login.refused_waits_s)
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._generation = 0
        self._futile = (0, -math.inf)

    def current(self) -> Token:
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

    def after_refusal(self, generation: int) -> Token:
        """A token of a later login than ``generation``, which Vault has forbidden to read."""
        if not self._login.refused_waits_s:
            self._forbid("Vault refuses the token given (403)")
        futile_generation, until = self._futile
        if generation == futile_generation and self._clock() < until:
            self._forbid("Vault forbids the read (403), and a new login did not help")
        return self._log_in_after(generation)

    def note_good(self) -> None:
        """A read has succeeded: if the token is refused one day, a login may help again."""
        self._futile = (0, -math.inf)

    def note_futile(self, generation: int) -> NoReturn:
        """A read was forbidden even after the login ``generation``: the policy is at fault, say so."""
        self._futile = (generation, self._clock() + FUTILE_S)
        self._forbid("Vault forbids the read (403), also after a new login")

    def _forbid(self, reason: str) -> NoReturn:
        _log.error("vault_forbidden", method=self._login.method, reason=reason)
        raise SourceUnavailableError(reason)

    def _log_in_after(self, generation: int) -> Token:
        """One login serves all who wait here; if it fails, the pause that follows ends their waiting."""
        with self._lock:
            if self._token is None or self._token.generation <= generation:
                self._token = None
                self._token = self._log_in()
            return self._token

    def _log_in(self) -> Token:
        credential = self._login.credential()
        self._backoff.check(credential)
        now = self._clock()
        try:
            grant = self._login.log_in(credential)
        except SourceUnavailableError as error:
            wait_s = self._backoff.fail(credential, is_refused=isinstance(error, RefusedError))
            _log.error("vault_login_failed", method=self._login.method, reason=error.reason, next_in_s=wait_s)
            raise
        self._backoff.reset()
        self._generation += 1
        _log.info("vault_login", method=self._login.method, lease_s=grant.lease_s)
        return Token(grant, self._generation, 0, 0).extended(grant.lease_s, now)

    def _renew(self, token: Token) -> Token:
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

    def _ask_renewal(self, grant: Grant) -> float | None:
        """The lease that Vault gives now; None where it gives none."""
        if not grant.is_renewable:
            return None
        try:
            return self._renewal(grant)
        except RefusedError as error:
            _log.warning("vault_renewal_refused", reason=error.reason)
            return None


class _Backoff:
    """How long no login is tried after one that failed. A credential not tried before may go at once."""

    def __init__(self, clock: Clock, refused_waits_s: tuple[float, ...]) -> None:
        self._clock = clock
        self._refused_waits_s = refused_waits_s
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
