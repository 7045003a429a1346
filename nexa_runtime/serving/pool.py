"""The models that are loaded: on demand, as many as memory allows, and out again when nobody asks.

Owns which models are in memory and who uses them (leases). Lives on the event loop; loading and freeing run
in worker threads, one at a time. ``library`` knows what could be loaded, ``loading`` how, ``entry`` what is
known of each. ``dispatcher`` leases models here, ``server/routes`` and ``cli`` load and unload them.

A model that is used is never unloaded, nor is a pinned one; of the others the one that was used least
recently goes first. When all are busy and a further one is wanted, the one that has been loaded longest is
*drained*: requests that come for it wait until it is loaded again, so that no model keeps the others out for
ever.

A loaded model stays what it was when its files are removed or replaced in the store; as soon as it is idle it
is unloaded, so that the next request gets what goes by its name then.

One rule for sizes: a loaded model takes what ``LoadedModel.memory_bytes`` says, any other what
``Load.needed_bytes`` says.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import anyio

from nexa_runtime.config import PoolSettings
from nexa_runtime.engine.engine import Engine
from nexa_runtime.errors import (
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
from nexa_runtime.serving.entry import Entry, load_failed
from nexa_runtime.serving.library import Library, ModelSource
from nexa_runtime.serving.loaded import Kind, LoadedModel
from nexa_runtime.serving.threads import run_to_end
from nexa_runtime.telemetry import get_logger

MAX_WAITING = 256
"""Requests that may wait for models to be loaded."""
DRAIN_AFTER_S = 10.0
"""A busy model stays at least this long before it is drained for another."""
_IDLE_CHECK_S = 1.0

_log = get_logger("serving.pool")


class Load(Protocol):
    """How a model is loaded."""

    def needed_bytes(self, source: ModelSource) -> int:
        """Memory that a source will take, as far as that is known; ``try_out`` may know better."""

    def has_tried(self, source: ModelSource) -> bool:
        """Whether ``try_out`` would tell nothing new."""

    def try_out(self, source: ModelSource) -> None:
        """Find out whether a source can be loaded. Blocks."""

    def __call__(self, source: ModelSource, free_bytes: int) -> LoadedModel:
        """Load a source that was tried out, with so many bytes to spare. Blocks."""

    def interrupt(self) -> None:
        """Make what is being loaded fail soon, where that can be. Any thread; for shutdown."""


@dataclass(slots=True)
class ModelLease:
    """A request's right to a loaded model, until ``release`` (twice is fine) or its ``with`` ends."""

    model: LoadedModel
    name: str
    _entry: Entry
    _on_release: Callable[[Entry], None]
    _is_released: bool = field(default=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

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
        self._entries: dict[str, Entry] = {}
        self._engine: Engine | None = None
        self._changing = asyncio.Lock()
        """Held while a model is loaded or unloaded: one at a time."""
        self._left = asyncio.Event()
        """Somebody uses a model, or waits for one, no longer."""
        self._listeners: list[Callable[[LoadedModel], None]] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._is_stopping = False

    def adopt(self, source: ModelSource, model: LoadedModel, *, load_s: float | None = None) -> None:
        """Take a model in that was loaded already, before ``start``, in so many seconds."""
        self._entries[source.id] = Entry(source, model, last_used=time.monotonic(), load_s=load_s)

    def reject(self, source: ModelSource, error: NexaError) -> None:
        """Note, before ``start``, that a model could not be loaded."""
        _log.warning("model_load_failed", model=source.id, reason=str(error))
        self._entry(source).refuse(load_failed(source, error))

    def on_load(self, listener: Callable[[LoadedModel], None]) -> None:
        """``listener`` is called with each model once it runs."""
        self._listeners.append(listener)

    def start(self, engine: Engine) -> None:
        """Run loaded models on ``engine``, and load those that are to be there from the start."""
        self._engine = engine
        for entry in self._entries.values():
            if entry.model is not None:
                self._run(entry.model)
        self._load_due()
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
        return self._entry(source).model if source is not None else None

    @property
    def default_problem(self) -> str | None:
        """Why there is no such model, and what to do, in one sentence or two; None if there is."""
        source = self.library.default
        if source is None:
            return self.library.missing_reason()
        entry = self._entry(source)
        if entry.model is not None:
            return None
        if isinstance(entry.refusal, ModelLoadFailedError):
            name = source.id
            return f"{entry.refusal} Try nexa-runtime verify {name}, then nexa-runtime pull {name}."
        return "The default model is being prepared." if entry.refusal is None else str(entry.refusal)

    @property
    def is_default_awaited(self) -> bool:
        """Whether there is no such model yet, and nothing says that there will be none."""
        source = self.library.default
        return source is not None and self.default is None and self._entry(source).refusal is None

    def models(self) -> Sequence[LoadedModel]:
        """All that are loaded."""
        return [entry.model for entry in self._entries.values() if entry.model is not None]

    def load_s(self, model: LoadedModel) -> float | None:
        """How long a loaded model took to load, in seconds."""
        entry = self._entries.get(model.id)
        return None if entry is None else entry.load_s

    def has_met(self, name: str) -> bool:
        """Whether that is the id of a model which is or was loaded here, or failed to. Looks at no disk."""
        return name in self._entries

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

    async def lease(self, name: str | None, kind: Kind | None, *, is_patient: bool = True) -> ModelLease:
        """The model of that name, loaded if need be. ``kind``: None for any. ``is_patient``: wait for that.

        Raises ``ModelNotFoundError``, ``ModelKindError``, ``ModelLoadingError``, ``ModelLoadFailedError``,
        ``ModelMemoryError``, ``OverloadedError``, ``ShuttingDownError``.
        """
        source = self.find(name)
        if kind is not None and source.kinds is not None and kind not in source.kinds:
            raise ModelKindError(name or source.id, kind.value)
        entry = self._entry(source)
        while entry.model is None or entry.is_draining:
            # Whoever was loaded may have gone again before this request had its turn.
            await self._wait_loaded(entry, is_patient=is_patient)
            entry = self._entry(self.find(name))
        if kind is not None and kind not in entry.model.kinds:
            raise ModelKindError(name or source.id, kind.value)
        entry.num_leases += 1
        entry.last_used = time.monotonic()
        return ModelLease(entry.model, name or source.id, entry, self._release)

    async def load(self, name: str) -> None:
        """Load a model now, for the owner of the box. Raises as ``lease``."""
        entry = self._entry(self.find(name))
        entry.refusal = None
        if entry.model is None:
            await asyncio.shield(self._begin_loading(entry))

    async def unload(self, name: str) -> None:
        """Free a model now. Raises ``ModelNotFoundError``, and ``ModelInUseError`` while it is used or if it
        is pinned.
        """
        entry = self._entry_named(name)
        if entry.source.is_pinned and self._is_current(entry):
            raise ModelInUseError(f'The model "{entry.source.id}" is pinned: it stays as long as the server.')
        async with self._changing:
            if entry.num_leases:
                raise ModelInUseError(
                    f'The model "{entry.source.id}" is used by {entry.num_leases} requests.'
                )
            if entry.model is not None:
                await self._unload(entry)

    def describe(self) -> list[dict[str, object]]:
        """Every model with its state, for the owner of the box; those too that are only in memory still."""
        entries = [self._entry(source) for source in self.library.sources()]
        ghosts = [one for one in self._entries.values() if one.is_held and one not in entries]
        return [self._describe(entry) for entry in (*entries, *ghosts)]

    def _describe(self, entry: Entry) -> dict[str, object]:
        source, model, default = entry.source, entry.model, self.library.default
        return {
            "name": source.id,
            "names": list(source.names),
            "id": None if source.record is None else source.record.id,
            "state": entry.state,
            "size_bytes": source.size_bytes,
            "memory_bytes": entry.held_bytes if model is not None else self._load_model.needed_bytes(source),
            "kv_cells": model.num_cells if model is not None else 0,
            "load_s": None if entry.load_s is None else round(entry.load_s, 3),
            "leases": entry.num_leases,
            "is_default": default is not None and source.id == default.id,
            "failure": entry.failure,
        }

    @property
    def used_bytes(self) -> int:
        """Memory of the loaded models."""
        return sum(entry.held_bytes for entry in self._entries.values())

    # Loading.

    async def _wait_loaded(self, entry: Entry, *, is_patient: bool) -> None:
        entry.check_not_failed()
        task = self._begin_loading(entry)
        if not is_patient:
            raise entry.loading_error()
        if sum(one.num_waiting for one in self._entries.values()) >= MAX_WAITING:
            raise OverloadedError(MAX_WAITING, 5.0)
        entry.num_waiting += 1
        try:
            with anyio.fail_after(self._settings.load_timeout_s):
                await asyncio.shield(task)
        except TimeoutError:
            raise entry.loading_error() from None
        finally:
            entry.num_waiting -= 1
            self._left.set()

    def _load_due(self) -> None:
        """Begin to load what is to be there though nobody asks."""
        for source in self.library.sources():
            entry = self._entry(source)
            if entry.is_due:
                self._begin_loading(entry)

    def _begin_loading(self, entry: Entry) -> asyncio.Task[LoadedModel]:
        """The one load of a model that is under way, begun now if there is none."""
        if entry.loading is None:
            task = asyncio.create_task(self._load(entry))
            # Whoever waits raises what it raises; with nobody waiting it must not be "never retrieved".
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            entry.begin(task)
            return task
        return entry.loading

    async def _load(self, entry: Entry) -> LoadedModel:
        source, load = entry.source, self._load_model
        try:
            async with self._changing:
                if entry.model is not None:  # it was being drained, and its memory was not taken after all
                    entry.is_draining = False
                    return entry.model
                needed = load.needed_bytes(source)
                if not load.has_tried(source):
                    # An estimate, which keeps nobody out: room for the weights, then the trial tells.
                    needed = min(source.size_bytes, needed)
                await self._make_room(entry, needed)
                await run_to_end(lambda: load.try_out(source))
                await self._make_room(entry, load.needed_bytes(source))
                free_bytes = self.budget_bytes - self.used_bytes
                model = await run_to_end(lambda: load(source, free_bytes))
        except (ModelLoadingError, ShuttingDownError):
            raise
        except ModelMemoryError as error:
            entry.refuse(error)
            raise
        except Exception as error:
            _log.warning("model_load_failed", model=source.id, reason=str(error))
            refusal = load_failed(source, error)
            entry.refuse(refusal)
            raise refusal from error
        finally:
            entry.loading = None
        entry.complete(model)
        self._run(model)
        return model

    async def _make_room(self, wanted: Entry, needed: int) -> None:
        """Unload idle models until ``wanted`` fits with the bytes it needs, and drain busy ones.

        Raises ``ModelMemoryError`` when it never fits, before it unloads any, ``ModelLoadingError`` when
        nobody waits any more, and ``ShuttingDownError``.
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
                raise ModelMemoryError(source.id, needed, max(self.budget_bytes - held, 0))
            idle = [entry for entry in movable if entry.is_idle]
            if idle:
                await self._unload(min(idle, key=lambda entry: entry.last_used))
                continue
            if not wanted.num_waiting and not source.is_pinned:
                raise wanted.loading_error()
            oldest = min(movable, key=lambda entry: entry.loaded_at)
            self._left.clear()
            with anyio.move_on_after(max(oldest.loaded_at + DRAIN_AFTER_S - time.monotonic(), 0.05)):
                await self._left.wait()
            oldest.is_draining = time.monotonic() - oldest.loaded_at >= DRAIN_AFTER_S

    async def _unload(self, entry: Entry) -> None:
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

    def _release(self, entry: Entry) -> None:
        entry.num_leases -= 1
        entry.last_used = time.monotonic()
        if not entry.num_leases:
            self._left.set()

    def _entry(self, source: ModelSource) -> Entry:
        entry = self._entries.get(source.id)
        if entry is None:
            entry = self._entries[source.id] = Entry(source)
        entry.follow(source)
        return entry

    def _entry_named(self, name: str) -> Entry:
        """Of what goes by that name in the store, or only in memory still. Raises ``ModelNotFoundError``."""
        if self.library.find(name) is None:
            for entry in self._entries.values():
                if entry.is_held and entry.source.goes_by(name):
                    return entry
        return self._entry(self.find(name))

    def _is_over(self, entry: Entry) -> bool:
        """Whether a model is to go: idle, and nobody has asked for it in a while, or its files are others."""
        return entry.is_unwanted or (entry.is_idle and not self._is_current(entry))

    def _is_current(self, entry: Entry) -> bool:
        """Whether its files and options are those that go by its name."""
        return entry.source in self.library.sources()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_IDLE_CHECK_S)
            try:
                await self._tidy()
            except Exception:  # noqa: BLE001 - the next time it may go well, and nobody else unloads
                _log.exception("sweep_failed")

    async def _tidy(self) -> None:
        """Unload what is over, and load what is due."""
        for entry in list(self._entries.values()):
            if self._is_over(entry):
                async with self._changing:
                    if self._is_over(entry):  # nobody has used it while others were loaded
                        await self._unload(entry)
        self._load_due()
