"""uvicorn under the application, from the first signal to the end of the process.

Owns how the server ends: in which order, how long each part may take, and what a second signal does. ``app``
says what there is to end, ``edge`` what a connection may cost. ``cli`` and tests run a ``Server``.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from nexa_runtime import exit_codes
from nexa_runtime.config import ServerSettings
from nexa_runtime.server.app import App
from nexa_runtime.server.edge import edge_protocol, on_loop_error
from nexa_runtime.telemetry import flush_stderr, get_logger

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_KEEP_ALIVE_S = 75
"""Longer than the idle time of the usual proxies and client pools, so that they close first."""

_GRACEFUL_S = 3
"""After every request has ended, how long clients may take to read the rest."""

_CUT_S = 2.0
"""After a second signal the process ends within this time, whatever hangs."""

_POLL_S = 0.05

_log = get_logger("server")


class Server(uvicorn.Server):
    """Ends in steps: what runs is finished while new requests are refused, the rest is cut, then connections
    are closed. A second signal skips all waiting.
    """

    def __init__(self, app: App, settings: ServerSettings) -> None:
        password = settings.tls_key_password
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=edge_protocol(settings, app.metrics.note_refusal),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # whom to believe about addresses is for ``auth`` to say
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_GRACEFUL_S,
                ssl_certfile=settings.tls_cert,
                ssl_keyfile=settings.tls_key,
                ssl_keyfile_password=None if password is None else password.get_secret_value(),
            )
        )
        self._app = app
        self._drain_s = settings.drain_s
        self.was_cut_short = False
        """Whether a second signal has cut requests."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but does not raise the signal again at the end: that would print a traceback. After a
        signal the handlers stay: one that comes while the process ends is the second.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items() if not self.should_exit else ():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal asks for the end, the second for one without waiting."""
        if self.should_exit and not self.force_exit:
            self.force_exit = True
            logging.getLogger("uvicorn.error").disabled = True  # what it says about that is no news
            last_resort = threading.Timer(_CUT_S, _end_now)
            last_resort.daemon = True
            last_resort.start()
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(on_loop_error)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.drain()
        await self._wait_finished()
        await self._app.dispatcher.stop()
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves out what follows then, and records would be lost
            for task in self.server_state.tasks:
                task.cancel()
            await self.lifespan.shutdown()

    async def _wait_finished(self) -> None:
        """Until every admitted request has ended, ``NEXA_DRAIN_S`` are over, or a second signal came."""
        deadline = time.monotonic() + self._drain_s
        num_open = self._app.dispatcher.num_open
        _log.info("draining", open_requests=num_open)
        while num_open and not self.force_exit and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
            num_open = self._app.dispatcher.num_open
        if num_open:
            self.was_cut_short = self.force_exit
            _log.warning("requests_cut", open_requests=num_open)


def _end_now() -> None:
    """The last resort after a second signal."""
    flush_stderr()
    os._exit(exit_codes.CUT_SHORT)
