"""One model of the pool: what is known of it, who uses it, and what became of its last load.

Owns the words for a model's state and the times after which it is unloaded or tried again. It never loads,
frees or waits: ``pool`` alone changes it, on the event loop.
"""

import asyncio
import time
from dataclasses import dataclass

from nexa_runtime.errors import ModelFileError, ModelLoadFailedError, ModelLoadingError, NexaError
from nexa_runtime.serving.library import ModelSource
from nexa_runtime.serving.loaded import LoadedModel

FAILED_S = 30.0
"""A model that could not be loaded is not tried again for so long."""
_PATIENCE = 10
"""Where nobody asks for it, it is not for so many times as long as it took to fail either: a damaged file is
hashed each time.
"""


@dataclass(slots=True, eq=False)
class Entry:
    """``source``: of the model that is loaded, or else would be. ``num_leases``: requests that use it.

    ``num_waiting``: requests that wait for it. Times are of the monotonic clock; ``begun_at``: the last load.
    ``load_s``: seconds that the last one took that went well. ``refusal``: why there is no model, after one
    that did not; ``failed_at``: when that was.
    """

    source: ModelSource
    model: LoadedModel | None = None
    num_leases: int = 0
    num_waiting: int = 0
    is_draining: bool = False
    last_used: float = 0.0
    loaded_at: float = 0.0
    loading: asyncio.Task[LoadedModel] | None = None
    begun_at: float = 0.0
    load_s: float | None = None
    refusal: NexaError | None = None
    failed_at: float = 0.0

    @property
    def held_bytes(self) -> int:
        """Memory of the loaded model."""
        return 0 if self.model is None else self.model.memory_bytes

    @property
    def is_held(self) -> bool:
        """In memory, or on the way into it."""
        return self.model is not None or self.loading is not None

    @property
    def is_idle(self) -> bool:
        """Loaded, and nobody uses it or is about to: those who waited for it have their turn first."""
        is_awaited = bool(self.num_waiting) and not self.is_draining
        return self.model is not None and not self.num_leases and not is_awaited

    @property
    def is_unwanted(self) -> bool:
        """Idle for longer than it is to be kept."""
        keep_s = None if self.source.is_pinned else self.source.keep_alive_s
        return self.is_idle and keep_s is not None and time.monotonic() - self.last_used > keep_s

    @property
    def is_due(self) -> bool:
        """Whether it is to be loaded now though nobody asks: the default always, another one once."""
        if self.is_held or not self.source.is_preloaded:
            return False
        if self.refusal is not None:
            failing_s = self.failed_at - self.begun_at
            return time.monotonic() - self.failed_at > max(FAILED_S, _PATIENCE * failing_s)
        return self.source.is_pinned or self.load_s is None

    @property
    def state(self) -> str:
        """``loaded``, ``draining``, ``loading``, ``failed`` or ``stored``."""
        if self.model is not None:
            return "draining" if self.is_draining else "loaded"
        return "loading" if self.loading else "failed" if self.refusal is not None else "stored"

    @property
    def failure(self) -> str | None:
        """Why there is no model, if one was tried."""
        if isinstance(self.refusal, ModelLoadFailedError):
            return self.refusal.reason
        return None if self.refusal is None else str(self.refusal)

    def follow(self, source: ModelSource) -> None:
        """Take what goes by its name now, while nothing is loaded; another one is not the one that failed."""
        if not self.is_held and source != self.source:
            self.source, self.refusal, self.load_s = source, None, None

    def begin(self, loading: asyncio.Task[LoadedModel]) -> None:
        """It is being loaded."""
        self.loading, self.begun_at = loading, time.monotonic()

    def complete(self, model: LoadedModel) -> None:
        """It is loaded."""
        self.model, self.refusal = model, None
        self.last_used = self.loaded_at = time.monotonic()
        self.load_s = self.loaded_at - self.begun_at

    def refuse(self, refusal: NexaError) -> None:
        """It could not be loaded."""
        self.refusal, self.failed_at = refusal, time.monotonic()

    def check_not_failed(self) -> None:
        """Raise ``ModelLoadFailedError`` if it failed lately. A lack of memory may be over at any time."""
        left_s = self.failed_at + FAILED_S - time.monotonic()
        if isinstance(self.refusal, ModelLoadFailedError) and left_s > 0:
            raise ModelLoadFailedError(self.source.id, self.refusal.reason, left_s)

    def loading_error(self) -> ModelLoadingError:
        """For whoever does not wait, or no longer."""
        return ModelLoadingError(self.source.id, time.monotonic() - self.begun_at, self.load_s)


def load_failed(source: ModelSource, error: Exception) -> ModelLoadFailedError:
    """What whoever asked is told of an error: paths of this box are for its owner's log."""
    reason = str(error) if isinstance(error, NexaError) else f"an internal error ({type(error).__name__})."
    if isinstance(error, ModelFileError):
        reason = f"{error.reason}."
    return ModelLoadFailedError(source.id, reason, FAILED_S)
