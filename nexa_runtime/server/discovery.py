"""Registers the server in etcd, where gateways look for it.

Owns one key, ``/nexus/services/<name>/<host:port>``, and the lease it hangs on: set while the server is
ready, gone as soon as it is not or begins to drain, and ``LEASE_S`` after the process was killed. An etcd
that is away harms nothing: it is asked again, and the key is set anew in whatever comes back. ``app`` starts
and closes it with the application.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

import anyio
import orjson

from nexa_runtime.config import DiscoverySettings, ServerSettings
from nexa_runtime.errors import ConfigError, DiscoveryError
from nexa_runtime.server.etcd import Etcd, parse_addresses
from nexa_runtime.server.readiness import Readiness
from nexa_runtime.telemetry import get_logger

PREFIX = "/nexus/services"
LEASE_S = 15
"""A gateway sends requests to a server that was killed for so long."""

_CHECK_S = 0.5
"""How often the server looks whether it is ready."""
_RETRY_S = 2.0
"""After a failure etcd is asked again this much later."""
_WITHDRAW_S = 2.0
"""A server that ends waits for etcd no longer."""

_EVERYWHERE = ("0.0.0.0", "::", "")

_log = get_logger("server.discovery")


def base_url(server: ServerSettings, discovery: DiscoverySettings) -> str:
    """Where others reach this server. Raises ``ConfigError`` where only its owner can tell."""
    if discovery.public_url is not None:
        if "@" in urlsplit(discovery.public_url).netloc:
            raise ConfigError("NEXA_PUBLIC_URL has a user or a password, and everyone reads it in etcd.")
        return discovery.public_url.rstrip("/")
    if server.host in _EVERYWHERE or server.port == 0:
        place = f"{server.host}:{server.port}"
        raise ConfigError(f"NEXA_ETCD_URL is set and {place} is no address for others: set NEXA_PUBLIC_URL.")
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"http://{host}:{server.port}"


class Registration:
    """``describe``: what the value says besides the addresses, asked for when the key is set."""

    def __init__(
        self,
        server: ServerSettings,
        discovery: DiscoverySettings,
        readiness: Readiness,
        describe: Callable[[], Mapping[str, object]],
    ) -> None:
        assert discovery.etcd_url is not None
        self._url = base_url(server, discovery)
        self._name = discovery.service_name
        self._instance = urlsplit(self._url).netloc
        self._readiness = readiness
        self._describe = describe
        self._etcd = Etcd(parse_addresses(discovery.etcd_url.get_secret_value()))
        self._lease: str | None = None
        self._renewed_at = 0.0
        self._is_failing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def key(self) -> str:
        """The key in etcd."""
        return f"{PREFIX}/{self._name}/{self._instance}"

    def start(self) -> None:
        """Register as soon as the server is ready."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Withdraw, if etcd answers soon, and register no more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        with anyio.move_on_after(_WITHDRAW_S):
            try:
                await self._withdraw()
            except DiscoveryError as error:
                _log.warning("etcd_unavailable", reason=str(error))
        await self._etcd.close()

    async def _run(self) -> None:
        while True:
            try:
                await self._settle()
                self._is_failing = False
            except DiscoveryError as error:
                if not self._is_failing:
                    _log.warning("etcd_unavailable", reason=str(error))
                self._is_failing = True
            except Exception:  # noqa: BLE001 - the next time it may go well
                if not self._is_failing:
                    _log.exception("registration_crashed")
                self._is_failing = True
            await asyncio.sleep(_RETRY_S if self._is_failing else _CHECK_S)

    async def _settle(self) -> None:
        """Make etcd say what is so."""
        if not self._readiness.is_ready:
            await self._withdraw()
        elif self._lease is None:
            await self._register()
        elif time.monotonic() - self._renewed_at > LEASE_S / 3:
            await self._renew(self._lease)

    async def _register(self) -> None:
        value = {
            "name": self._name,
            "instance": self._instance,
            "base_url": self._url,
            "metadata_url": f"{self._url}/v1/metadata",
            **self._describe(),
        }
        self._lease = await self._etcd.grant(LEASE_S)  # known from now on, to be revoked whatever happens
        try:
            await self._etcd.put(self.key, orjson.dumps(value), self._lease)
        except DiscoveryError:
            self._lease = None
            raise
        self._renewed_at = time.monotonic()
        _log.info("registered", key=self.key, etcd=self._etcd.urls[0])

    async def _renew(self, lease: str) -> None:
        if await self._etcd.keep_alive(lease):
            self._renewed_at = time.monotonic()
            return
        _log.warning("lease_lost", key=self.key)
        self._lease = None
        await self._register()

    async def _withdraw(self) -> None:
        if self._lease is None:
            return
        await self._etcd.revoke(self._lease)
        self._lease = None
        _log.info("withdrawn", key=self.key)
