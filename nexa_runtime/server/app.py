"""The application and the server around it.

Owns the composition: routes, middleware, start and end. ``cli`` makes an ``App`` and runs a ``Server``;
tests do the same.
"""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from nexa_runtime.config import ServerSettings, Settings
from nexa_runtime.errors import ConfigError, NexaError
from nexa_runtime.server.auth import Gate
from nexa_runtime.server.errors import on_http_error, on_nexa_error, status_of
from nexa_runtime.server.middleware import RequestMiddleware
from nexa_runtime.server.routes import (
    admin,
    console,
    docs,
    embed,
    generate,
    health,
    messages,
    models,
    ollama,
    rerank,
    responses,
    text,
)
from nexa_runtime.server.services import Services, State
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.embedding import EmbeddingService
from nexa_runtime.serving.generation_service import GenerationService
from nexa_runtime.serving.pool import ModelPool
from nexa_runtime.serving.pulling import Puller
from nexa_runtime.serving.reranking import RerankService
from nexa_runtime.serving.text import TextService
from nexa_runtime.store.hub import Hub
from nexa_runtime.tenancy.setup import Tenancy
from nexa_runtime.usage import Recorder

_PROBE_ID = "nexa-probe"
"""Asked for at the start, where there is no default tenant: any answer shows that limits can be read."""

_WATCH_S = 5.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_KEEP_ALIVE_S = 75
"""Longer than the idle time of the usual proxies and client pools, so that they close first."""

_GRACEFUL_S = 10
"""After the engine has ended every stream, how long clients may take to read the rest."""


_DOCS = (
    Route("/openapi.json", docs.openapi),
    Route("/docs", docs.docs),
    Route("/redoc", docs.redoc),
)
"""Where a key is configured, there is nothing at these paths."""


class App(Starlette):
    """The ASGI application. ``dispatcher`` and ``puller`` are ended before connections are closed."""

    def __init__(self, pool: ModelPool, tenancy: Tenancy, settings: Settings) -> None:
        self.recorder = Recorder()
        self.dispatcher = Dispatcher(
            pool, settings.serving, slots=settings.engine.slots, recorder=self.recorder, status_of=status_of
        )
        self.puller = Puller(pool.library.store, pool.library.catalog, Hub(settings.store))
        self._tenancy = tenancy
        gate = Gate(settings.access, tenancy)
        self._services = Services(
            gate,
            tenancy,
            self.dispatcher,
            GenerationService(self.dispatcher),
            EmbeddingService(self.dispatcher),
            self.puller,
            settings.server,
            RerankService(self.dispatcher),
            TextService(self.dispatcher),
        )
        super().__init__(
            routes=[
                Route("/v1/chat/completions", generate.chat_completions, methods=["POST"]),
                Route("/v1/completions", generate.completions, methods=["POST"]),
                Route("/v1/responses", responses.create_response, methods=["POST"]),
                Route("/v1/responses/{id}", responses.stored_response, methods=["GET", "DELETE"]),
                Route("/v1/messages", messages.create_message, methods=["POST"]),
                Route("/v1/messages/count_tokens", messages.count_tokens, methods=["POST"]),
                Route("/v1/embeddings", embed.embeddings, methods=["POST"]),
                Route("/v1/rerank", rerank.rerank, methods=["POST"]),
                Route("/v1/reranking", rerank.rerank, methods=["POST"]),
                Route("/rerank", rerank.rerank, methods=["POST"]),
                Route("/v1/chat/completions/input_tokens", text.count_chat_tokens, methods=["POST"]),
                Route("/apply-template", text.apply_template, methods=["POST"]),
                Route("/tokenize", text.tokenize, methods=["POST"]),
                Route("/detokenize", text.detokenize, methods=["POST"]),
                Route("/api/version", ollama.version),
                Route("/api/tags", ollama.tags),
                Route("/api/show", ollama.show, methods=["POST"]),
                Route("/v1/models", models.list_models),
                Route("/v1/models/{name:path}", models.get_model),
                Route("/admin/models", admin.list_models),
                Route("/admin/models/pull", admin.pull_model, methods=["POST"]),
                Route("/admin/models/{name:path}/load", admin.load_model, methods=["POST"]),
                Route("/admin/models/{name:path}/unload", admin.unload_model, methods=["POST"]),
                Route("/admin/tenants", admin.list_tenants),
                Route("/admin/tenants/{tenant_id}/config", admin.tenant_config),
                Route("/admin/tenants/{tenant_id}/refresh", admin.refresh_tenant, methods=["POST"]),
                Route("/admin/live", console.live),
                Route("/console", console.console),
                Route("/health", health.health),
                Route("/readyz", health.readyz),
                *(_DOCS if gate.is_open else ()),
            ],
            middleware=[Middleware(RequestMiddleware)],
            exception_handlers={NexaError: on_nexa_error, HTTPException: on_http_error},
            lifespan=self._lifespan,
        )
        self.router.redirect_slashes = False  # a redirect would go to whatever host the client named

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[State]:
        directory = self._tenancy.directory
        directory.on_change(self.dispatcher.update_tenant)
        self.recorder.start()
        self.dispatcher.start()
        tasks = [
            asyncio.create_task(directory.wait_answered(self._tenancy.default_id or _PROBE_ID)),
            asyncio.create_task(self._watch_limits()),
        ]
        try:
            yield {"services": self._services}
        finally:
            for task in tasks:
                task.cancel()
            await self.dispatcher.stop()
            await self.dispatcher.close()
            await self.recorder.close()
            await directory.close()

    async def _watch_limits(self) -> None:
        """Look at the limits of tenants that have something running: a change must not wait for a request."""
        while True:
            await asyncio.sleep(_WATCH_S)
            for tenant_id in self.dispatcher.admission.open_ids():
                with suppress(NexaError):
                    await self._tenancy.directory.resolve(tenant_id)


class Server(uvicorn.Server):
    """Ends generations and pulls before it waits for connections, so that each stream says why it ends."""

    def __init__(self, app: App, settings: ServerSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # whom to believe about addresses is for ``auth`` to say
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_GRACEFUL_S,
            )
        )
        self._app = app

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but does not raise the signal again at the end: that would print a traceback."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            # A second Ctrl-C cuts the shutdown short; what uvicorn then says about it is no news.
            logging.getLogger("uvicorn.error").disabled = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.puller.stop()
        await self._app.dispatcher.stop()
        await super().shutdown(sockets)


def bind(settings: ServerSettings) -> socket.socket:
    """A listening socket. Raises ``ConfigError`` when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError):
        raise ConfigError(f"NEXA_HOST is {settings.host[:100]!r}, which is no address here.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        place = f"{settings.host}:{settings.port}"
        raise ConfigError(
            f"Cannot listen on {place}: {error.strerror}. Choose another port with --port or NEXA_PORT."
        ) from None
    return listener
