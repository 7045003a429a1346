"""Models on disk: content-addressed blobs, and a record per model that says which of them it is.

Owns the layout under the store's root, the locks, and what may be removed.

    blobs/sha256-<64 hex>            finished files, never changed, renamed in
    partial/<64 hex>.partial         a transfer under way; its .lock beside it
    records/<name>.json              one per model, written last and atomically: no record, no model
    .lock                            held while a record is written or blobs are removed

It never asks the network, and reading creates nothing: not the folders, not a lock. The server only reads;
``pull``, ``import``, ``rm`` and ``gc`` write.

Deliberate oddities:

1. A blob whose lock is held is never removed, though no record names it: a pull of several files keeps the
   locks of those that it has adopted until its record is written.
2. Lock files stay until ``gc``: it removes them while it holds them, and filelock notices that.
"""

import os
import re
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from urllib.parse import unquote

import platformdirs
from filelock import FileLock

from nexa_runtime.config import StoreSettings
from nexa_runtime.errors import IntegrityError, NotFoundError, StoreError
from nexa_runtime.store.files import (
    TEMPORARY_SUFFIX,
    free_bytes_of,
    listed,
    move_in,
    reading,
    reason_of,
    sha256_of,
    sync_folder,
    write_atomically,
    writing,
)
from nexa_runtime.store.locks import BlobLocks, holding
from nexa_runtime.store.memory import memory_estimate
from nexa_runtime.store.records import (
    MAX_RECORD_BYTES,
    FileRecord,
    ModelRecord,
    decode_record,
    encode_record,
    is_sha256,
    record_file_name,
)
from nexa_runtime.store.trust import TrustedBlobs, stamp_of
from nexa_runtime.telemetry import get_logger

__all__ = [
    "FileRecord",
    "ModelRecord",
    "ModelStore",
    "RemovalPlan",
    "memory_estimate",
    "state_dir",
    "store_root",
]

_APPLICATION = "nexa-runtime"
_BLOB = re.compile(r"sha256-([0-9a-f]{64})")
_PARTIAL = re.compile(r"([0-9a-f]{64})\.partial.*")
_LATEST = ":latest"

_log = get_logger("store")


@dataclass(frozen=True, slots=True)
class RemovalPlan:
    """What would be removed. ``blobs``: that no other record names; ``leftovers``: of transfers and writes.

    ``freed_bytes``: of blobs and leftovers. ``unreadable``: records, of which nothing but the name is known.
    """

    records: tuple[ModelRecord, ...]
    blobs: tuple[Path, ...]
    freed_bytes: int
    leftovers: tuple[Path, ...] = ()
    unreadable: tuple[Path, ...] = ()


def store_root(settings: StoreSettings) -> Path:
    """Where the settings have the store, or else the user's."""
    own = os.path.join(platformdirs.user_data_dir(_APPLICATION), "models")
    return Path(settings.model_store or own).expanduser()


def state_dir(settings: StoreSettings) -> Path:
    """Where the settings have what is written besides models, or else the user's."""
    return Path(settings.state_dir or platformdirs.user_state_dir(_APPLICATION)).expanduser()


