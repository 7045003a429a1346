"""The models that are loaded: on demand, as many as memory allows, and out again when nobody asks.

Owns which models are in memory and who uses them (leases). Lives on the event loop; loading and freeing run
in worker threads, one at a time. ``library`` knows what could be loaded, ``loading`` how. ``dispatcher``
leases models here, ``server/routes`` and ``cli`` load and unload them.

A model that is used is never unloaded, nor is a pinned one; of the others the one that was used least
recently goes first. When all are busy and a further one is wanted, the one that has been loaded longest is
*drained*: requests that come for it wait until it is loaded again, so that no model keeps the others out for
ever.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import anyio

from nexa_runtime.config import PoolSettings
from nexa_runtime.engine.engine import Engine
from nexa_runtime.errors import (
    ModelFileError,
    ModelInUseError,
    ModelKindError,
    ModelLoadFailedError,
    ModelLoadingError,
    ModelMemoryError,
    ModelNotFoundError,
    NexaError,
    OverloadedError,
    ShuttingDownError,
)
from nexa_runtime.serving.library import Library, ModelSource
from nexa_runtime.serving.loaded import Kind, LoadedModel
from nexa_runtime.serving.threads import run_to_end
from nexa_runtime.telemetry import get_logger

MAX_WAITING = 256
"""Requests that may wait for models to be loaded."""
DRAIN_AFTER_S = 10.0
"""A busy model stays at least this long before it is drained for another."""
FAILED_S = 30.0
"""A model that could not be loaded is not tried again for so long."""
_IDLE_CHECK_S = 1.0

_log = get_logger("serving.pool")


class Load(Protocol):
    """How a model is loaded."""

    def needed_bytes(self, source: ModelSource) -> int:
        """Memory that a source will take, as far as that is known; ``try_out`` may know better."""

    def try_out(self, source: ModelSource) -> None:
        """Find out whether a source can be loaded. Blocks."""

    def __call__(self, source: ModelSource, free_bytes: int) -> LoadedModel:
        """Load a source with so many bytes to spare. Blocks."""

    def interrupt(self) -> None:
        """Make what is being loaded fail soon, where that can be. Any thread; for shutdown."""


@dataclass(slots=True)
class _Entry:
    """One model and who wants it. ``num_leases``: requests that use it; ``num_waiting``: that wait for it.

    ``needed_bytes``: of memory, for which room was made before it was loaded.
    """

    source: ModelSource
    model: LoadedModel | None = None
    needed_bytes: int = 0
    num_leases: int = 0
    num_waiting: int = 0
    is_draining: bool = False
    last_used: float = 0.0
    loaded_at: float = 0.0
    loading: asyncio.Task[LoadedModel] | None = None
    load_s: float | None = None
    failed_at: float | None = None
    failure: str = ""

    @property
    def held_bytes(self) -> int:
        """Memory of the loaded model: weights and cells as they are, buffers as they were planned."""
        return 0 if self.model is None else max(self.model.memory_bytes, self.needed_bytes)

    @property
    def is_idle(self) -> bool:
        """Loaded, and nobody uses it or is about to: those who waited for it have their turn first."""
        is_awaited = bool(self.num_waiting) and not self.is_draining
        return self.model is not None and not self.num_leases and not is_awaited

    @property
    def state(self) -> str:
        """``loaded``, ``loading``, ``failed`` or ``stored``."""
        if self.model is not None:
            return "loaded"
        return "loading" if self.loading else "failed" if self.failed_at is not None else "stored"


@dataclass(slots=True)
class ModelLease:
    """A request's right to a loaded model: it stays until ``release``, which may be called twice."""

    model: LoadedModel
    name: str
    _entry: _Entry
    _on_release: Callable[[_Entry], None]
    _is_released: bool = field(default=False)

    def release(self) -> None:
        """The request has ended."""
        if not self._is_released:
            self._is_released = True
            self._on_release(self._entry)


