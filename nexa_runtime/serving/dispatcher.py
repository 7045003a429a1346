"""The border between the event loop and the engine threads.

Owns the worker threads that prepare prompts, the way of each step's news to whoever waits for it, and that
nobody is let in once it drains. Lives on one event loop. ``generation`` and ``embedding`` use it;
``server`` and ``cli`` start and stop it.
"""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import TypeVar
from weakref import WeakSet

import anyio

from nexa_runtime.config import ServingSettings
from nexa_runtime.engine.engine import Engine
from nexa_runtime.engine.generation_lane import Delta, GenerationRequest
from nexa_runtime.engine.model_engine import News
from nexa_runtime.engine.sequence import TenantShare, Tokens
from nexa_runtime.errors import DrainingError, ModelNotAllowedError, ModelNotFoundError, ShuttingDownError
from nexa_runtime.llama import SamplingParams
from nexa_runtime.serving.call import Call
from nexa_runtime.serving.library import ModelSource
from nexa_runtime.serving.loaded import Kind, LoadedModel
from nexa_runtime.serving.open_request import OpenRequest
from nexa_runtime.serving.pool import ModelLease, ModelPool
from nexa_runtime.serving.tenants import PUBLIC_TENANT_ID, is_allowed, share_of
from nexa_runtime.serving.threads import run_to_end
from nexa_runtime.serving.turns import Turns
from nexa_runtime.telemetry import get_logger
from nexa_runtime.tenancy.admission import Admission
from nexa_runtime.tenancy.tenant import Tenant
from nexa_runtime.usage import Recorder

_log = get_logger("serving")

ResultT = TypeVar("ResultT")

_NUM_PROMPT_THREADS = 4
_NUM_COMPILE_THREADS = 4
"""Grammars have threads of their own, a tenant one at a time: what takes long keeps nobody else waiting."""

_CLOSE_S = 1.0
"""Requests have been ended by then; who was cancelled a moment ago has yet to give back what it held."""

_POLL_S = 0.01


class Dispatcher:
    """``start`` before the first request; ``drain`` lets in no more, then ``stop`` and ``close``."""

    def __init__(
        self,
        pool: ModelPool,
        settings: ServingSettings,
        *,
        slots: int,
        recorder: Recorder | None = None,
        status_of: Callable[[Exception], int] = lambda _: 500,
    ) -> None:
        """``slots``: what a model has, for the bounds of the queues. ``recorder``: gets the record of each
        request. ``status_of``: the HTTP status of an error, for that record.
        """
        self.pool = pool
        self.settings = settings
        self.admission = Admission(max_queue=settings.max_queue)
        self._recorder = recorder or Recorder()
        self._status_of = status_of
        self._slots = slots
        self._engine: Engine | None = None
        self._keys = count(1)
        self._receivers: dict[int, Callable[[News], None]] = {}
        self._requests: WeakSet[OpenRequest] = WeakSet()
        """Those that are not settled, and some that are."""
        self._unready: set[int] = set()
        """Keys of public prefixes that are still computed."""
        self.is_draining = False
        """Whether what was admitted is finished, and nothing new is."""
        self._has_stopped = False
        self._threads = anyio.CapacityLimiter(_NUM_PROMPT_THREADS)
        self._compile_threads = anyio.CapacityLimiter(_NUM_COMPILE_THREADS)
        self._compile_turns = Turns()
        self._prepare_turns = Turns()

    @property
    def is_running(self) -> bool:
        """Whether the engine thread lives."""
        return self._engine is not None and self._engine.is_alive

    @property
    def is_preparing(self) -> bool:
        """Whether public prefixes are still computed."""
        return bool(self._unready)

    @property
    def engine(self) -> Engine:
        """The engine, after ``start``."""
        assert self._engine is not None
        return self._engine

    @property
    def num_open(self) -> int:
        """Sequences and embedding requests that are not closed."""
        return self.admission.num_open

    def start(self) -> None:
        """Start the engines; their news come to the running event loop."""
        loop = asyncio.get_running_loop()

        def publish(news: list[News]) -> None:
            loop.call_soon_threadsafe(self._dispatch, news)

        self._engine = Engine(publish)
        self._engine.start()
        self.pool.on_load(self._on_load)
        self.pool.start(self._engine)

    def drain(self) -> None:
        """Admit nothing more. What was admitted goes on, also what still waits for a model or a slot."""
        self.is_draining = True

    async def stop(self) -> None:
        """End every request with ``ShuttingDownError`` and take no more. A second call does nothing, also
        where a step hangs.
        """
        self.drain()
        self.pool.stop()
        if self._engine is not None and not self._has_stopped:
            self._has_stopped = True
            await run_to_end(self._engine.stop)

    async def close(self) -> None:
        """After ``stop``: free the models, once no request and no worker thread uses them any more. A request
        that has not ended by then, as one whose step hangs, leaves its record all the same.
        """
        with anyio.move_on_after(_CLOSE_S):
            while self.num_open:  # noqa: ASYNC110 - only here does anybody wait for it
                await anyio.sleep(_POLL_S)
        for request in list(self._requests):
            request.settle(error=ShuttingDownError())
        for limiter in (self._threads, self._compile_threads):
            for _ in range(int(limiter.total_tokens)):
                await limiter.acquire_on_behalf_of(object())
        await self.pool.close()

    def admit(self, tenant: Tenant, call: Call, count: int, model_name: str | None) -> OpenRequest:
        """Let a request of ``count`` sequences in; 0: it needs none. ``model_name``: the one that it names.

        Raises what ``Admission.admit`` does, and ``DrainingError``. It is settled once, whatever becomes of
        it.
        """
        if self.is_draining:
            raise DrainingError
        ticket = self.admission.admit(tenant, slots=self._slots, count=count)
        call.on_admitted()
        name = model_name or tenant.limits.model_id or self.pool.library.default_name
        request = OpenRequest(call, name, ticket, self._recorder, self._status_of)
        self._requests.add(request)
        return request

    async def lease(self, request: OpenRequest, name: str | None, kind: Kind | None) -> ModelLease:
        """The model that a request gets: the client's, the tenant's, or the default. ``kind``: None for any.

        Raises ``ModelNotAllowedError``, and as ``ModelPool.lease``.
        """
        wanted = name or request.tenant.limits.model_id
        self.find_model(request.tenant, wanted)
        lease = await self.pool.lease(wanted, kind, is_patient=request.call.is_patient)
        request.model_name = lease.model.id
        return lease

    def find_model(self, tenant: Tenant, name: str | None) -> ModelSource:
        """What a tenant means by a name; the default for none.

        Raises ``ModelNotFoundError``, which names the tenant's own models only, and ``ModelNotAllowedError``.
        """
        try:
            source = self.pool.find(name)
        except ModelNotFoundError as error:
            sources = [one for one in self.pool.sources() if is_allowed(tenant, one.names)]
            raise ModelNotFoundError(error.name, [name for one in sources for name in one.names]) from None
        if not is_allowed(tenant, source.names):
            raise ModelNotAllowedError(name or source.id)
        return source

    def update_tenant(self, tenant: Tenant) -> None:
        """New limits hold from the next step on."""
        for model in self.pool.models():
            model.engine.update_share(share_of(tenant, model))

    def _on_load(self, model: LoadedModel) -> None:
        for prefix in model.public_prefixes:
            self._compute_public(model, prefix)

    def _compute_public(self, model: LoadedModel, prefix: Tokens) -> None:
        """Compute a public prefix once; the engine keeps it."""
        key = self.new_key()
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

    def new_key(self) -> int:
        """A key for ``ModelEngine.submit``: taken first, so that the receiver knows it before any news."""
        return next(self._keys)

    async def prepare(self, function: Callable[[], ResultT]) -> ResultT:
        """Run what renders and tokenizes in a worker thread, which has ended when this has."""
        return await run_to_end(function, limiter=self._threads)

    async def prepare_in_turn(self, tenant: Tenant, function: Callable[[], ResultT]) -> ResultT:
        """As ``prepare``, a tenant one at a time: for texts that no context bounds, or many of them."""
        async with self._prepare_turns.of(tenant.id):
            return await self.prepare(function)

    async def compile(self, tenant: Tenant, function: Callable[[], ResultT]) -> ResultT:
        """As ``prepare``, for what compiles a grammar of a tenant's."""
        async with self._compile_turns.of(tenant.id):
            return await run_to_end(function, limiter=self._compile_threads)

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