class ModelStore:
    """``root``: may not exist. ``state_dir``: for the memory of verified blobs; None: in this process.

    Every method raises ``StoreError`` where the disk refuses; safe to call from any thread.
    """

    def __init__(self, root: Path, state_dir: Path | None = None) -> None:
        self.root = root
        self._blobs = root / "blobs"
        self._partial = root / "partial"
        self._records = root / "records"
        self._locks = BlobLocks(self._partial)
        self._trusted = TrustedBlobs(state_dir)

    def records(self) -> list[ModelRecord]:
        """All models, by name. A damaged record is left out and logged."""
        found, unreadable = self._read_all()
        for path, reason in unreadable.items():
            _log.warning("record_damaged", path=str(path), reason=reason)
        return found

    def find(self, name: str) -> ModelRecord | None:
        """The model of that name, or else alias; case and ``:latest`` make no difference."""
        wanted = _plain(name)
        records = self.records()
        for record in records:
            if _plain(record.name) == wanted:
                return record
        for record in records:
            if wanted in map(_plain, record.aliases):
                return record
        return None

    def paths(self, record: ModelRecord) -> tuple[Path, ...]:
        """Its blobs, in split order."""
        return tuple(self.blob_path(file.sha256) for file in record.files)

    def blob_path(self, sha256: str) -> Path:
        """Where the finished file lies."""
        return self._blobs / f"sha256-{_checked(sha256)}"

    def partial_path(self, sha256: str) -> Path:
        """Where it lies while it is transferred."""
        return self._locks.partial_path(_checked(sha256))

    def has_blob(self, sha256: str, size_bytes: int) -> bool:
        """Whether it is there, at that size; ``is_sound`` and ``verify`` look at what is in it."""
        try:
            status = self.blob_path(sha256).stat()
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == size_bytes

    @contextmanager
    def lock(self, sha256: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold a blob: one transfer of it at a time, over all processes, and nobody removes it.

        ``on_wait`` is called once, if another has it; what it raises ends the waiting.
        """
        with self._locks.hold(_checked(sha256), on_wait):
            yield

    def adopt(self, finished: Path, sha256: str) -> Path:
        """Move a finished file in under its sum, which the caller has found right; the blob's path.

        Where ``finished`` is gone and the blob is there, that was done before.
        """
        blob = self.blob_path(sha256)
        with writing(self._blobs):
            self._blobs.mkdir(parents=True, exist_ok=True)
            try:
                move_in(finished, blob)
            except FileNotFoundError:
                if not blob.is_file():
                    raise
                return blob
        self._trusted.note(blob, stamp_of(blob))
        return blob

    def save(self, record: ModelRecord) -> None:
        """Write the record, in the place of one of the same name.

        Raises ``IntegrityError`` where a blob of it is not there.
        """
        content = encode_record(record)
        path = self._records / record_file_name(record.name)
        with writing(self._records), self._exclusive():
            for file in record.files:
                if not self.has_blob(file.sha256, file.size_bytes):
                    raise IntegrityError(f"{file.name} of {record.name} is no longer in the store.")
            self._records.mkdir(exist_ok=True)
            write_atomically(path, content)

    def plan_unreadable(self, name: str) -> RemovalPlan | None:
        """Removing the record of that name, if there is one that cannot be read; gc finds what it needed."""
        path = self._records / record_file_name(name)
        return RemovalPlan((), (), 0, unreadable=(path,)) if path in self._read_all()[1] else None

    def plan_removal(self, name: str) -> RemovalPlan:
        """Removing the model of that name.

        Raises ``NotFoundError``, and ``StoreError`` while a record cannot be read.
        """
        self.refuse_unreadable()
        record = self.find(name)
        if record is None:
            raise NotFoundError(f"There is no model {name[:200]!r} in the store {self.root}.")
        others = [one for one in self.records() if one.name != record.name]
        needed = self._named_by(others)
        blobs = tuple(path for path in dict.fromkeys(self.paths(record)) if path not in needed)
        return RemovalPlan((record,), blobs, _size_of(blobs))

    def plan_gc(self) -> RemovalPlan:
        """Removing what no model needs: blobs without a record, transfers nobody works on, cut-off writes.

        Raises ``StoreError`` while a record cannot be read.
        """
        self.refuse_unreadable()
        needed = self._named_by(self.records())
        blobs = tuple(
            path
            for path in listed(self._blobs)
            if (match := _BLOB.fullmatch(path.name)) and path not in needed and self._locks.is_free(match[1])
        )
        leftovers = (*self._idle_partials(), *_temporary(self._records))
        return RemovalPlan((), blobs, _size_of((*blobs, *leftovers)), leftovers)

    def remove(self, plan: RemovalPlan, on_wait: Callable[[], None] = lambda: None) -> int:
        """Do it: the records first. What has come into use since the plan stays. The bytes freed.

        ``on_wait`` is called once, if another writes to the store.
        """
        records = [self._records / record_file_name(record.name) for record in plan.records]
        records.extend(plan.unreadable)
        if not (records or plan.blobs or plan.leftovers):
            return 0
        with writing(self.root), self._exclusive(on_wait):
            if plan.blobs:
                self.refuse_unreadable()
            for path in records:
                path.unlink(missing_ok=True)
            if records and self._records.is_dir():
                sync_folder(self._records)
            needed = self._named_by(self.records())
            freed_bytes = sum(self._remove(path) for path in plan.blobs if path not in needed)
            return freed_bytes + sum(self._remove(path) for path in plan.leftovers)

    def verify(self, record: ModelRecord, on_progress: Callable[[int], None] = lambda _: None) -> list[str]:
        """Hash all its files anew: a sentence for each that is not right.

        ``on_progress``: bytes hashed so far, of all files together.
        """
        sizes = [file.size_bytes for file in record.files]
        befores = accumulate(sizes, initial=0)
        found = [
            self._verify(file, partial(_ahead, on_progress, before))
            for file, before in zip(record.files, befores, strict=False)
        ]
        return [problem for problem in found if problem is not None]

    def trusted(self, record: ModelRecord) -> bool:
        """Whether its files are what the record says."""
        return all(map(self.is_sound, record.files))

    def is_sound(self, file: FileRecord, on_progress: Callable[[int], None] = lambda _: None) -> bool:
        """Whether its blob is there and right: hashed once, and again only after it has changed.

        ``on_progress``: bytes hashed so far, if it is hashed.
        """
        if not self.has_blob(file.sha256, file.size_bytes):
            return False
        return self._trusted.has(self.blob_path(file.sha256)) or self._verify(file, on_progress) is None

    def free_bytes(self) -> int:
        """What can be written where the store is, or would be."""
        with reading(self.root):
            return free_bytes_of(self.root)

    def _read_all(self) -> tuple[list[ModelRecord], dict[Path, str]]:
        """The records by name, and why the others cannot be read."""
        found: list[ModelRecord] = []
        unreadable: dict[Path, str] = {}
        for path in listed(self._records):
            if path.suffix != ".json":
                continue
            try:
                found.append(_read(path))
            except FileNotFoundError:  # removed just now
                continue
            except (OSError, ValueError, StoreError) as error:
                unreadable[path] = reason_of(error) if isinstance(error, OSError) else str(error)
        return sorted(found, key=lambda record: record.name.lower()), unreadable

    def refuse_unreadable(self) -> None:
        """Raises ``StoreError`` while a record cannot be read: its model may need any blob."""
        for path, reason in self._read_all()[1].items():
            raise StoreError(
                f"The record {path} cannot be read ({reason.rstrip('.')}), and its model may need any file of"
                " the store, so nothing is removed; mend it, or give it up with:"
                f" nexa-runtime rm --force {shlex.quote(unquote(path.stem))}"
            )

    def _verify(self, file: FileRecord, on_progress: Callable[[int], None]) -> str | None:
        path = self.blob_path(file.sha256)
        stamp = stamp_of(path)
        if stamp is None:
            return f"{file.name} is missing."
        try:
            is_right = sha256_of(path, on_progress) == file.sha256
        except OSError as error:
            return f"{file.name} cannot be read: {reason_of(error)}."
        # The stamp from before: a change while it was hashed must show.
        self._trusted.note(path, stamp if is_right else None)
        return None if is_right else f"{file.name} is damaged: its bytes are not those that were recorded."

    def _named_by(self, records: Iterable[ModelRecord]) -> set[Path]:
        return {path for record in records for path in self.paths(record)}

    def _exclusive(self, on_wait: Callable[[], None] = lambda: None) -> AbstractContextManager[None]:
        """Between writers, so that no blob is removed while a record that names it is written."""
        return holding(FileLock(self.root / ".lock", thread_local=False), self.root, on_wait)

    def _idle_partials(self) -> Iterator[Path]:
        free: dict[str, bool] = {}
        for path in listed(self._partial):
            match = _PARTIAL.fullmatch(path.name)
            if match and free.setdefault(match[1], self._locks.is_free(match[1])):
                yield path

    def _remove(self, path: Path) -> int:
        """Remove a blob or a leftover, unless somebody holds it; the bytes freed."""
        match = _BLOB.fullmatch(path.name) or _PARTIAL.fullmatch(path.name)
        if match is None:
            return _unlink(path)
        with self._locks.try_hold(match[1]) as is_ours:
            return _unlink(path) if is_ours else 0


def _read(path: Path) -> ModelRecord:
    """Raises ``OSError``, ``ValueError``, ``StoreError``."""
    with path.open("rb") as file:
        content = file.read(MAX_RECORD_BYTES + 1)
    if len(content) > MAX_RECORD_BYTES:
        raise ValueError("it is too large")
    record = decode_record(content)
    if record_file_name(record.name) != path.name:
        raise ValueError("its name is not that of its file")
    return record


def _plain(name: str) -> str:
    return name.lower().removesuffix(_LATEST)


def _checked(sha256: str) -> str:
    """``sha256``, if it may be a part of a path."""
    if not is_sha256(sha256):
        raise IntegrityError(f"{sha256[:80]!r} is not a SHA-256 sum.")
    return sha256


def _temporary(folder: Path) -> list[Path]:
    return [path for path in listed(folder) if path.suffix == TEMPORARY_SUFFIX]


def _size_of(paths: Iterable[Path]) -> int:
    return sum(stamp[1] for path in paths if (stamp := stamp_of(path)))


def _unlink(path: Path) -> int:
    freed_bytes = _size_of([path])
    path.unlink(missing_ok=True)
    return freed_bytes


def _ahead(on_progress: Callable[[int], None], before: int, done: int) -> None:
    on_progress(before + done)
