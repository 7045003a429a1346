"""What every way into the store shares: events, space, locks, adoption, the record.

Owns the last steps of a pull and of an import, so that both end alike: a header is read before a file gets
its final name, and the record is written last, while the blobs are still locked. It never fetches or copies.
``pull`` and ``importing`` call it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from nexa_runtime.errors import IntegrityError, NoSpaceError, StoreError
from nexa_runtime.store.files import try_writing
from nexa_runtime.store.gguf import GgufHeader, UnreadableFileError, read_header
from nexa_runtime.store.store import FileRecord, ModelRecord, ModelStore

PROGRESS_EVERY_S = 0.1

Kind = Literal["plan", "progress", "verify", "waiting", "retry", "done"]


@dataclass(frozen=True, slots=True)
class PullEvent:
    """What happens now. Bytes are those of ``file``, and of the whole model where ``file`` is empty."""

    kind: Kind
    file: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    text: str = ""


OnEvent = Callable[[PullEvent], None]


def ignore(_: PullEvent) -> None:
    """For who wants no events."""


class Progress:
    """Bytes that are there become events, not more than a few in a second."""

    def __init__(self, file: str, total_bytes: int, on_event: OnEvent) -> None:
        self._file = file
        self._total_bytes = total_bytes
        self._on_event = on_event
        self._next_at = 0.0

    def __call__(self, done_bytes: int) -> None:
        now = time.monotonic()
        if now >= self._next_at or done_bytes == self._total_bytes:
            self._next_at = now + PROGRESS_EVERY_S
            self._on_event(PullEvent("progress", self._file, done_bytes, self._total_bytes))


@contextmanager
def locked(store: ModelStore, keys: Iterable[str], on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold several locks of the store. All take them in one order, so that no two wait for each other."""
    with ExitStack() as stack:
        for key in sorted(set(keys)):
            stack.enter_context(store.lock(key, on_wait))
        yield


def refuse_full(store: ModelStore, needed_bytes: int) -> None:
    """Raises ``NoSpaceError`` unless so many bytes can be written."""
    free_bytes = store.free_bytes()
    if free_bytes < needed_bytes:
        # Where nothing can be written, as in /proc, nothing is free either, and that is not the reason.
        try_writing(store.root)
        raise NoSpaceError(store.root, needed_bytes, free_bytes)


def adopt(partial: Path, shown: str, sha256: str, store: ModelStore) -> GgufHeader:
    """Give a finished transfer its final name; its header. What is not a GGUF file is removed.

    ``shown``: what the file is called where it came from. Raises ``IntegrityError``; what cannot be read now
    stays for another try.
    """
    try:
        header = read_header(partial)
    except UnreadableFileError:
        raise StoreError(
            f"{shown} was transferred and cannot be read back; the next pull tries again."
        ) from None
    except IntegrityError as error:
        partial.unlink()
        # The partial's own name means nothing to whoever pulls.
        raise IntegrityError(str(error).replace(partial.name, shown)) from None
    store.adopt(partial, sha256)
    return header


def make_record(
    headers: Sequence[GgufHeader],
    files: tuple[FileRecord, ...],
    *,
    name: str,
    quant: str | None,
    aliases: tuple[str, ...] = (),
    repo: str | None = None,
    revision: str | None = None,
) -> ModelRecord:
    """Raises ``IntegrityError`` unless the files are, in this order, all parts of one model."""
    for index, (header, file) in enumerate(zip(headers, files, strict=True)):
        if (header.split_index, header.num_splits) != (index, len(files)):
            raise IntegrityError(
                f"{file.name} says that it is part {header.split_index + 1} of {header.num_splits} of a"
                f" model, and it should be {index + 1} of {len(files)}."
            )
    return ModelRecord(
        name=name,
        aliases=aliases,
        repo=repo,
        revision=revision,
        quant=quant or headers[0].quant,
        files=files,
        added_at=datetime.now(UTC).isoformat(timespec="seconds"),
        architecture=headers[0].architecture,
        num_parameters=sum(header.num_parameters for header in headers),
        context_tokens=headers[0].context_tokens,
        license=headers[0].license,
    )


def save_new(record: ModelRecord, store: ModelStore, *, is_mended: bool) -> tuple[ModelRecord, bool]:
    """Write the record unless it says nothing new; what is in the store now, and whether it is new.

    ``is_mended``: a blob was written. The record is then written again as it was: a running server looks at
    the folder of records to see what has changed.
    """
    old = store.find(record.name)
    is_new = old is None or replace(old, added_at=record.added_at) != record
    saved = record if old is None or is_new else old
    if is_new or is_mended:
        store.save(saved)
    return saved, is_new
