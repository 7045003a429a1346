"""Standard error behind a thread: order, and a target that is slow, full or gone."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nexa_runtime.telemetry import behind, flush_stderr, get_logger, stderr_behind

log = get_logger("room")


@contextmanager
def stderr_at(descriptor: int) -> Iterator[None]:
    """``sys.stderr`` as a process has it whose standard error is this."""
    before = sys.stderr
    with os.fdopen(descriptor, "w", closefd=False) as stream:
        sys.stderr = stream
        try:
            with stderr_behind():
                yield
        finally:
            sys.stderr = before


def numbers_in(data: bytes) -> list[Any]:
    return [json.loads(line)["number"] for line in data.splitlines()]


def test_lines_come_in_their_order(tmp_path: Any) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file, stderr_at(file.fileno()):
        assert not sys.stderr.isatty()
        for number in range(500):
            log.info("event", number=number)
        flush_stderr()
        assert len(path.read_bytes().splitlines()) == 500
        log.info("event", number=500)
    assert numbers_in(path.read_bytes()) == list(range(501))


def test_whoever_logs_never_waits_for_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind, "_MAX_WAITING_BYTES", 200_000)
    reader, writer = os.pipe()
    data = b""
    try:
        with stderr_at(writer):
            for number in range(5000):
                log.info("event", number=number)
            while b"lines_lost" not in data:
                data += os.read(reader, 65536)
                log.info("event", number=5000)
            log.info("last")
            while b'"last"' not in data:
                data += os.read(reader, 65536)
    finally:
        os.close(reader)
        os.close(writer)
    lines = [json.loads(line) for line in data.splitlines()]
    numbers = [line["number"] for line in lines if line.get("number", 5000) < 5000]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) < 5000
    assert sum(line.get("lines", 0) for line in lines) >= 5000 - len(numbers)


def test_a_target_that_was_full_gets_whole_lines_and_the_count(tmp_path: Any) -> None:
    path = tmp_path / "log"
    target = os.open("/dev/full", os.O_WRONLY)
    try:
        with stderr_at(target):
            for number in range(3):
                log.info("event", number=number)
            flush_stderr()
            with path.open("wb") as file:
                os.dup2(file.fileno(), target)
            log.info("event", number=3)
    finally:
        os.close(target)
    lost, line = map(json.loads, path.read_bytes().splitlines())
    assert (lost["event"], lost["level"], lost["lines"]) == ("lines_lost", "warning", 3)
    assert line["number"] == 3


def test_a_target_without_a_reader_takes_nothing_and_harms_nobody() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with stderr_at(writer):
            sys.stderr.write("not only lines")
            log.info("event")
            flush_stderr()
    finally:
        os.close(writer)


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        with stderr_at(writer):
            for number in range(2000):
                log.info("event", number=number)
            data = b""
            while data.count(b"\n") < 2000:
                data += os.read(reader, 65536)
        assert numbers_in(data) == list(range(2000))
    finally:
        os.close(reader)
        os.close(writer)
