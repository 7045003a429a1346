"""The watchdog: it sees what hangs and what only slept. Its clock is ours."""

import os
import threading
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from nexa_runtime.engine.model_engine import StepShape
from nexa_runtime.server.watchdog import EXIT_HUNG, FATAL_TIMES, Watchdog
from nexa_runtime.telemetry import stderr_behind

LIMIT_S = 8.0
TICK_S = 1.0


@dataclass
class Thread:
    """An engine as the watchdog sees it."""

    is_busy: bool = False
    num_turns: int = 0
    thread_id: int | None = field(default_factory=threading.get_ident)
    step_shape: StepShape | None = None


class Watch:
    """A watchdog on a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.codes: list[int] = []
        self.engine = Thread()
        self.dog = Watchdog(LIMIT_S, clock=lambda: self.now, end=self.codes.append)
        self.dog.watch(self.engine, threading.get_ident())
        assert self.dog.tick_s == TICK_S

    def tick(self, seconds: float = TICK_S, *, beats: bool = True) -> None:
        self.now += seconds
        if beats:
            self.dog.note_beat()
        self.dog.look()

    def pass_time(self, seconds: float, *, beats: bool = True) -> None:
        for _ in range(int(seconds / TICK_S)):
            self.tick(beats=beats)


def test_an_engine_at_rest_and_one_that_goes_on_are_well() -> None:
    watch = Watch()
    watch.pass_time(100)
    watch.engine.is_busy = True
    for _ in range(100):
        watch.engine.num_turns += 1
        watch.pass_time(LIMIT_S)
        assert not watch.dog.is_engine_hung
    assert not watch.codes


def test_a_step_that_hangs_is_unready_then_fatal() -> None:
    watch = Watch()
    watch.engine.is_busy = True
    watch.engine.step_shape = StepShape("demo", "generation", 12, 4, 5)
    with capture_logs() as lines:
        watch.pass_time(LIMIT_S + 2)
        assert watch.dog.is_engine_hung
        watch.pass_time(FATAL_TIMES * LIMIT_S - 2 * LIMIT_S)
        assert not watch.codes
        watch.pass_time(LIMIT_S)
    assert watch.codes[0] == EXIT_HUNG
    assert [line["event"] for line in lines[:2]] == ["engine_hangs", "given_up"]
    assert {"model": "demo", "num_rows": 12, "hung": "engine", "exit_code": EXIT_HUNG}.items() <= lines[
        1
    ].items()
    assert any(__file__ in call for call in lines[1]["stack"])


def test_a_slow_step_that_ends_is_ready_again() -> None:
    watch = Watch()
    watch.engine.is_busy = True
    with capture_logs() as lines:
        watch.pass_time(LIMIT_S + 2)
        assert watch.dog.is_engine_hung
        watch.engine.num_turns += 1
        watch.tick()
        assert not watch.dog.is_engine_hung
    assert [line["event"] for line in lines] == ["engine_hangs", "engine_goes_on"]


@pytest.mark.parametrize(("rows", "times"), [(1, 1), (512, 1), (8192, 16)])
def test_a_step_has_time_for_its_tokens(rows: int, times: int) -> None:
    watch = Watch()
    watch.engine.is_busy = True
    watch.engine.step_shape = StepShape("demo", "embedding", rows, 0, 1)
    watch.pass_time(times * LIMIT_S)
    assert not watch.dog.is_engine_hung
    watch.pass_time(3)
    assert watch.dog.is_engine_hung


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_machine_that_slept_and_a_clock_that_jumps_harm_nothing(jump_s: float) -> None:
    watch = Watch()
    watch.engine.is_busy = True
    watch.pass_time(LIMIT_S / 2)
    for _ in range(3):
        watch.tick(jump_s, beats=False)
        assert not watch.dog.is_engine_hung
        watch.engine.num_turns += 1
        watch.tick()
    assert not watch.codes


def test_an_event_loop_that_is_blocked_is_fatal() -> None:
    watch = Watch()
    with capture_logs() as lines:
        watch.tick()
        watch.pass_time(FATAL_TIMES * LIMIT_S, beats=False)
        assert not watch.codes
        watch.tick(beats=False)
    assert watch.codes == [EXIT_HUNG]
    assert [line["event"] for line in lines] == ["event_loop_hangs", "given_up"]
    assert lines[1]["hung"] == "event loop"


def test_a_log_that_takes_nothing_does_not_keep_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writer, True)
    monkeypatch.setattr("nexa_runtime.server.watchdog._SAY_S", 0.05)
    watch = Watch()
    watch.engine.is_busy = True
    with os.fdopen(writer, "w") as full:
        monkeypatch.setattr("sys.stderr", full)
        with stderr_behind():
            watch.pass_time(FATAL_TIMES * LIMIT_S + 2)
            assert watch.codes
        monkeypatch.undo()
        os.close(reader)  # lets go of the thread that writes
