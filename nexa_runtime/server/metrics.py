"""The numbers of one application, and how they are scraped.

Owns the counts of requests and of the event loop's lag, and that a scrape holds up nobody: values are read on
the event loop, written in a worker thread, one scrape at a time. ``routes/metrics`` and ``metrics_port``
answer with it, ``middleware`` and ``edge`` tell it of each answer.
"""

import asyncio
from functools import partial

import anyio
from anyio.to_thread import run_sync
from starlette.routing import Route
from starlette.types import Scope

import nexa_runtime
from nexa_runtime.llama import gpu_memory
from nexa_runtime.server.readiness import Readiness
from nexa_runtime.server.readings import read_pool, read_sinks, read_source
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.telemetry.metrics import catalogue
from nexa_runtime.telemetry.metrics.histogram import Histogram
from nexa_runtime.telemetry.metrics.labels import OTHER
from nexa_runtime.telemetry.metrics.reading import Reading
from nexa_runtime.tenancy.directory import TenantDirectory
from nexa_runtime.usage import Recorder
from nexa_runtime.usage.counts import RequestCounts

_LAG_INTERVAL_S = 0.25


class Metrics:
    """``counts``: one of the sinks of ``recorder``. Everything but ``_write`` is called on the event loop."""

    def __init__(
        self,
        counts: RequestCounts,
        dispatcher: Dispatcher,
        recorder: Recorder,
        directory: TenantDirectory,
        readiness: Readiness,
    ) -> None:
        self.counts = counts
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._directory = directory
        self._readiness = readiness
        self._lag = Histogram()
        self._thread = anyio.CapacityLimiter(1)

    def note_answer(self, scope: Scope, status: int) -> None:
        """Count a request that has been answered, unless its record does; 0: nothing was sent."""
        state = scope["state"]
        tenant_id = state.get("tenant_id")
        if (code := state.get("error_code")) is not None:
            self.counts.put_error(code, tenant_id)
        if not state.get("is_admitted"):
            self.counts.put_other(_endpoint(scope), status or 499, tenant_id)

    def note_refusal(self, code: str) -> None:
        """Count an error that was answered to what never became a request."""
        self.counts.put_error(code, None)

    async def watch_loop(self) -> None:
        """Look how late the event loop is, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due_at = loop.time() + _LAG_INTERVAL_S
            await asyncio.sleep(_LAG_INTERVAL_S)
            self._lag.observe(max(loop.time() - due_at, 0.0))

    async def scrape(self, accept: str, *, has_aliases: bool) -> tuple[bytes, str]:
        """Everything as text, and its content type. ``accept``: what the scraper takes."""
        write = partial(_write, self._read(), accept, has_aliases=has_aliases)
        return await run_sync(write, limiter=self._thread)

    def _read(self) -> Reading:
        reading = Reading()
        self.counts.read(reading)
        read_pool(reading, self._dispatcher.pool, self.counts.tenants)
        read_source(reading, self._directory.health)
        read_sinks(reading, [sink for sink in self._recorder.sinks if sink is not self.counts])
        reading.add(catalogue.INFO, 1, nexa_runtime.__version__)
        reading.add(catalogue.READY, self._readiness.is_ready)
        reading.add(catalogue.OPEN_SEQUENCES, self._dispatcher.num_open)
        reading.add_histogram(catalogue.LOOP_LAG, self._lag)
        return reading


def _write(reading: Reading, accept: str, *, has_aliases: bool) -> tuple[bytes, str]:
    from nexa_runtime.telemetry.metrics.exposition import write  # a start needs no prometheus_client

    if (memory := gpu_memory()) is not None:
        reading.add(catalogue.GPU_FREE, memory.free_bytes)
        reading.add(catalogue.GPU_TOTAL, memory.total_bytes)
    return write(reading, accept, has_aliases=has_aliases)


def _endpoint(scope: Scope) -> str:
    """The path of the route that was asked, its parameters not filled in."""
    endpoint = scope.get("endpoint")
    if endpoint is None:
        return OTHER
    if not scope["path_params"]:
        return str(scope["path"])
    routes = (route for route in scope["app"].routes if isinstance(route, Route))
    return next((route.path_format for route in routes if route.endpoint is endpoint), OTHER)
