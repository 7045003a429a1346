"""``/metrics`` on a port of its own, without a key: for a Prometheus inside the same network.

Owns that listener and nothing else. It lives on the application's event loop, from its start until every
other connection is closed, so that the end can be watched too. ``app`` starts it, ``cli`` opens its socket.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nexa_runtime.config import ServerSettings
from nexa_runtime.errors import NexaError
from nexa_runtime.server.auth import Gate
from nexa_runtime.server.edge import edge_protocol
from nexa_runtime.server.errors import on_http_error, on_nexa_error
from nexa_runtime.server.metrics import Metrics
from nexa_runtime.server.middleware import RequestMiddleware
from nexa_runtime.server.routes.metrics import scraped
from nexa_runtime.telemetry import get_logger

_KEEP_ALIVE_S = 75
"""Longer than the usual time between two scrapes."""
_GRACEFUL_S = 1

_log = get_logger("server")


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are the application's."""
        yield


@asynccontextmanager
async def metrics_port(
    metrics: Metrics, gate: Gate, listener: socket.socket | None, settings: ServerSettings
) -> AsyncIterator[None]:
    """While inside, ``listener`` answers, if there is one. ``gate``: where clients may come from;
    ``settings``: what each of their connections may cost, as on the other port.
    """
    if listener is None:
        yield
        return

    async def answer(request: Request) -> Response:
        gate.check_reader(request)
        return await scraped(request, metrics)

    app = Starlette(
        routes=[Route("/metrics", answer)],
        middleware=[Middleware(RequestMiddleware, on_end=lambda scope, status: None)],
        exception_handlers={NexaError: on_nexa_error, HTTPException: on_http_error},
    )
    _log.info("metrics_port", port=listener.getsockname()[1])
    server = _Server(
        uvicorn.Config(
            app,
            http=edge_protocol(settings, metrics.note_refusal),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACEFUL_S,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving
