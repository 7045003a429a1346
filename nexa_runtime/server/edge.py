"""The edge: what a connection may cost before it is a request, and after its answer is written.

Owns the deadlines of a connection (the head of a request must arrive, an answer must be taken), how many may
be open, and what is answered to what is no HTTP. It never reads bodies (``body``) nor asks who it is
(``auth``). ``app`` puts it under uvicorn, which has none of this.

Deliberate: a request beyond the cap is read and answered as any other, with 503 and the end of its
connection, so that clients find the usual error and a supervisor still finds ``/health``. Only ``_RESERVE``
connections may be in that state; what comes then is told at once, and may not read it if it talks first.

Deliberate: whether a client takes its answer is seen by what lies unsent on its connection, whoever wrote it.
Nothing more is written while that is over asyncio's 64 KiB (512 KiB with TLS), so a slow reader holds no more
than that, or than one whole body.
"""

import asyncio
import errno
import http
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from nexa_runtime.config import ServerSettings
from nexa_runtime.errors import ConnectionLimitError, HeaderTimeoutError, InvalidRequestError, NexaError
from nexa_runtime.server.errors import error_response
from nexa_runtime.telemetry import get_logger

LEAST_BYTES_PER_S = 1024
"""Who takes less of an answer, over the whole of ``NEXA_SEND_TIMEOUT_S``, is dropped."""

_RESERVE = 32
"""Connections beyond the cap that are still read."""

_ALWAYS_ANSWERED = frozenset({"/health", "/readyz", "/metrics"})

_BEYOND_CAP = "is_beyond_cap"
"""In the state of requests on connections beyond the cap."""

_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_LOG_EVERY_S = 60.0

_log = get_logger("server")


class Listener(socket.socket):
    """A listening socket whose server survives that the process has no file descriptor left.

    asyncio pauses for a second then, but first tries as often as its backlog is long, with a line in the log
    and a timer each time. Here the second try finds nobody. Connections wait in the kernel meanwhile.
    """

    _is_pausing = False
    _logged_at = -_LOG_EVERY_S

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection. Raises as ``socket.accept``."""
        if self._is_pausing:
            self._is_pausing = False
            raise BlockingIOError
        try:
            return super().accept()
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:
                self._is_pausing = True
                if time.monotonic() - self._logged_at >= _LOG_EVERY_S:
                    self._logged_at = time.monotonic()
                    _log.warning("descriptors_exhausted", reason=error.strerror)
            raise


def on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's handler: what ``Listener`` has said already is not said again."""
    error = context.get("exception")
    if not (isinstance(error, OSError) and error.errno in _NO_DESCRIPTOR and "socket" in context):
        loop.default_exception_handler(context)


class EdgeMiddleware:
    """Refuses requests beyond the cap, and ends connections that the server wants no more requests on."""

    def __init__(self, app: ASGIApp, *, max_connections: int, is_draining: Callable[[], bool]) -> None:
        self._app = app
        self._max_connections = max_connections
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_beyond = _BEYOND_CAP in scope["state"]

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        if is_beyond and scope["path"] not in _ALWAYS_ANSWERED:
            refusal = error_response(ConnectionLimitError(self._max_connections), scope)
            await refusal(scope, receive, send_last)
        else:
            is_last = is_beyond or self._is_draining()
            await self._app(scope, receive, send_last if is_last else send)


def edge_protocol(settings: ServerSettings, on_refusal: Callable[[str], None]) -> type[asyncio.Protocol]:
    """The class that uvicorn makes one of for each connection. ``on_refusal`` gets the code of each error
    that is answered without a request.
    """

    class Configured(EdgeProtocol):
        edge = settings
        note_refusal = staticmethod(on_refusal)

    return Configured


class EdgeProtocol(H11Protocol):
    """A connection with deadlines."""

    edge: ServerSettings
    note_refusal: Callable[[str], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._has_received = False
        self._taking_timer: asyncio.TimerHandle | None = None
        self._unsent_bytes: int | None = None
        """What lay unsent at the last look; None if more was written since."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        num_connections, most = len(self.connections), self.edge.max_connections
        if num_connections > most + _RESERVE:
            self._refuse(ConnectionLimitError(most))
            return
        if num_connections > most:
            self.app_state = self.app_state | {_BEYOND_CAP: True}
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._taking_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_received = True
        if self._head_timer is None and not self._is_answering:
            self._await_head()
        super().data_received(data)
        if self._is_answering:
            self._cancel_head_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._watch_taking()
        if self.cycle.more_body and not self._is_answering:
            self._await_head()  # the rest of a body that was refused is read and dropped, but not for ever

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequestError("This is not HTTP/1.1 as this server reads it."))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_taking()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unsent_bytes = None

    @property
    def _is_answering(self) -> bool:
        """Whether the head of a request is here, and its answer is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    # A head must arrive.

    def _await_head(self) -> None:
        self._cancel_head_timer()
        self._head_timer = self.loop.call_later(self.edge.header_timeout_s, self._miss_head)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _miss_head(self) -> None:
        """To who has begun a request it is said; who has not, or still sends an old body, expects nothing."""
        is_head = self.cycle is None or not self.cycle.more_body
        if self._has_received and is_head:
            self._refuse(HeaderTimeoutError(self.edge.header_timeout_s))
        else:
            self.transport.close()

    # An answer must be taken.

    def _watch_taking(self) -> None:
        """From now on look at what lies unsent, until nothing does."""
        if self._taking_timer is not None:
            self._taking_timer.cancel()
        self._unsent_bytes = self.transport.get_write_buffer_size()
        self._taking_timer = self.loop.call_later(self.edge.send_timeout_s, self._look)

    def _look(self) -> None:
        before, now = self._unsent_bytes, self.transport.get_write_buffer_size()
        least = LEAST_BYTES_PER_S * self.edge.send_timeout_s
        if before is not None and now > 0 and before - now < least:
            _log.info("slow_reader_dropped", unsent_bytes=now)
            self.transport.abort()
        elif now:
            self._watch_taking()
            if self._is_answering and not self.flow.write_paused:
                self._unsent_bytes = None  # a stream may still write

    def _refuse(self, error: NexaError) -> None:
        """Answer without a request, as far as an answer is still possible, and end the connection."""
        if not self.transport.is_closing() and not (self._is_answering and self.cycle.response_started):
            self.note_refusal(error.code)
            response = error_response(error, {"path": "", "state": {}})
            phrase = http.HTTPStatus(response.status_code).phrase
            head = [
                f"HTTP/1.1 {response.status_code} {phrase}".encode(),
                *(name + b": " + value for name, value in response.raw_headers),
                f"x-request-id: req_{uuid.uuid4().hex}".encode(),
                b"connection: close",
            ]
            self.transport.write(b"\r\n".join(head) + b"\r\n\r\n" + bytes(response.body))
        self.transport.close()
