"""The border between the event loop and the engine threads.

Owns the worker threads that prepare prompts, the way of each step's news to whoever waits for it, and that
nobody is let in once it stops. Lives on one event loop. ``generation`` and ``embedding`` use it;
``server`` and ``cli`` start and stop it.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

from nexa_runtime.config import ServingSettings
from nexa_runtime.engine.engine import News
from nexa_runtime.engine.generation_lane import Delta, GenerationRequest
from nexa_runtime.engine.sequence import TenantShare, Tokens
from nexa_runtime.errors import ModelNotAllowedError, ShuttingDownError
from nexa_runtime.llama import SamplingParams
from nexa_runtime.serving.pool import Kind, LoadedModel, ModelPool
from nexa_runtime.serving.tenants import PUBLIC_TENANT_ID, is_allowed, share_of
from nexa_runtime.telemetry import get_logger
from nexa_runtime.tenancy.admission import Admission, Ticket
from nexa_runtime.tenancy.tenant import Tenant

_log = get_logger("serving")

ResultT = TypeVar("ResultT")

_NUM_PROMPT_THREADS = 4


class Dispatcher:
    """``start`` before the first request, ``stop`` and ``close`` after the last."""

    def __init__(self, pool: ModelPool, settings: ServingSettings) -> None:
        self.pool = pool
        self.settings = settings
        self.admission = Admission(max_queue=settings.max_queue)
        self._receivers: dict[int, Callable[[News], None]] = {}
        self._unready: set[int] = set()
        """Keys of public prefixes that are still computed."""
        self._is_stopping = False
        self._threads = anyio.CapacityLimiter(_NUM_PROMPT_THREADS)

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        if self._is_stopping or self._unready:
            return False
        return all(model.engine.is_alive for model in self.pool.models())

    @property
    def num_open(self) -> int:
        """Sequences and embedding requests that are not closed."""
        return self.admission.num_open

    def start(self) -> None:
        """Start the engines; their news come to the running event loop."""
        loop = asyncio.get_running_loop()

        def publish(news: list[News]) -> None:
            loop.call_soon_threadsafe(self._dispatch, news)

        for model in self.pool.models():
            model.engine.start(publish)
            for prefix in model.public_prefixes:
                self._compute_public(model, prefix)

    async def stop(self) -> None:
        """End every request with ``ShuttingDownError`` and take no more. A second call does nothing."""
        self._is_stopping = True
        await run_sync(self.pool.stop)

    async def close(self) -> None:
        """After ``stop``: free the models, once no worker thread uses them any more."""
        for _ in range(_NUM_PROMPT_THREADS):
            await self._threads.acquire_on_behalf_of(object())
        await run_sync(self.pool.close)

    def admit(self, tenant: Tenant, count: int) -> Ticket:
        """Let a request of ``count`` sequences in, or raise what ``Admission.admit`` does.

        Raises ``ShuttingDownError`` too. The ticket is settled once, whatever becomes of the request.
        """
        if self._is_stopping:
            raise ShuttingDownError
        return self.admission.admit(tenant, slots=self.pool.default.slots, count=count)

    def resolve(self, tenant: Tenant, name: str | None, kind: Kind) -> tuple[LoadedModel, str]:
        """The model that a request gets, and the name it is called by: the client's, the tenant's, or the
        default's.

        Raises ``ModelNotFoundError``, ``ModelKindError``, ``ModelNotAllowedError``.
        """
        wanted = name or tenant.limits.model_id
        model = self.pool.resolve(wanted, kind)
        if not is_allowed(tenant, model):
            raise ModelNotAllowedError(wanted or model.id)
        return model, wanted or model.id

    def update_tenant(self, tenant: Tenant) -> None:
        """New limits hold from the next step on."""
        for model in self.pool.models():
            model.engine.update_share(share_of(tenant, model))

    def _compute_public(self, model: LoadedModel, prefix: Tokens) -> None:
        """Compute a public prefix once; the engine keeps it."""
        key = model.engine.new_key()
        self._unready.add(key)

        def take(news: News) -> None:
            assert isinstance(news, Delta)
            if news.error is not None:
                _log.error("public_prefix_failed", reason=str(news.error))
            if news.finish_reason is not None:
                self._unready.discard(key)
                self.disconnect(key)

        self.connect(key, take)
        greedy = SamplingParams(temperature=0)
        request = GenerationRequest(
            prefix, 1, greedy, TenantShare(PUBLIC_TENANT_ID), PUBLIC_TENANT_ID, is_public=True
        )
        model.engine.submit(key, request)

    async def prepare(self, function: Callable[[], ResultT]) -> ResultT:
        """Run what renders and tokenizes in a worker thread."""
        return await run_sync(function, limiter=self._threads)

    def connect(self, key: int, receiver: Callable[[News], None]) -> None:
        """From now on ``receiver`` gets the news of ``key``, on the event loop."""
        self._receivers[key] = receiver

    def disconnect(self, key: int) -> None:
        """Nobody wants the news of ``key`` any more."""
        self._receivers.pop(key, None)

    def _dispatch(self, news: list[News]) -> None:
        for item in news:
            if (receiver := self._receivers.get(item.key)) is not None:
                receiver(item)
