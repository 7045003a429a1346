"""Which models could be served: the bundled one, a file that the owner names, and those of the store.

Owns the way from a name to files and options. It looks at the store on every question, by the stamps of
records and blobs, and reads only what has changed. It never loads or pulls. ``pool`` asks it, from one thread
at a time.
"""

import hashlib
import os
import time
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
from nexa_runtime.store.trust import Stamp, stamp_of
from nexa_runtime.telemetry import get_logger

DEMO_PATH = Path(nexa_runtime.__file__).parent / "data" / "nexa-demo.gguf"

_PLANNED_TOKENS = 4096
"""Cells to plan with for a model whose context is longer."""

_RETRY_S = 10.0
"""After this a header that could not be read is read again, though its file is the same: disks recover."""

_log = get_logger("serving.library")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that can be loaded; another one where anything of it is another.

    ``names``: the id first. ``paths``: its file, or its parts in order. ``size_bytes``: of these files.
    ``estimate_bytes``: of memory with ``planned_tokens`` KV cells, by its header or the catalog's hint.
    ``record``: of the store, if it is from there. ``stamps``: of its blobs. ``kinds``: None where only
    loading tells. ``spec``: options of the catalog. ``keep_alive_s``: None for good. ``is_pinned``: the
    default. ``is_preloaded``: to be loaded though nobody asks.
    """

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    size_bytes: int
    estimate_bytes: int
    record: ModelRecord | None = None
    stamps: tuple[Stamp | None, ...] = ()
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
    def digest(self) -> str:
        """Of the content of all parts, by their sums in the store; of nothing for what is not in one."""
        files = () if self.record is None else self.record.files
        return hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()

    def goes_by(self, name: str) -> bool:
        """Whether that is one of its names; case and ``:latest`` make no difference, as in the store."""
        return _plain(name) in map(_plain, self.names)

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
        """Of the folder of records, when it was read."""
        self._blobs: dict[Path, Stamp | None] = {}
        self._known: dict[tuple[ModelRecord, bool], ModelSource] = {}
        self._left_out: dict[str, str] = {}
        """Models whose header cannot be read, and why."""
        self._read_at = 0.0
        self._sources: list[ModelSource] = []
        self._named = self._of_named_file()

    @property
    def default_name(self) -> str:
        """What ``NEXA_MODEL_ID`` says."""
        return self._settings.model_id

    @property
    def default(self) -> ModelSource | None:
        """The model of a request that names none; None while it is not there."""
        return next((one for one in self.sources() if one.is_pinned), None)

    def use_catalog(self, catalog: Catalog) -> None:
        """Take options from another catalog from now on. A model that has others by it is another source."""
        self.catalog = catalog
        self._known, self._stamp = {}, None

    def find(self, name: str) -> ModelSource | None:
        """What goes by that name; where several do, the default, or else the one whose id it is."""
        found = [source for source in self.sources() if source.goes_by(name)]
        return min(found, key=lambda one: (not one.is_pinned, _plain(one.id) != _plain(name)), default=None)

    def sources(self) -> Sequence[ModelSource]:
        """All, the default first."""
        stamp = _stamp_of(self.store.root / "records")
        is_stale = any(stamp_of(path) != one for path, one in self._blobs.items())
        is_stale = is_stale or (bool(self._left_out) and time.monotonic() - self._read_at > _RETRY_S)
        if stamp != self._stamp or is_stale:
            self._read()
            self._stamp = stamp
        return self._sources

    def missing_reason(self) -> str:
        """Why the default is not there, and what would bring it."""
        name = self.default_name
        if self.store.find(name) is not None:
            return (
                f"The model {name} is damaged. Try nexa-runtime verify {name}, then nexa-runtime pull {name}."
            )
        return f"The model {name} is not in the store; bring it with: nexa-runtime pull {name}"

    def _read(self) -> None:
        """Read the records, and the headers of those models that are new or have changed."""
        records = self.store.records()
        default = self.store.find(self.default_name) if self._named is None else None
        self._blobs = {path: stamp_of(path) for record in records for path in self.store.paths(record)}
        before, self._known = self._known, {}
        left_out, self._left_out = self._left_out, {}
        self._read_at = time.monotonic()
        for record in records:
            key = record, default is not None and record.name == default.name
            source = before.get(key)
            if source is None or source.stamps != self._stamps_of(record):
                try:
                    source = self._of_record(record, is_default=key[1])
                except (IntegrityError, OSError) as error:
                    self._left_out[record.name] = str(error)
                    continue
            self._known[key] = source
        for name, reason in self._left_out.items() - left_out.items():
            _log.warning("model_left_out", model=name, reason=reason)
        self._sources = sorted(self._known.values(), key=lambda one: not one.is_pinned)
        if self._named is not None:
            # A name is one model's: that of the store is out of reach while the default has its id.
            others = [one for one in self._sources if _plain(one.id) != _plain(self._named.id)]
            self._sources = [self._named, *others]

    def _stamps_of(self, record: ModelRecord) -> tuple[Stamp | None, ...]:
        return tuple(self._blobs[path] for path in self.store.paths(record))

    def _of_named_file(self) -> ModelSource | None:
        """The default, if it is a file and not of the store: as it is at the start."""
        name = self.default_name
        path = Path(os.path.expanduser(name))
        if name == DEMO_NAME:
            return self._of_file(DEMO_PATH, DEMO_NAME)
        return self._of_file(path, path.stem) if _is_path(name) else None

    def _of_file(self, path: Path, name: str) -> ModelSource:
        size_bytes = estimate_bytes = path.stat().st_size if path.is_file() else 0
        with suppress(IntegrityError):  # loading it will say what is wrong
            estimate_bytes = memory_estimate(read_header(path), _PLANNED_TOKENS, 1)
        return ModelSource(
            names=tuple(dict.fromkeys([name, *self._settings.served_names])),
            paths=(path,),
            size_bytes=size_bytes,
            estimate_bytes=estimate_bytes,
            is_pinned=True,
        )

    def _of_record(self, record: ModelRecord, *, is_default: bool) -> ModelSource:
        paths = self.store.paths(record)
        header = read_header(paths[0])
        spec = self.catalog.find(record.name)
        extra = self._settings.served_names if is_default else ()
        return ModelSource(
            names=tuple(dict.fromkeys([record.name, *record.aliases, *extra])),
            paths=paths,
            size_bytes=record.size_bytes,
            estimate_bytes=_estimate_bytes(record, header, spec),
            record=record,
            stamps=self._stamps_of(record),
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


def _plain(name: str) -> str:
    return name.lower().removesuffix(":latest")


def _stamp_of(folder: Path) -> object:
    """Changes when a record does: each is written under another name first and then renamed in."""
    try:
        return tuple(
            sorted((one.name, one.stat().st_mtime_ns, one.stat().st_ino) for one in os.scandir(folder))
        )
    except OSError:
        return ()


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
    if header.is_reranker:
        return frozenset({Kind.RERANK})
    return frozenset({Kind.EMBEDDING}) if header.is_encoder else None
