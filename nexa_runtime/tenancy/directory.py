"""Which tenants there are and what they may do, as far as this box knows at the moment.

Owns the cache of limits and the rule of how old it may be (``judge``). It asks a ``LimitsSource`` in worker
threads, one question per tenant at a time, and never waits for it longer than ``FETCH_TIMEOUT_S``. Lives on
the event loop. ``server/auth`` resolves tenants here, ``server/routes/admin`` shows and refreshes them.
"""

import asyncio
import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from itertools import count
from typing import assert_never

import anyio
from anyio.to_thread import run_sync

from nexa_runtime.errors import (
    SourceUnavailableError,
    TenantConfigInvalidError,
    TenantConfigUnavailableError,
    TenantUnknownError,
)
from nexa_runtime.telemetry import get_logger
from nexa_runtime.tenancy.source import LimitsSource, Secret
from nexa_runtime.tenancy.source_health import SourceHealth, SourceWatch
from nexa_runtime.tenancy.tenant import Limits, Tenant, parse_limits

STALE_S = 15 * 60.0
"""How long the last good word holds while the source gives none."""
RETRY_S = 5.0
"""After a failure the source is asked about that tenant again this much later."""
UNKNOWN_S = 20.0
"""How long "there is no such tenant" is believed."""
FETCH_TIMEOUT_S = 2.8
"""A request never waits longer than this for the source."""
MAX_UNKNOWN = 4096
"""Ids remembered that do not exist."""
MAX_NEW_PER_S = 20.0
MAX_NEW_BURST = 200.0
"""Questions about ids never seen before: a burst, then a rate. So guessing ids costs the source little."""

_NUM_THREADS = 8
_JITTER = 0.2

_log = get_logger("tenancy.directory")

Clock = Callable[[], float]


class Verdict(Enum):
    """What to do with what is known of a tenant."""

    USE = "use"
    FETCH = "fetch"
    USE_AND_FETCH = "use and fetch"
    REFUSE = "refuse"


def judge(age_s: float | None, failed_s: float | None, *, fresh_s: float) -> Verdict:
    """The staleness rule.

    ``age_s``: seconds since the source last gave its word on the tenant; None: never. ``failed_s``: seconds
    since it was asked in vain after that; None: it was not. What is fresh is used. What is not is asked for,
    and the request waits; but once asking has failed, the old word holds for ``STALE_S`` in all, and asking
    again goes on beside the requests. Without a word that may be used, asking is tried every ``RETRY_S``.
    """
    if age_s is not None and age_s <= fresh_s:
        return Verdict.USE
    if failed_s is None:
        return Verdict.FETCH
    if age_s is not None and age_s <= STALE_S:
        return Verdict.USE if failed_s < RETRY_S else Verdict.USE_AND_FETCH
    return Verdict.REFUSE if failed_s < RETRY_S else Verdict.FETCH


@dataclass(slots=True)
class _Entry:
    """What is known of one tenant. ``tenant``: the last good version; ``problems``: why a newer is none."""

    tenant: Tenant | None = None
    problems: tuple[str, ...] = ()
    heard_at: float | None = None
    failed_at: float | None = None
    jitter: float = 1.0
    unknown_keys: tuple[str, ...] = ()
    era: int = 0


