"""What SIGHUP makes a running server read again: log level, catalog, tenants file.

Owns the signal, and that what is no good changes nothing: the last good version holds and the log says why.
Lives on the event loop; files are read in worker threads. ``app`` starts and stops it.

The request log needs no signal: it looks whether its file was moved before each write. Limits from Vault need
none either: they are asked for again each minute.

Deliberate: whoever started the server in a terminal and closes that sends the same signal, and means to end
it.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from anyio.to_thread import run_sync

from nexa_runtime.config import Settings, load_log_settings
from nexa_runtime.errors import ConfigError, NexaError
from nexa_runtime.serving.library import Library
from nexa_runtime.serving.pulling import Puller
from nexa_runtime.store.catalog import Catalog
from nexa_runtime.telemetry import get_logger, set_level
from nexa_runtime.tenancy.directory import TenantDirectory
from nexa_runtime.tenancy.file_source import load_tenants_file

ReadT = TypeVar("ReadT")

_log = get_logger("server.reload")


class Reloader:
    """``start`` and ``stop`` with the application; in between each SIGHUP reads everything once."""

    def __init__(
        self, library: Library, puller: Puller, directory: TenantDirectory, settings: Settings
    ) -> None:
        self._library = library
        self._puller = puller
        self._directory = directory
        self._catalog_file = _path(settings.store.catalog_file)
        self._tenants_file = _path(settings.tenancy.tenants_file)
        self._wanted = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._has_terminal = os.isatty(0)

    def start(self) -> None:
        """Listen for the signal, where this is the thread that gets it."""
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())
        if threading.current_thread() is threading.main_thread():
            self._loop.add_signal_handler(signal.SIGHUP, self._on_hangup)

    def stop(self) -> None:
        """Listen no longer."""
        assert self._loop is not None
        assert self._task is not None
        self._task.cancel()
        if threading.current_thread() is threading.main_thread():
            self._loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it must not cut what is still to be done

    def ask(self) -> None:
        """Read everything again soon; one more time if that is being done. Any thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._wanted.set)

    def _on_hangup(self) -> None:
        if self._has_terminal and not os.isatty(0):
            signal.raise_signal(signal.SIGTERM)
        else:
            self.ask()

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._reload()
            except Exception:  # noqa: BLE001 - the next signal may find it mended
                _log.exception("reload_crashed")

    async def _reload(self) -> None:
        level = await _read("log level", lambda: load_log_settings().level)
        if level is not None:
            set_level(level)
        catalog = await _read("catalog", lambda: Catalog.load(self._catalog_file))
        if catalog is not None:
            self._library.use_catalog(catalog)
            self._puller.use_catalog(catalog)
        tenants = await self._reload_tenants()
        _log.info(
            "reloaded",
            log_level=level,
            catalog_models=None if catalog is None else len(catalog.specs()),
            tenants=tenants,
        )

    async def _reload_tenants(self) -> int | None:
        """How many the file has; None without a file, or if it is no good."""
        path = self._tenants_file
        if path is None:
            return None
        tenants = await _read("tenants file", lambda: load_tenants_file(path))
        if tenants is None:
            return None
        for tenant in self._directory.known():
            with suppress(NexaError):  # it has said in the log what is wrong with that tenant
                await self._directory.refresh(tenant.id)
        return len(tenants)


async def _read(what: str, read: Callable[[], ReadT]) -> ReadT | None:
    """What ``read`` gives; None if it is no good, and then the log says why."""
    try:
        return await run_sync(read)
    except ConfigError as error:
        _log.warning("reload_rejected", what=what, reason=str(error))
        return None


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name).expanduser()
