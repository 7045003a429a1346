"""The one thread that computes, for every model that is loaded.

Owns the engine thread: no two models compute at once, so that cores are not fought over and no lock is
needed. Each step runs one batch of one model, that of the tenant with least virtual time, and of equals the
model that has waited longest. What a step produced is handed over in one call of ``publish``, on this thread:
the receiver must be quick and must not raise. ``serving`` calls it.
"""

import threading
import time
from collections.abc import Callable

from nexa_runtime.engine.model_engine import ModelEngine, News, StepShape
from nexa_runtime.errors import DecodeError
from nexa_runtime.telemetry import get_logger

_log = get_logger("engine")

Publish = Callable[[list[News]], None]


class Engine:
    """Runs models from ``attach`` to their ``stop``, until its own. A stopped engine is not started again."""

    def __init__(self, publish: Publish) -> None:
        """``publish`` is called on the engine thread with each step's news."""
        self.is_busy = False
        """Whether the thread works, and does not wait for work. Any thread may read it, and ``num_turns``."""
        self.num_turns = 0
        """How often it has looked for work: while it is busy and this stays, one turn is under way."""
        self._acting: ModelEngine | None = None
        """The model that acts, or acted last."""
        self._publish = publish
        self._models: list[ModelEngine] = []
        """Those that have waited longest come first."""
        self._arriving: list[ModelEngine] = []
        self._wake = threading.Event()
        self._is_stopping = False
        self._gate = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="nexa-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def thread_id(self) -> int | None:
        """The thread's, as in ``sys._current_frames``; None before ``start``."""
        return self._thread.ident

    @property
    def step_shape(self) -> StepShape | None:
        """What is being computed at this moment; any thread may ask."""
        model = self._acting
        return None if model is None else model.step_shape

    def attach(self, model: ModelEngine) -> None:
        """Run a model's steps from now on; it takes no requests once ``stop`` was called. Any thread."""
        with self._gate:
            if self._is_stopping:
                model.close_inbox()
                return
            model.attach(self._wake.set)
            self._arriving.append(model)
        self._wake.set()

    def stop(self, timeout_s: float = 30.0) -> bool:
        """Stop every model and the thread with them; False if it did not end."""
        with self._gate:
            self._is_stopping = True
        for model in [*self._models, *self._arriving]:
            model.interrupt()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._is_stopping:
            self._wake.clear()
            self.num_turns += 1
            self.is_busy = True
            self._take_changes()
            if not self._step():
                for model in self._models:
                    model.rest()
                if not self._is_stopping:  # stop's wake-up may have been cleared with the others'
                    self.is_busy = False
                    self._wake.wait()
        self._take_changes()
        for model in self._models:
            self._end(model)
        self.is_busy = False

    def _take_changes(self) -> None:
        """Models that came and went, and all that is in the inboxes."""
        while self._arriving:
            self._models.append(self._arriving.pop(0))
        for model in [one for one in self._models if one.is_stopping]:
            self._models.remove(model)
            self._end(model)
        for model in self._models:
            self._guarded(model, model.take_inbox)

    def _step(self) -> bool:
        """One step of the model whose tenant has paid least; False when no model has anything to do."""
        waiting = [(at, model) for model in self._models if (at := model.least_virtual_time()) is not None]
        if not waiting:
            # An idle model may still have cells to free: each gets its step.
            is_busy = [self._guarded(model, model.step) for model in self._models]
            return any(is_busy)
        _, model = min(waiting, key=lambda entry: entry[0])
        self._models.remove(model)
        self._models.append(model)
        self._guarded(model, model.step)
        return True

    def _guarded(self, model: ModelEngine, act: Callable[[], bool | None]) -> bool:
        """Let a model act; a bug there ends its requests, and no client waits for ever."""
        is_busy = False
        self._acting = model
        try:
            is_busy = bool(act())
        except Exception as error:  # noqa: BLE001
            _log.exception("step_crashed")
            model.fail_all(DecodeError(f"an internal error ({type(error).__name__})"))
        self._hand_over(model)
        return is_busy

    def _end(self, model: ModelEngine) -> None:
        self._guarded(model, model.end)
        self._acting = None
        model.note_ended()

    def _hand_over(self, model: ModelEngine) -> None:
        if news := model.take_news():
            start = time.monotonic()
            self._publish(news)
            model.note_published(time.monotonic() - start)