class _Bucket:
    """``MAX_NEW_BURST`` tokens, and ``MAX_NEW_PER_S`` more each second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tokens = MAX_NEW_BURST
        self._at = clock()

    def take(self) -> bool:
        """Take one, if there is one."""
        now = self._clock()
        self._tokens = min(self._tokens + (now - self._at) * MAX_NEW_PER_S, MAX_NEW_BURST)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class TenantDirectory:
    """``source``: None for a box where everyone is one tenant without limits."""

    def __init__(self, source: LimitsSource | None, clock: Clock = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._flights: dict[str, asyncio.Task[None]] = {}
        self._threads = anyio.CapacityLimiter(_NUM_THREADS)
        self._unlimited = anyio.CapacityLimiter(math.inf)
        self._named = _Bucket(clock)
        self._claims = _Bucket(clock)
        """Apart, so that whoever guesses keys does not keep new tenants out."""
        self._eras = count(1)
        self._listeners: list[Callable[[Tenant], None]] = []
        self._watch = SourceWatch()

    @property
    def has_answered(self) -> bool:
        """Whether the source has ever given an answer; without a source there is nothing to wait for."""
        return self._source is None or self._source.has_answered

    @property
    def health(self) -> SourceHealth | None:
        """How the source does; None without one."""
        return None if self._source is None else self._watch.health(self._source.name, self._clock())

    def on_change(self, listener: Callable[[Tenant], None]) -> None:
        """``listener`` is called, on the event loop, with each new version of a tenant."""
        self._listeners.append(listener)

    async def resolve(self, tenant_id: str, *, is_claim: bool = False) -> Tenant:
        """The tenant of a valid id. ``is_claim``: nobody has shown yet that the id is theirs to name.

        Raises ``TenantUnknownError``, ``TenantConfigInvalidError``, ``TenantConfigUnavailableError``.
        """
        if self._source is None:
            return Tenant(tenant_id, Limits(), "default", "")
        if self._is_known_unknown(tenant_id):
            raise TenantUnknownError(tenant_id)
        verdict = self._judge(tenant_id)
        match verdict:
            case Verdict.USE | Verdict.REFUSE:
                pass
            case Verdict.USE_AND_FETCH:
                self._fly(tenant_id)
            case Verdict.FETCH:
                self._check_new(tenant_id, self._claims if is_claim else self._named)
                await asyncio.shield(self._fly(tenant_id))
            case _:
                assert_never(verdict)
        return self._answer(tenant_id)

    async def refresh(self, tenant_id: str) -> Tenant:
        """Ask the source now, whatever is known.

        Raises as ``resolve``, and ``TenantConfigUnavailableError`` whenever the source gives no word.
        """
        if self._source is None:
            return await self.resolve(tenant_id)
        if (flight := self._flights.get(tenant_id)) is not None:
            await asyncio.shield(flight)  # it may have begun before the change that the caller means
        self._unknown.pop(tenant_id, None)
        await asyncio.shield(self._fly(tenant_id))
        entry = self._entries.get(tenant_id)
        if entry is not None and entry.failed_at is not None:
            raise TenantConfigUnavailableError(tenant_id)
        return self._answer(tenant_id)

    def age_s(self, tenant_id: str) -> float | None:
        """Seconds since the source gave its last word on a tenant."""
        entry = self._entries.get(tenant_id)
        return None if entry is None or entry.heard_at is None else self._clock() - entry.heard_at

    def known(self) -> list[Tenant]:
        """Tenants with a version in force, as far as they were asked for."""
        return [entry.tenant for entry in self._entries.values() if entry.tenant is not None]

    async def wait_answered(self, probe_id: str) -> None:
        """Ask the source until it gives any answer: then the box knows that it can. Cancel it to stop."""
        while not self.has_answered:
            await asyncio.shield(self._fly(probe_id))
            if not self.has_answered:
                await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """Let go of the source."""
        for flight in list(self._flights.values()):
            flight.cancel()
        if self._source is not None:
            await run_sync(self._source.close)

    def _judge(self, tenant_id: str) -> Verdict:
        assert self._source is not None
        entry = self._entries.get(tenant_id)
        if entry is None:
            return Verdict.FETCH
        now = self._clock()
        return judge(
            None if entry.heard_at is None else now - entry.heard_at,
            None if entry.failed_at is None else now - entry.failed_at,
            fresh_s=self._source.fresh_s * entry.jitter,
        )

    def _answer(self, tenant_id: str) -> Tenant:
        entry = self._entries.get(tenant_id)
        if entry is None:
            raise TenantUnknownError(tenant_id)
        self._entries.move_to_end(tenant_id)
        age_s = self.age_s(tenant_id)
        if age_s is None or (entry.failed_at is not None and age_s > STALE_S):
            raise TenantConfigUnavailableError(tenant_id)
        if entry.tenant is None:
            raise TenantConfigInvalidError(tenant_id, entry.problems)
        return entry.tenant

    def _is_known_unknown(self, tenant_id: str) -> bool:
        assert self._source is not None
        seen_at = self._unknown.get(tenant_id)
        return seen_at is not None and self._clock() - seen_at <= min(UNKNOWN_S, self._source.fresh_s)

    def _check_new(self, tenant_id: str, bucket: "_Bucket") -> None:
        """Pay for a question about an id that was never heard of. Raises ``TenantConfigUnavailableError``."""
        entry = self._entries.get(tenant_id)
        is_known = entry is not None and entry.heard_at is not None
        if not is_known and tenant_id not in self._flights and not bucket.take():
            raise TenantConfigUnavailableError(tenant_id)

    def _fly(self, tenant_id: str) -> asyncio.Task[None]:
        """The one question about a tenant that is under way, begun now if there is none. It never raises."""
        flight = self._flights.get(tenant_id)
        if flight is None:
            flight = self._flights[tenant_id] = asyncio.create_task(self._fetch(tenant_id))
            flight.add_done_callback(lambda _: self._flights.pop(tenant_id, None))
        return flight

    async def _fetch(self, tenant_id: str) -> None:
        source = self._source
        assert source is not None
        try:
            with anyio.fail_after(FETCH_TIMEOUT_S):
                secret = await self._ask(source, tenant_id)
        except (SourceUnavailableError, TimeoutError) as error:
            self._note_failure(tenant_id, str(error) or "it took too long")
        except Exception as error:  # noqa: BLE001 - a bug in a source must not look like a revocation
            _log.exception("source_crashed", tenant=tenant_id)
            self._note_failure(tenant_id, type(error).__name__)
        else:
            self._watch.note_answer(self._clock())
            if secret is None:
                self._forget(tenant_id)
            else:
                self._take(tenant_id, secret)

    async def _ask(self, source: LimitsSource, tenant_id: str) -> Secret | None:
        """One question in a worker thread. A thread that is not waited for any more keeps its place until it
        ends: a source that drips answers cannot pile threads up.
        """
        loop = asyncio.get_running_loop()
        borrower = object()
        await self._threads.acquire_on_behalf_of(borrower)

        def work() -> Secret | None:
            try:
                return source.fetch(tenant_id)
            finally:
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self._threads.release_on_behalf_of, borrower)

        return await run_sync(work, limiter=self._unlimited, abandon_on_cancel=True)

    def _note_failure(self, tenant_id: str, reason: str) -> None:
        self._watch.note_failure()
        entry = self._entries.get(tenant_id)
        if entry is None:
            entry = self._entries[tenant_id] = _Entry()
            self._drop_strangers()
        entry.failed_at = self._clock()
        _log.warning("limits_unavailable", tenant=tenant_id, reason=reason)

    def _drop_strangers(self) -> None:
        """Ids that failed and were never heard of are not kept without bound."""
        strangers = [name for name, entry in self._entries.items() if entry.heard_at is None]
        for name in strangers[: max(len(strangers) - MAX_UNKNOWN, 0)]:
            del self._entries[name]

    def _forget(self, tenant_id: str) -> None:
        """The source says that there is no such tenant: that holds at once."""
        if self._entries.pop(tenant_id, None) is not None:
            _log.info("tenant_gone", tenant=tenant_id)
        self._unknown[tenant_id] = self._clock()
        self._unknown.move_to_end(tenant_id)
        while len(self._unknown) > MAX_UNKNOWN:
            self._unknown.popitem(last=False)

    def _take(self, tenant_id: str, secret: Secret) -> None:
        assert self._source is not None
        self._unknown.pop(tenant_id, None)
        entry = self._entries.setdefault(tenant_id, _Entry())
        entry.heard_at, entry.failed_at = self._clock(), None
        entry.jitter = random.uniform(1 - _JITTER, 1 + _JITTER)
        parsed = parse_limits(secret.values)
        if parsed.unknown_keys != entry.unknown_keys:
            entry.unknown_keys = parsed.unknown_keys
            _log.warning("unknown_keys", tenant=tenant_id, keys=list(parsed.unknown_keys[:20]))
        if parsed.problems != entry.problems:
            entry.problems = parsed.problems
            if parsed.problems:
                _log.warning("limits_invalid", tenant=tenant_id, problems=list(parsed.problems))
        if parsed.limits is None:
            if entry.tenant is not None:
                entry.tenant = replace(
                    entry.tenant, problems=parsed.problems, unknown_keys=parsed.unknown_keys
                )
            return
        entry.era = entry.era or next(self._eras)
        tenant = Tenant(
            tenant_id,
            parsed.limits,
            self._source.name,
            secret.version,
            unknown_keys=parsed.unknown_keys,
            era=entry.era,
        )
        is_new = entry.tenant is None or entry.tenant.limits != tenant.limits
        entry.tenant = tenant
        if is_new:
            _log.info("limits_in_force", tenant=tenant_id, source=tenant.source, version=tenant.version)
            for listener in self._listeners:
                listener(tenant)
