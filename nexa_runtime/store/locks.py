"""Who works on a blob: a lock file beside its transfer.

Owns the names of transfers and of their locks, and holding these. It never touches a blob. ``store`` alone
calls it.

A lock file may be removed by whoever holds it: who waited for it notices (in filelock) and tries again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from nexa_runtime.store.files import writing

_POLL_S = 0.2


@contextmanager
def holding(lock: FileLock, folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Wait for a lock in a folder; ``on_wait`` is called once before. Raises ``StoreError``."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        is_ours = _acquire(lock)
    if not is_ours:
        on_wait()
        with writing(folder):
            lock.acquire(poll_interval=_POLL_S)
    try:
        yield
    finally:
        lock.release()


class BlobLocks:
    """``folder``: of the transfers; made when the first lock is held."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def partial_path(self, sha256: str) -> Path:
        """Where a blob lies while it is transferred."""
        return self._folder / f"{sha256}.partial"

    @contextmanager
    def hold(self, sha256: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Wait for the blob; ``on_wait`` is called once before. Raises ``StoreError``."""
        lock = self._lock(sha256)
        with holding(lock, self._folder, on_wait):
            yield

    @contextmanager
    def try_hold(self, sha256: str) -> Iterator[bool]:
        """Whether the blob is ours for now: not if another holds it. A lock that there is not is not made."""
        lock = self._lock(sha256)
        if not Path(lock.lock_file).exists():
            yield True
            return
        with writing(self._folder):
            is_ours = _acquire(lock)
        try:
            yield is_ours
        finally:
            lock.release()

    def is_free(self, sha256: str) -> bool:
        """Whether nobody holds the blob; where that cannot be told, somebody might."""
        lock = self._lock(sha256)
        if not Path(lock.lock_file).exists():
            return True
        try:
            is_ours = _acquire(lock)
        except OSError:
            return False
        lock.release()
        return is_ours

    def _lock(self, sha256: str) -> FileLock:
        return FileLock(f"{self.partial_path(sha256)}.lock", thread_local=False)


def _acquire(lock: FileLock) -> bool:
    """Whether the lock is ours now, without waiting."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True
