"""Bringing a model into the store from files of this machine.

Owns finding the parts of a split model beside its first, and copying while hashing. It links nothing: a file
that somebody may still write to must not become a blob. ``cli`` calls it, by way of ``pull``.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from nexa_runtime.errors import NotFoundError, UsageError
from nexa_runtime.store.arrival import (
    OnEvent,
    Progress,
    PullEvent,
    adopt,
    disk_faults,
    ignore,
    locked,
    make_record,
    refuse_full,
    save_new,
)
from nexa_runtime.store.gguf import read_header
from nexa_runtime.store.hub import quant_of, split_paths
from nexa_runtime.store.store import FileRecord, ModelRecord, ModelStore

_READ_BYTES = 1 << 20


def import_file(
    paths: Path | Sequence[Path], *, store: ModelStore, name: str | None = None, on_event: OnEvent = ignore
) -> ModelRecord:
    """Copy a GGUF file, or all files of a split model given its first, into the store.

    ``name``: of the model; without it, what its files are called. Raises ``StoreError``s.
    """
    sources = _sources(paths)
    for source in sources:
        read_header(source)
    needed_bytes = sum(source.stat().st_size for source in sources)
    refuse_full(store, needed_bytes)

    def on_wait() -> None:
        on_event(PullEvent("waiting", sources[0].name, 0, needed_bytes, "another process has it; waiting"))

    # A file's sum is known only after the copy, so its partial and lock go by where it lies.
    partials = [store.partial_path(_key(source)) for source in sources]
    with disk_faults(store, needed_bytes), locked(store, map(_key, sources), on_wait), ExitStack() as stack:
        for partial in partials:
            stack.callback(partial.unlink, missing_ok=True)
        files = tuple(_copy(*pair, on_event) for pair in zip(sources, partials, strict=True))
        with locked(store, (file.sha256 for file in files), on_wait):
            headers = [
                adopt(partial, file.name, file.sha256, store)
                for partial, file in zip(partials, files, strict=True)
            ]
            stem = split_paths(sources[0].name)[1]
            made = make_record(headers, files, name=name or stem, quant=quant_of(sources[0].name))
            record, _ = save_new(made, store)
    text = f"{record.name}: imported"
    on_event(PullEvent("done", "", record.size_bytes, record.size_bytes, text))
    return record


def _sources(paths: Path | Sequence[Path]) -> tuple[Path, ...]:
    given = (paths,) if isinstance(paths, Path) else tuple(paths)
    if not given:
        raise UsageError("No file was given.")
    if len(given) == 1:
        given = tuple(given[0].with_name(name) for name in split_paths(given[0].name)[0])
    for path in given:
        if not path.exists():
            raise NotFoundError(f"There is no file {path}.")
        if not path.is_file():
            raise UsageError(f"{path} is no file.")
    return given


def _key(source: Path) -> str:
    return hashlib.sha256(f"import {source.resolve()}".encode(errors="surrogatepass")).hexdigest()


def _copy(source: Path, partial: Path, on_event: OnEvent) -> FileRecord:
    progress = Progress(source.name, source.stat().st_size, on_event)
    digest, done_bytes = hashlib.sha256(), 0
    with source.open("rb") as reader, partial.open("wb") as writer:
        while chunk := reader.read(_READ_BYTES):
            digest.update(chunk)
            writer.write(chunk)
            done_bytes += len(chunk)
            progress(done_bytes)
    return FileRecord(source.name, done_bytes, digest.hexdigest())
