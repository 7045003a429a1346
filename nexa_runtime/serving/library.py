"""Which models could be served: the bundled one, a file that the owner names, and those of the store.

Owns the way from a name to files and options. It reads the store anew when its records change, and never
loads or pulls. ``pool`` asks it.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nexa_runtime
from nexa_runtime.config import ModelSettings, PoolSettings
from nexa_runtime.errors import IntegrityError
from nexa_runtime.serving.loaded import Kind
from nexa_runtime.store.catalog import Catalog, EngineOptions, ModelSpec
from nexa_runtime.store.gguf import GgufHeader, read_header
from nexa_runtime.store.memory import memory_estimate
from nexa_runtime.store.records import ModelRecord
from nexa_runtime.store.reference import DEMO_NAME
from nexa_runtime.store.store import ModelStore
from nexa_runtime.telemetry import get_logger

DEMO_PATH = Path(nexa_runtime.__file__).parent / "data" / "nexa-demo.gguf"

_PLANNED_TOKENS = 4096
"""Cells to plan with for a model whose context is longer."""

_log = get_logger("serving.library")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that can be loaded. ``names``: the id first. ``paths``: its file, or its parts in order.

    ``record``: of the store, if it is from there. ``kinds``: None where only loading tells. ``spec``: options
    of the catalog. ``keep_alive_s``: None for good. ``is_pinned``: never unloaded. ``estimate_bytes``: of
    memory, by its header or the catalog's hint.
    """

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    size_bytes: int
    estimate_bytes: int
    record: ModelRecord | None = None
    kinds: frozenset[Kind] | None = None
    context_tokens: int | None = None
    spec: ModelSpec | None = None
    keep_alive_s: float | None = None
    is_pinned: bool = False
    is_preloaded: bool = False

    @property
    def id(self) -> str:
        """The name it goes by."""
        return self.names[0]

    @property
    def planned_tokens(self) -> int:
        """KV cells that its memory is planned with; what the budget has left decides how many it gets."""
        return _planned_tokens(self.context_tokens)

    @property
    def digest(self) -> str | None:
        """Of the store: short, and of the content."""
        return self.record.id if self.record is not None else None

    @property
    def created(self) -> int:
        """When its file was written, as Unix time; 0 if it is not there."""
        return int(self.paths[0].stat().st_mtime) if self.paths[0].is_file() else 0


class Library:
    """``default_name``: of a request that names none; it may not be there."""

    def __init__(
        self, settings: ModelSettings, pool: PoolSettings, store: ModelStore, catalog: Catalog
    ) -> None:
        self._settings = settings
        self._keep_alive_s = pool.keep_alive_s
        self.store = store
        self.catalog = catalog
        self._stamp: object = None
        self._sources: list[ModelSource] = []

    @property
    def default_name(self) -> str:
        """What ``NEXA_MODEL_ID`` says."""
        return self._settings.model_id

    @property
    def default(self) -> ModelSource | None:
        """The model of a request that names none; None while it is not there."""
        return next((one for one in self.sources() if one.is_pinned), None)

    def find(self, name: str) -> ModelSource | None:
        """What goes by that name."""
        wanted = name.lower()
        for source in self.sources():
            if wanted in (own.lower() for own in source.names):
                return source
        return None

    def sources(self) -> Sequence[ModelSource]:
        """All, the default first."""
        stamp = _stamp_of(self.store.root / "records")
        if stamp != self._stamp or not self._sources:
            self._sources = self._read()
            self._stamp = stamp
        return self._sources

    def missing_reason(self) -> str:
        """Why the default is not there, and what would bring it."""
        name = self.default_name
        return f"The model {name} is not in the store; bring it with: nexa-runtime pull {name}"

    def _read(self) -> list[ModelSource]:
        sources = []
        name = self.default_name
        path = Path(os.path.expanduser(name))
        if name == DEMO_NAME:
            sources.append(self._of_file(DEMO_PATH, DEMO_NAME, is_default=True))
        elif _is_path(name):
            sources.append(self._of_file(path, path.stem, is_default=True))
        default_record = self.store.find(name) if not sources else None
        for record in self.store.records():
            is_default = default_record is not None and record.name == default_record.name
            source = self._of_record(record, is_default=is_default)
            if source is not None:
                sources.insert(0 if is_default else len(sources), source)
        return sources

    def _of_file(self, path: Path, name: str, *, is_default: bool) -> ModelSource:
        size_bytes = estimate_bytes = path.stat().st_size if path.is_file() else 0
        with suppress(IntegrityError):  # loading it will say what is wrong
            estimate_bytes = memory_estimate(read_header(path), _PLANNED_TOKENS, 1)
        return ModelSource(
            names=tuple(dict.fromkeys([name, *self._settings.served_names])),
            paths=(path,),
            size_bytes=size_bytes,
            estimate_bytes=estimate_bytes,
            is_pinned=is_default,
        )

    def _of_record(self, record: ModelRecord, *, is_default: bool) -> ModelSource | None:
        paths = self.store.paths(record)
        try:
            header = read_header(paths[0])
        except (IntegrityError, OSError) as error:
            _log.warning("model_left_out", model=record.name, reason=str(error))
            return None
        spec = self.catalog.find(record.name)
        extra = self._settings.served_names if is_default else ()
        return ModelSource(
            names=tuple(dict.fromkeys([record.name, *record.aliases, *extra])),
            paths=paths,
            size_bytes=record.size_bytes,
            estimate_bytes=_estimate_bytes(record, header, spec),
            record=record,
            kinds=_kinds(header, spec),
            context_tokens=record.context_tokens,
            spec=spec,
            keep_alive_s=self._keep_alive(spec, is_default=is_default),
            is_pinned=is_default,
            is_preloaded=is_default or bool(spec and spec.preload),
        )

    def _keep_alive(self, spec: ModelSpec | None, *, is_default: bool) -> float | None:
        if is_default:
            return None
        if spec is not None and spec.keep_alive is not None:
            return None if spec.keep_alive < 0 else spec.keep_alive
        return self._keep_alive_s


def _is_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or name.lower().endswith(".gguf")


def _stamp_of(folder: Path) -> object:
    """Changes when a record does: each is written under another name first and then renamed in."""
    try:
        return tuple(
            sorted((one.name, one.stat().st_mtime_ns, one.stat().st_ino) for one in os.scandir(folder))
        )
    except OSError:
        return None


def _estimate_bytes(record: ModelRecord, header: GgufHeader, spec: ModelSpec | None) -> int:
    if spec is not None and spec.memory_hint is not None:
        return spec.memory_hint
    options = spec.engine if spec is not None else EngineOptions()
    types = {"type_k": options.kv_type_k or "f16", "type_v": options.kv_type_v or "f16"}
    num_cells = _planned_tokens(record.context_tokens)
    return record.size_bytes - header.size_bytes + memory_estimate(header, num_cells, 1, **types)


def _planned_tokens(context_tokens: int | None) -> int:
    return min(context_tokens or _PLANNED_TOKENS, _PLANNED_TOKENS)


def _kinds(header: GgufHeader, spec: ModelSpec | None) -> frozenset[Kind] | None:
    names = {kind.value for kind in Kind}
    if spec is not None and spec.kinds & names:
        return frozenset(Kind(name) for name in spec.kinds & names)
    return frozenset({Kind.EMBEDDING}) if header.is_encoder else None
