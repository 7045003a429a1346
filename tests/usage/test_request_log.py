"""The request log as a file: whole lines, set aside by size, and what a disk may do."""

import asyncio
import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from nexa_runtime.config import load_settings
from nexa_runtime.errors import ConfigError
from nexa_runtime.usage import log_file, request_log
from nexa_runtime.usage.log_file import NUM_OLD, LogFile, PartlyWrittenError
from nexa_runtime.usage.log_line import LineError, read_line, write_line
from nexa_runtime.usage.request_log import RequestLog, check_request_log
from tests.support import wait_until
from tests.usage.records import record

MakeLog = Callable[..., RequestLog]


@pytest.fixture
def make_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeLog]:
    """Started logs, which end with the test; they try again at once."""
    monkeypatch.setattr(request_log, "_GATHER_S", 0.01)
    monkeypatch.setattr(request_log, "_RETRY_S", 0.01)
    logs: list[RequestLog] = []

    def make(path: Path, max_bytes: int = 2**20) -> RequestLog:
        logs.append(RequestLog(path, max_bytes))
        logs[-1].start()
        return logs[-1]

    yield make
    for log in logs:
        asyncio.run(log.close())


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_a_line_has_every_field_of_its_record() -> None:
    line = write_line(record(body={"prompt": "Hi"}))
    fields = orjson.loads(line)
    assert fields["created_at"] == "2026-05-01T12:00:30Z"
    assert (fields["total_tokens"], fields["queue_ms"], fields["finish_reason"]) == (10, 0.4, "stop")
    read = read_line(line)
    assert (read.tenant_id, read.prompt_tokens, read.body) == ("acme", 7, {"prompt": "Hi"})
    assert "body" not in orjson.loads(write_line(record()))


def test_a_body_that_cannot_be_written_is_left_out() -> None:
    deep: dict[str, object] = {}
    for _ in range(500):
        deep = {"a": deep}
    assert read_line(write_line(record(body=deep))).body is None


def test_newlines_in_a_text_make_no_line() -> None:
    assert write_line(record(request_id="a\r\nb", model="x\u2028{}")).count(b"\n") == 1


GOOD = orjson.loads(write_line(record()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tenant_id": "a\r\nX-Evil: 1"}, "tenant_id"),
        ({"prompt_tokens": -1}, "prompt_tokens"),
        ({"prompt_tokens": 10**12}, "prompt_tokens"),
        ({"completion_tokens": "3"}, "completion_tokens"),
        ({"cached_tokens": 8}, "cached_tokens are more"),
        ({"created_at": "yesterday"}, "created_at"),
        ({"created_at": "2026-05-01T12:00:30"}, "created_at"),
        ({"status": True}, "status"),
        ({"body": []}, "body"),
        ({"model": ""}, "model"),
    ],
    ids=lambda one: "-".join(one) if isinstance(one, dict) else "",
)
def test_a_line_of_another_kind_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(LineError, match=words):
        read_line(orjson.dumps(GOOD | change))


@pytest.mark.parametrize(
    "line", [b"", b"null", b"[]", b"{}", b"{", b"\xff\xfe", b"\0" * 9, b"[" * 10_000, b'{"a":1e999}']
)
def test_what_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(LineError):
        read_line(line)