class ModelPool:
    """``budget_bytes``: for weights and KV caches of all models together."""

    def __init__(self, library: Library, load: Load, settings: PoolSettings, *, budget_bytes: int) -> None:
        self.library = library
        self.budget_bytes = budget_bytes
        self._load_model = load
        self._settings = settings
        self._entries: dict[str, _Entry] = {}
        self._engine: Engine | None = None
        self._changing = asyncio.Lock()
        """Held while a model is loaded or unloaded: one at a time."""
        self._left = asyncio.Event()
        """Somebody uses a model, or waits for one, no longer."""
        self._listeners: list[Callable[[LoadedModel], None]] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._is_stopping = False

    def adopt(self, source: ModelSource, model: LoadedModel) -> None:
        """Take a model in that was loaded already, before ``start``."""
        needed_bytes = self._load_model.needed_bytes(source)
        self._entries[source.id] = _Entry(source, model, needed_bytes, last_used=time.monotonic())

    def on_load(self, listener: Callable[[LoadedModel], None]) -> None:
        """``listener`` is called with each model once it runs."""
        self._listeners.append(listener)

    def start(self, engine: Engine) -> None:
        """Run loaded models on ``engine``, and load those that are to be there from the start."""
        self._engine = engine
        for entry in self._entries.values():
            if entry.model is not None:
                self._run(entry.model)
        for source in self.library.sources():
            entry = self._entry(source)
            if source.is_preloaded and entry.model is None:
                self._begin_loading(entry)
        self._sweeper = asyncio.create_task(self._sweep())

    def stop(self) -> None:
        """Load nothing more: who waits for a model gets ``ShuttingDownError``. A second call does nothing."""
        self._is_stopping = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._load_model.interrupt()
        self._left.set()

    async def close(self) -> None:
        """After ``stop``: free every model. The engine has stopped, and nobody holds a lease any more."""
        loads = [entry.loading for entry in self._entries.values() if entry.loading is not None]
        await asyncio.gather(*loads, return_exceptions=True)
        async with self._changing:
            for entry in self._entries.values():
                if entry.model is not None:
                    await self._unload(entry)

    @property
    def default(self) -> LoadedModel | None:
        """The model of a request that names none, if it is loaded."""
        source = self.library.default
        entry = self._entries.get(source.id) if source is not None else None
        return entry.model if entry is not None else None

    def models(self) -> Sequence[LoadedModel]:
        """All that are loaded."""
        return [entry.model for entry in self._entries.values() if entry.model is not None]

    def sources(self) -> Sequence[ModelSource]:
        """All that could be asked for."""
        return self.library.sources()

    def find(self, name: str | None) -> ModelSource:
        """What goes by that name; the default for none. Raises ``ModelNotFoundError``."""
        source = self.library.default if name is None else self.library.find(name)
        if source is None:
            served = [name for one in self.library.sources() for name in one.names]
            raise ModelNotFoundError(self.library.default_name if name is None else name, served)
        return source

    async def lease(self, name: str | None, kind: Kind, *, is_patient: bool = True) -> ModelLease:
        """The model of that name, loaded if need be. ``is_patient``: wait for that.

        Raises ``ModelNotFoundError``, ``ModelKindError``, ``ModelLoadingError``, ``ModelLoadFailedError``,
        ``ModelMemoryError``, ``OverloadedError``, ``ShuttingDownError``.
        """
        source = self.find(name)
        if source.kinds is not None and kind not in source.kinds:
            raise ModelKindError(name or source.id, kind.value)
        entry = self._entry(source)
        while entry.model is None or entry.is_draining:
            # Whoever was loaded may have gone again before this request had its turn.
            await self._wait_loaded(entry, is_patient=is_patient)
        if kind not in entry.model.kinds:
            raise ModelKindError(name or source.id, kind.value)
        entry.num_leases += 1
        entry.last_used = time.monotonic()
        return ModelLease(entry.model, name or source.id, entry, self._release)

    async def load(self, name: str) -> None:
        """Load a model now, for the owner of the box. Raises as ``lease``."""
        entry = self._entry(self.find(name))
        entry.failed_at = None
        if entry.model is None:
            await asyncio.shield(self._begin_loading(entry))

    async def unload(self, name: str) -> None:
        """Free a model now. Raises ``ModelNotFoundError``, and ``ModelInUseError`` while it is used or if it
        is pinned.
        """
        entry = self._entry(self.find(name))
        if entry.source.is_pinned:
            raise ModelInUseError(f'The model "{entry.source.id}" is pinned: it stays as long as the server.')
        async with self._changing:
            if entry.num_leases:
                raise ModelInUseError(
                    f'The model "{entry.source.id}" is used by {entry.num_leases} requests.'
                )
            if entry.model is not None:
                await self._unload(entry)

    def describe(self) -> list[dict[str, object]]:
        """Every model with its state, for the owner of the box."""
        described: list[dict[str, object]] = []
        for source in self.library.sources():
            entry = self._entry(source)
            model = entry.model
            described.append(
                {
                    "name": source.id,
                    "names": list(source.names),
                    "id": source.digest,
                    "state": entry.state,
                    "size_bytes": entry.held_bytes if model is not None else source.size_bytes,
                    "kv_cells": model.num_cells if model is not None else 0,
                    "load_s": None if entry.load_s is None else round(entry.load_s, 3),
                    "leases": entry.num_leases,
                    "is_default": source is self.library.default,
                    "failure": entry.failure or None,
                }
            )
        return described

    @property
    def used_bytes(self) -> int:
        """Memory of the loaded models, as planned."""
        return sum(entry.held_bytes for entry in self._entries.values())

    # Loading.

    async def _wait_loaded(self, entry: _Entry, *, is_patient: bool) -> None:
        name = entry.source.id
        if entry.failed_at is not None:
            left_s = entry.failed_at + FAILED_S - time.monotonic()
            if left_s > 0:
                raise ModelLoadFailedError(name, entry.failure, left_s)
        task = self._begin_loading(entry)
        if not is_patient:
            raise ModelLoadingError(name, None, max(entry.load_s or 1.0, 1.0))
        if sum(one.num_waiting for one in self._entries.values()) >= MAX_WAITING:
            raise OverloadedError(MAX_WAITING, 5.0)
        entry.num_waiting += 1
        timeout_s = self._settings.load_timeout_s
        try:
            with anyio.fail_after(timeout_s):
                await asyncio.shield(task)
        except TimeoutError:
            raise ModelLoadingError(name, timeout_s, 10.0) from None
        finally:
            entry.num_waiting -= 1
            self._left.set()

    def _begin_loading(self, entry: _Entry) -> asyncio.Task[LoadedModel]:
        """The one load of a model that is under way, begun now if there is none."""
        if entry.loading is None:
            task = asyncio.create_task(self._load(entry))
            # Whoever waits raises what it raises; with nobody waiting it must not be "never retrieved".
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            entry.loading = task
        return entry.loading

    async def _load(self, entry: _Entry) -> LoadedModel:
        source = entry.source
        start = time.monotonic()
        try:
            async with self._changing:
                if entry.model is not None:  # it was being drained, and its memory was not taken after all
                    entry.is_draining = False
                    return entry.model
                # For the trial, which maps the weights; then for all that the trial found it will take.
                await self._make_room(entry, min(source.size_bytes, self._load_model.needed_bytes(source)))
                await run_to_end(lambda: self._load_model.try_out(source))
                entry.needed_bytes = self._load_model.needed_bytes(source)
                await self._make_room(entry, entry.needed_bytes)
                free_bytes = self.budget_bytes - self.used_bytes
                model = await run_to_end(lambda: self._load_model(source, free_bytes))
        except (ModelMemoryError, ModelLoadingError, ShuttingDownError):
            raise
        except Exception as error:
            entry.failed_at = time.monotonic()
            entry.failure = _reason(error)
            _log.warning("model_load_failed", model=source.id, reason=str(error))
            raise ModelLoadFailedError(source.id, entry.failure, FAILED_S) from error
        finally:
            entry.loading = None
        entry.model, entry.failed_at, entry.failure = model, None, ""
        entry.load_s = time.monotonic() - start
        entry.last_used = entry.loaded_at = time.monotonic()
        self._run(model)
        return model

    async def _make_room(self, wanted: _Entry, needed: int) -> None:
        """Unload idle models until ``wanted`` fits with the bytes it needs, and drain busy ones.

        Raises ``ModelMemoryError`` when it never fits, ``ModelLoadingError`` when nobody waits any more, and
        ``ShuttingDownError``.
        """
        source = wanted.source
        while True:
            if self._is_stopping:
                raise ShuttingDownError
            if self.used_bytes + needed <= self.budget_bytes:
                return
            loaded = [entry for entry in self._entries.values() if entry.model is not None]
            movable = [entry for entry in loaded if not entry.source.is_pinned]
            held = sum(entry.held_bytes for entry in loaded if entry not in movable)
            if held + needed > self.budget_bytes:
                raise ModelMemoryError(source.id, needed, self.budget_bytes - held)
            idle = [entry for entry in movable if entry.is_idle]
            if idle:
                await self._unload(min(idle, key=lambda entry: entry.last_used))
                continue
            if not wanted.num_waiting:
                raise ModelLoadingError(source.id, None, 10.0)
            oldest = min(movable, key=lambda entry: entry.loaded_at)
            self._left.clear()
            with anyio.move_on_after(max(oldest.loaded_at + DRAIN_AFTER_S - time.monotonic(), 0.05)):
                await self._left.wait()
            oldest.is_draining = time.monotonic() - oldest.loaded_at >= DRAIN_AFTER_S

    async def _unload(self, entry: _Entry) -> None:
        model, entry.model = entry.model, None
        entry.is_draining = False
        assert model is not None
        await run_to_end(model.close)
        _log.info("model_unloaded", model=entry.source.id)

    def _run(self, model: LoadedModel) -> None:
        assert self._engine is not None
        self._engine.attach(model.engine)
        for listener in self._listeners:
            listener(model)

    def _release(self, entry: _Entry) -> None:
        entry.num_leases -= 1
        entry.last_used = time.monotonic()
        if not entry.num_leases:
            self._left.set()

    def _entry(self, source: ModelSource) -> _Entry:
        entry = self._entries.get(source.id)
        if entry is None:
            entry = self._entries[source.id] = _Entry(source)
        elif entry.model is None and entry.loading is None:
            if source.paths != entry.source.paths:  # it was pulled anew, and is not the file that failed
                entry.failed_at, entry.failure = None, ""
            entry.source = source
        return entry

    async def _sweep(self) -> None:
        """Unload what nobody has asked for in a while."""
        while True:
            await asyncio.sleep(_IDLE_CHECK_S)
            now = time.monotonic()
            for entry in list(self._entries.values()):
                keep_s = entry.source.keep_alive_s
                is_over = keep_s is not None and now - entry.last_used > keep_s
                if not entry.is_idle or entry.source.is_pinned or not is_over:
                    continue
                async with self._changing:
                    if entry.is_idle:
                        await self._unload(entry)


def _reason(error: Exception) -> str:
    """For whoever asked: paths of this box are for its owner's log."""
    if isinstance(error, ModelFileError):
        return f"{error.reason}."
    return str(error) if isinstance(error, NexaError) else f"an internal error ({type(error).__name__})."
