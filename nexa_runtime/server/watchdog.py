"""Sees whether the engine thread and the event loop go on, from a thread of its own.

Owns the two limits: after the first one the server is not ready (``readiness`` asks), after the second it
says what hangs and ends the process with ``ENGINE_HUNG``, so that whoever supervises it starts it again. It
never ends a step or a request: a thread inside llama.cpp cannot be made to return. ``app`` starts and stops
it with the application.

Time is counted in the watchdog's own ticks. A process that was stopped, or a machine that slept, has missed
ticks, and none of that time counts; nor does a jump of the clock.
"""

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol

from nexa_runtime.engine.model_engine import StepShape
from nexa_runtime.exit_codes import ENGINE_HUNG
from nexa_runtime.telemetry import flush_stderr, get_logger

FATAL_TIMES = 5
"""The second limit, in first ones."""
STEP_ROWS = 512
"""The limit is for a step of so many tokens; one of more, such as a long text to embed, has more time."""

_MAX_TICK_S = 1.0
_TICKS_PER_LIMIT = 8
_MAX_TICKS = 2
"""A late tick counts as so many: the rest of that time nobody ran, this thread neither."""
_SAY_S = 5.0
"""A log that takes no lines must not keep the process alive."""

_log = get_logger("server.watchdog")


class Watched(Protocol):
    """What is looked at of the engine."""

    is_busy: bool
    num_turns: int

    @property
    def thread_id(self) -> int | None:
        """Of its thread."""

    @property
    def step_shape(self) -> StepShape | None:
        """What is being computed."""


class Stillness:
    """For how long something has not moved."""

    def __init__(self) -> None:
        self.still_s = 0.0
        self._mark: int | None = None

    def observe(self, mark: int | None, passed_s: float) -> None:
        """``mark``: another number when it has moved, None while it may rest. ``passed_s``: since last time,
        in seconds.
        """
        has_moved = mark is None or mark != self._mark
        self.still_s = 0.0 if has_moved else self.still_s + passed_s
        self._mark = mark


class Watchdog:
    """``limit_s``: 0 watches nothing. ``start`` is called on the event loop that is to be watched."""

    def __init__(
        self,
        limit_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self.is_engine_hung = False
        """Whether the engine is over its first limit; any thread may ask."""
        self.tick_s = min(_MAX_TICK_S, limit_s / _TICKS_PER_LIMIT)
        self._limit_s = limit_s
        self._clock = clock
        self._end_process = end
        self._looked_at = 0.0
        self._engine: Watched | None = None
        self._engine_stillness = Stillness()
        self._loop_stillness = Stillness()
        self._loop_thread_id = 0
        self._num_beats = 0
        self._is_loop_late = False
        self._beating: asyncio.Task[None] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nexa-watchdog", daemon=True)

    def start(self, engine: Watched) -> None:
        """Watch this engine, and the running event loop."""
        if not self._limit_s:
            return
        self._beating = asyncio.create_task(self._beat())
        self.watch(engine, threading.get_ident())
        self._thread.start()

    def stop(self) -> None:
        """Watch nothing any more. A second call does nothing."""
        if self._beating is not None:
            self._beating.cancel()
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def watch(self, engine: Watched, loop_thread_id: int) -> None:
        """What ``look`` looks at. ``loop_thread_id``: of the event loop's thread."""
        self._engine, self._loop_thread_id = engine, loop_thread_id
        self._looked_at = self._clock()

    def note_beat(self) -> None:
        """The event loop goes on."""
        self._num_beats += 1

    def look(self) -> None:
        """One tick: count how long nothing has moved, and act on it."""
        now = self._clock()
        passed_s = max(0.0, min(now - self._looked_at, _MAX_TICKS * self.tick_s))
        self._looked_at = now
        self._look_at_engine(passed_s)
        self._look_at_loop(passed_s)

    async def _beat(self) -> None:
        while True:
            self.note_beat()
            await asyncio.sleep(self.tick_s)

    def _run(self) -> None:
        while not self._stopping.wait(self.tick_s):
            try:
                self.look()
            except Exception:  # noqa: BLE001 - nobody else watches
                _log.exception("watchdog_crashed")

    def _look_at_engine(self, passed_s: float) -> None:
        engine = self._engine
        assert engine is not None
        self._engine_stillness.observe(engine.num_turns if engine.is_busy else None, passed_s)
        still_s = self._engine_stillness.still_s
        shape = engine.step_shape
        limit_s = self._limit_s * max(1.0, shape.num_rows / STEP_ROWS if shape else 1.0)
        is_hung, was_hung = still_s > limit_s, self.is_engine_hung
        self.is_engine_hung = is_hung
        step = {} if shape is None else asdict(shape)
        if still_s > FATAL_TIMES * limit_s:
            self._give_up("engine", still_s, engine.thread_id, step)
        elif is_hung and not was_hung:
            _log.error("engine_hangs", seconds=round(still_s, 1), stack=_stack(engine.thread_id), **step)
        elif was_hung and not is_hung:
            _log.info("engine_goes_on")

    def _look_at_loop(self, passed_s: float) -> None:
        self._loop_stillness.observe(self._num_beats, passed_s)
        still_s = self._loop_stillness.still_s
        is_late, was_late = still_s > self._limit_s, self._is_loop_late
        self._is_loop_late = is_late
        if still_s > FATAL_TIMES * self._limit_s:
            self._give_up("event loop", still_s, self._loop_thread_id, {})
        elif is_late and not was_late:
            _log.error("event_loop_hangs", seconds=round(still_s, 1), stack=_stack(self._loop_thread_id))

    def _give_up(self, what: str, still_s: float, thread_id: int | None, step: dict[str, object]) -> None:
        """Say what hangs, as far as anyone listens, and end the process."""
        seconds = round(still_s, 1)
        _log.error(
            "given_up",
            hung=what,
            seconds=seconds,
            stack=_stack(thread_id),
            exit_code=ENGINE_HUNG,
            **step,
        )
        flush_stderr(_SAY_S)
        self._end_process(ENGINE_HUNG)


def _stack(thread_id: int | None) -> list[str]:
    """Where a thread is, the innermost call first; without what is in its variables."""
    frame = None if thread_id is None else sys._current_frames().get(thread_id)
    calls = traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False) if frame else ()
    return [f"{one.filename}:{one.lineno} {one.name}" for one in calls]
