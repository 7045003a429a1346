"""Bringing a model into the store from files of this machine.

Owns finding the parts of a split model beside its first, which name a model may take, and copying while
hashing. It links nothing: a file that somebody may still write to must not become a blob. ``cli`` calls it.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from nexa_runtime.errors import NotFoundError, StoreError, UsageError
from nexa_runtime.store.arrival import (
    OnEvent,
    Progress,
    PullEvent,
    adopt,
    ignore,
    locked,
    make_record,
    refuse_full,
    save_new,
)
from nexa_runtime.store.files import sha256_of, writing
from nexa_runtime.store.gguf import read_header
from nexa_runtime.store.names import quant_of, split_paths
from nexa_runtime.store.reference import check_name
from nexa_runtime.store.store import FileRecord, ModelRecord, ModelStore

_READ_BYTES = 1 << 20


def import_file(
    paths: Path | Sequence[Path],
    *,
    store: ModelStore,
    name: str | None = None,
    is_forced: bool = False,
    on_event: OnEvent = ignore,
) -> ModelRecord:
    """Copy a GGUF file, or all files of a split model given its first, into the store.

    ``name``: of the model; without it, what its files are called. ``is_forced``: also in the place of another
    model of that name. Raises ``StoreError``s.
    """
    sources = find_files(paths)
    for source in sources:
        read_header(source)
    name = check_name(split_paths(sources[0].name)[1] if name is None else name)
    old = store.find(name)
    if old is not None and not is_forced:
        if not _is_same(old, sources, on_event):
            raise UsageError(
                f'"{name}" is another model in the store; --name gives this one another name, --force'
                " replaces that one."
            )
        if store.trusted(old):
            text = f"{old.name}: in the store already, and the same"
            on_event(PullEvent("done", "", old.size_bytes, old.size_bytes, text))
            return old
    needed_bytes = sum(source.stat().st_size for source in sources)
    refuse_full(store, needed_bytes)

    def on_wait() -> None:
        on_event(PullEvent("waiting", sources[0].name, 0, needed_bytes, "somebody else has it; waiting"))

    # A file's sum is known only after the copy, so its partial and lock go by where it lies.
    partials = [store.partial_path(_key(source)) for source in sources]
    with writing(store.root, needed_bytes), locked(store, map(_key, sources), on_wait), ExitStack() as stack:
        for partial in partials:
            stack.callback(partial.unlink, missing_ok=True)
        files = tuple(_copy(*pair, on_event) for pair in zip(sources, partials, strict=True))
        with locked(store, (file.sha256 for file in files), on_wait):
            headers = [
                adopt(partial, file.name, file.sha256, store)
                for partial, file in zip(partials, files, strict=True)
            ]
            made = make_record(headers, files, name=name, quant=quant_of(sources[0].name))
            record, _ = save_new(made, store, is_mended=True)
    text = f"{record.name}: imported"
    on_event(PullEvent("done", "", record.size_bytes, record.size_bytes, text))
    return record


def find_files(paths: Path | Sequence[Path]) -> tuple[Path, ...]:
    """The files of a model, given all of them or the first, which can all be read.

    Raises ``NotFoundError``, ``UsageError``, ``StoreError``.
    """
    given = (paths,) if isinstance(paths, Path) else tuple(paths)
    if not given:
        raise UsageError("No file was given.")
    _check_file(given[0])
    if len(given) == 1:
        given = tuple(given[0].with_name(name) for name in split_paths(given[0].name)[0])
    for path in given[1:]:
        _check_file(path)
    return given


def _check_file(path: Path) -> None:
    # Not Path.exists, which raises for a name that is too long.
    if not os.path.exists(path):
        raise NotFoundError(f"There is no file {str(path)[:200]}.")
    if not os.path.isfile(path):
        raise UsageError(f"{path} is no file.")
    if not os.access(path, os.R_OK):
        raise StoreError(f"{path} cannot be read: permission denied.")


def _is_same(record: ModelRecord, sources: Sequence[Path], on_event: OnEvent) -> bool:
    """Whether a model's files are these. They are hashed only where their sizes are right."""
    if [file.size_bytes for file in record.files] != [source.stat().st_size for source in sources]:
        return False
    return all(
        file.sha256 == sha256_of(source, Progress(source.name, file.size_bytes, on_event))
        for file, source in zip(record.files, sources, strict=True)
    )


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