def test_a_line_that_was_cut_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"whole": 1}\n{"cut": ')
    file = LogFile(path, 4096)
    assert file.write([b'{"next": 1}\n']) == 1
    file.close()
    assert path.read_bytes() == b'{"whole": 1}\n{"cut": \n{"next": 1}\n'


def test_a_disk_that_is_full_in_the_middle_of_a_line_loses_none(tmp_path: Path) -> None:
    path, before = tmp_path / "log", resource.getrlimit(resource.RLIMIT_FSIZE)
    file = LogFile(path, 2**20)
    lines = [b"%099d\n" % number for number in range(5)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (250, before[1]))
    try:
        with pytest.raises(PartlyWrittenError) as caught:
            file.write(lines)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.num_done == 2
    assert file.write(lines[2:]) == 3
    file.close()
    assert path.read_bytes().splitlines(keepends=True) == [*lines[:2], lines[2][:50] + b"\n", *lines[2:]]


def test_a_file_that_fails_to_close_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LogFile(tmp_path / "log", 4096)
    assert file.write([b"1\n"]) == 1
    with monkeypatch.context() as failing:
        failing.setattr(log_file, "os", FullOs())
        with pytest.raises(PartlyWrittenError, match="No space left"):
            file.write([b"2\n"])
    assert file.write([b"2\n"]) == 1
    file.close()
    assert (tmp_path / "log").read_bytes() == b"1\n2\n"


class FullOs:
    """``os`` as it is for a disk behind a network that is full, and says so again when a file is closed."""

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def write(self, descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self, descriptor: int) -> None:
        os.close(descriptor)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_old_files_are_kept_and_no_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = LogFile(path, 100)
    lines = [b"%028d\n" % number for number in range(26)]
    rest = lines
    while rest:
        rest = rest[file.write(rest) :]
    file.write([b"x" * 150 + b"\n"])
    file.close()
    names = ["log", *(f"log.{number}" for number in range(1, NUM_OLD + 1))]
    assert sorted(one.name for one in tmp_path.iterdir()) == names
    assert [len((tmp_path / name).read_bytes().splitlines()) for name in names] == [1, 2, 3, 3, 3, 3]
    assert (tmp_path / "log.1").read_bytes() == b"".join(lines[-2:])


def test_a_file_that_is_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = LogFile(path, 4096)
    file.write([b"one\n"])
    path.rename(tmp_path / "moved")
    file.write([b"two\n"])
    file.close()
    assert (path.read_bytes(), (tmp_path / "moved").read_bytes()) == (b"two\n", b"one\n")


def test_a_device_is_written_to_and_never_set_aside() -> None:
    file = LogFile(Path("/dev/null"), 10)
    assert sum(file.write([b"a line of text\n"]) for _ in range(3)) == 3
    file.close()
    full = LogFile(Path("/dev/full"), 10)
    with pytest.raises(PartlyWrittenError, match="No space left"):
        full.write([b"a line\n"])


def test_records_reach_the_file(tmp_path: Path, make_log: MakeLog) -> None:
    log = make_log(tmp_path / "log")
    for number in range(1000):
        log.put(record(request_id=f"req_{number}"))
    assert wait_until(lambda: log.backlog == 0)
    assert [line["request_id"] for line in lines_of(tmp_path / "log")] == [f"req_{n}" for n in range(1000)]


def test_what_waits_is_written_at_the_end(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log", 2**20)
    log.start()
    for _ in range(600):
        log.put(record())
    asyncio.run(log.close())
    assert (len(lines_of(tmp_path / "log")), log.backlog, log.dropped) == (600, 0, 0)


def test_records_wait_while_the_directory_is_gone(
    tmp_path: Path, make_log: MakeLog, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    log = make_log(folder / "log")
    log.put(record(request_id="before"))
    assert wait_until(lambda: log.backlog == 0)
    (folder / "log").unlink()
    folder.rmdir()
    log.put(record(request_id="meanwhile"))
    assert wait_until(lambda: "request_log_failed" in capsys.readouterr().err)
    folder.mkdir()
    assert wait_until(lambda: log.backlog == 0)
    assert [line["request_id"] for line in lines_of(folder / "log")] == ["meanwhile"]
    assert log.dropped == 0


def test_what_a_full_disk_cannot_take_is_counted_and_said_once(
    make_log: MakeLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(request_log, "MAX_WAITING", 10)
    monkeypatch.setattr(request_log, "_MAX_BATCH", 5)
    log = make_log(Path("/dev/full"))
    log.put(record())
    said = ""

    def has_failed() -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return "request_log_failed" in said

    assert wait_until(has_failed)
    for _ in range(100):
        log.put(record())
    assert log.backlog <= 15
    assert wait_until(lambda: log.backlog + log.dropped == 101)
    asyncio.run(log.close())
    assert (log.backlog, log.dropped) == (0, 101)
    said += capsys.readouterr().err
    assert [said.count(f"request_log_{event}") for event in ("failed", "full", "lost")] == [1, 1, 1]


def test_bodies_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "MAX_BODIES", 2)
    log = RequestLog(tmp_path / "log", 2**20)
    for _ in range(4):
        log.put(record(body={"prompt": "Hi"}))
    log.start()
    assert wait_until(lambda: log.backlog == 0)
    log.put(record(body={"prompt": "Hi"}))
    asyncio.run(log.close())
    assert ["body" in line for line in lines_of(tmp_path / "log")] == [True, True, False, False, True]


@pytest.mark.parametrize("path", ["/no/such/folder/log", "/proc/self/mem/log", "/"])
def test_a_file_that_cannot_be_written_stops_the_start(path: str) -> None:
    with pytest.raises(ConfigError, match=r"NEXA_REQUEST_LOG is '/.*, which cannot be written: "):
        check_request_log(load_settings({"NEXA_REQUEST_LOG": path}).usage)


def test_the_check_makes_a_file_that_only_its_owner_writes(tmp_path: Path) -> None:
    check_request_log(load_settings({"NEXA_REQUEST_LOG": str(tmp_path / "log")}).usage)
    assert os.stat(tmp_path / "log").st_mode & 0o137 == 0
    check_request_log(load_settings().usage)


@pytest.mark.parametrize("size", ["0", "many", "1K"])
def test_a_bad_size_names_the_setting(size: str) -> None:
    with pytest.raises(ConfigError, match="NEXA_REQUEST_LOG_MAX_BYTES"):
        load_settings({"NEXA_REQUEST_LOG_MAX_BYTES": size})
