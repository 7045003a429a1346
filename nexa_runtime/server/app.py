"""The application.

Owns the composition: routes, middleware, start and end of what they use. ``cli`` makes an ``App`` and runs it
in a ``lifecycle.Server``; tests do the same.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from nexa_runtime.config import MetricsSettings, ServerSettings, Settings
from nexa_runtime.errors import ConfigError, NexaError
from nexa_runtime.server.auth import Gate
from nexa_runtime.server.discovery import Registration
from nexa_runtime.server.edge import EdgeMiddleware, Listener
from nexa_runtime.server.errors import on_http_error, on_nexa_error, status_of
from nexa_runtime.server.metadata import About
from nexa_runtime.server.metrics import Metrics
from nexa_runtime.server.metrics_port import metrics_port
from nexa_runtime.server.middleware import RequestMiddleware
from nexa_runtime.server.readiness import Readiness
from nexa_runtime.server.reload import Reloader
from nexa_runtime.server.routes import (
    admin,
    console,
    docs,
    embed,
    generate,
    health,
    messages,
    metadata,
    metrics,
    models,
    ollama,
    rerank,
    responses,
    text,
)
from nexa_runtime.server.services import Services, State
from nexa_runtime.server.watchdog import Watchdog
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.embedding import EmbeddingService
from nexa_runtime.serving.generation_service import GenerationService
from nexa_runtime.serving.pool import ModelPool
from nexa_runtime.serving.pulling import Puller
from nexa_runtime.serving.reranking import RerankService
from nexa_runtime.serving.text import TextService
from nexa_runtime.store.store import state_dir
from nexa_runtime.tenancy.setup import Tenancy
from nexa_runtime.usage import Recorder
from nexa_runtime.usage.counts import RequestCounts
from nexa_runtime.usage.database import open_database_sink
from nexa_runtime.usage.request_log import open_request_log
from nexa_runtime.usage.totals import UsageTotals

_PROBE_ID = "nexa-probe"
"""Asked for at the start, where there is no default tenant: any answer shows that limits can be read."""

_WATCH_S = 5.0

_DOCS = (
    Route("/openapi.json", docs.openapi),
    Route("/docs", docs.docs),
    Route("/redoc", docs.redoc),
)
"""Where a key is configured, there is nothing at these paths."""


class App(Starlette):
    """The ASGI application. ``drain``, and then ``dispatcher``'s end, come before connections are closed."""

    def __init__(
        self,
        pool: ModelPool,
        tenancy: Tenancy,
        settings: Settings,
        metrics_listener: socket.socket | None = None,
    ) -> None:
        """``metrics_listener``: see ``bind_metrics``."""
        counts, totals = RequestCounts(pool.has_met), UsageTotals()
        database = open_database_sink(settings.usage_database, state_dir(settings.store) / "usage-spool")
        sinks = (counts, totals, open_request_log(settings.usage), database)
        self.recorder = Recorder([sink for sink in sinks if sink is not None])
        self.dispatcher = Dispatcher(
            pool, settings.serving, slots=settings.engine.slots, recorder=self.recorder, status_of=status_of
        )
        self.puller = Puller(pool.library.store, pool.library.catalog, settings.store)
        self.reloader = Reloader(pool.library, self.puller, tenancy.directory, settings)
        self._tenancy = tenancy
        self._watchdog = Watchdog(settings.health.step_limit_s)
        self._metrics_listener = metrics_listener
        gate = Gate(settings.access, tenancy)
        readiness = Readiness(self.dispatcher, tenancy.directory, self._watchdog)
        self.metrics = Metrics(counts, self.dispatcher, self.recorder, tenancy.directory, readiness)
        self._services = Services(
            gate=gate,
            tenancy=tenancy,
            dispatcher=self.dispatcher,
            generation=GenerationService(self.dispatcher),
            embedding=EmbeddingService(self.dispatcher),
            reranking=RerankService(self.dispatcher),
            text=TextService(self.dispatcher),
            puller=self.puller,
            settings=settings.server,
            readiness=readiness,
            about=About(pool, settings, is_open=gate.is_open),
            metrics=self.metrics,
            totals=totals,
        )
        self._registration = None
        if settings.discovery.etcd_url is not None:
            services = self._services
            self._registration = Registration(
                settings.server, settings.discovery, services.readiness, services.about.summary
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
                Route("/v1/metadata", metadata.metadata),
                Route("/v1/models", models.list_models),
                Route("/v1/models/{name:path}", models.get_model),
                Route("/admin/models", admin.list_models),
                Route("/admin/models/pull", admin.pull_model, methods=["POST"]),
                Route("/admin/models/{name:path}/load", admin.load_model, methods=["POST"]),
                Route("/admin/models/{name:path}/unload", admin.unload_model, methods=["POST"]),
                Route("/admin/tenants", admin.list_tenants),
                Route("/admin/tenants/{tenant_id}/config", admin.tenant_config),
                Route("/admin/tenants/{tenant_id}/refresh", admin.refresh_tenant, methods=["POST"]),
                Route("/admin/usage", admin.usage),
                Route("/admin/live", console.live),
                Route("/console", console.console),
                Route("/health", health.health),
                Route("/readyz", health.readyz),
                Route("/metrics", metrics.metrics),
                *(_DOCS if gate.is_open else ()),
            ],
            middleware=[
                *_cors(settings.server),
                Middleware(RequestMiddleware, on_end=self.metrics.note_answer),
                Middleware(
                    EdgeMiddleware,
                    max_connections=settings.server.max_connections,
                    is_draining=lambda: self.dispatcher.is_draining,
                ),
            ],
            exception_handlers={NexaError: on_nexa_error, HTTPException: on_http_error},
            lifespan=self._lifespan,
        )
        self.router.redirect_slashes = False  # a redirect would go to whatever host the client named

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[State]:
        """What starts last ends first, each whatever became of the others: sinks after the last request."""
        directory, dispatcher = self._tenancy.directory, self.dispatcher
        directory.on_change(dispatcher.update_tenant)
        async with AsyncExitStack() as ends:
            ends.callback(self._watchdog.stop)
            ends.push_async_callback(directory.close)
            ends.push_async_callback(self.recorder.close)
            self.recorder.start()
            ends.push_async_callback(dispatcher.close)
            ends.push_async_callback(dispatcher.stop)
            dispatcher.start()
            self._watchdog.start(dispatcher.engine)
            if self._registration is not None:
                ends.push_async_callback(self._registration.close)
                self._registration.start()
            for work in (
                directory.wait_answered(self._tenancy.default_id or _PROBE_ID),
                self._watch_limits(),
                self.metrics.watch_loop(),
            ):
                ends.callback(asyncio.create_task(work).cancel)
            self.reloader.start()
            ends.callback(self.reloader.stop)
            services = self._services
            await ends.enter_async_context(
                metrics_port(self.metrics, services.gate, self._metrics_listener, services.settings)
            )
            yield {"services": services}

    def drain(self) -> None:
        """Take nothing new. Requests go on; pulls end, for what came is kept."""
        self.dispatcher.drain()
        self.puller.stop()

    async def _watch_limits(self) -> None:
        """Look at the limits of tenants that have something running: a change must not wait for a request."""
        while True:
            await asyncio.sleep(_WATCH_S)
            for tenant_id in self.dispatcher.admission.open_ids():
                with suppress(NexaError):
                    await self._tenancy.directory.resolve(tenant_id)


def _cors(settings: ServerSettings) -> list[Middleware]:
    """Outermost, so that web pages can read every error; none where no page of another origin may ask."""
    if not settings.cors_origins:
        return []
    options = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=("*",),
    )
    return [options]


def bind(settings: ServerSettings) -> socket.socket:
    """A listening socket. Raises ``ConfigError`` when the address cannot be had."""
    return _bind(settings.host, settings.port, "--port or NEXA_PORT")


def bind_metrics(server: ServerSettings, settings: MetricsSettings) -> socket.socket | None:
    """The socket of ``metrics_port``; None where it is not asked for. Raises as ``bind``."""
    return None if settings.port is None else _bind(server.host, settings.port, "NEXA_METRICS_PORT")


def _bind(host: str, port: int, setting: str) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = Listener(family, kind, protocol)
    except (OSError, UnicodeError):
        raise ConfigError(f"NEXA_HOST is {host[:100]!r}, which is no address here.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Choose another port with {setting}."
        ) from None
    return listener
