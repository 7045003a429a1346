"""The way of records to a real PostgreSQL that stops, hangs, refuses and comes back: all arrive, once."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from nexa_runtime.config import load_settings
from nexa_runtime.errors import ConfigError, UsageDatabaseError
from nexa_runtime.usage import UsageRecord, delivery
from nexa_runtime.usage.database import DatabaseSink, open_database_sink
from nexa_runtime.usage.postgres import UsageTable
from nexa_runtime.usage.spool import Spool
from tests.support import LiveServer, free_settings, wait_until
from tests.usage.postgres_server import PASSWORD, PostgresServer
from tests.usage.records import a_record, some_records

NEXA = Path(sys.executable).with_name("nexa-runtime")
IDS = "SELECT id::text FROM ai_runtime_logs"
REQUEST_IDS = "SELECT request_id FROM ai_runtime_logs"


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "_MIN_RETRY_S", 0.05)
    monkeypatch.setattr(delivery, "_MAX_RETRY_S", 0.2)
    monkeypatch.setattr(delivery, "_GATHER_S", 0.01)


@pytest.fixture
def dsn(postgres: PostgresServer, database: str) -> Iterator[str]:
    """Of a database with the table; it runs again after the test."""
    create(postgres.dsn(database))
    yield postgres.dsn(database)
    if not postgres.is_running:
        postgres.start()


@pytest.fixture
def make_sink(tmp_path: Path) -> Iterator[Callable[[str], DatabaseSink]]:
    """Sinks that have started, with one state folder."""
    sinks: list[DatabaseSink] = []

    def make(dsn: str) -> DatabaseSink:
        settings = load_settings({"NEXA_USAGE_DSN": dsn}).usage_database
        sink = open_database_sink(settings, tmp_path / "usage-spool")
        assert sink is not None
        sink.start()
        sinks.append(sink)
        return sink

    yield make
    for sink in sinks:
        asyncio.run(sink.close())


def create(dsn: str) -> None:
    table = UsageTable(SecretStr(dsn))
    table.create()
    table.close()


def put(sink: DatabaseSink, records: list[UsageRecord]) -> list[UsageRecord]:
    for record in records:
        sink.put(record)
    return records


def rows(postgres: PostgresServer, database: str, query: str) -> list[str]:
    return sorted(row[0] for row in postgres.execute(query, database))


def has_rows(postgres: PostgresServer, database: str, number: int) -> bool:
    return len(rows(postgres, database, REQUEST_IDS)) >= number


def assert_all_once(postgres: PostgresServer, database: str, records: list[UsageRecord]) -> None:
    assert rows(postgres, database, IDS) == sorted(record.id for record in records)


@contextmanager
def load(url: str, num_clients: int = 3) -> Iterator["Load"]:
    """Clients that ask one short question after the other."""
    running = Load(url)
    threads = [threading.Thread(target=running.run) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        running.is_over = True
        for thread in threads:
            thread.join()


class Load:
    """``ids``: the request ids of what was answered. ``failures``: anything else."""

    def __init__(self, url: str) -> None:
        self.ids: list[str] = []
        self.failures: list[object] = []
        self.is_over = False
        self._url = url

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self.is_over:
                body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
                try:
                    response = client.post("/v1/chat/completions", json=body)
                except httpx.HTTPError as error:
                    self.failures.append(error)
                    return
                if response.status_code == 200:
                    self.ids.append(response.headers["x-request-id"])
                else:
                    self.failures.append(response.text)

    def goes_on(self, number: int = 20) -> bool:
        """So many more are answered."""
        goal = len(self.ids) + number
        return wait_until(lambda: len(self.ids) >= goal or bool(self.failures)) and not self.failures


def test_what_is_put_arrives_in_the_table(
    postgres: PostgresServer, database: str, dsn: str, make_sink: Callable[[str], DatabaseSink]
) -> None:
    sink = make_sink(dsn)
    records = put(sink, some_records(3000))
    assert wait_until(lambda: sink.backlog == 0)
    assert_all_once(postgres, database, records)
    assert sink.dropped == 0


def test_a_server_loses_nothing_while_its_database_stops_and_starts(
    postgres: PostgresServer, database: str, dsn: str, tmp_path: Path
) -> None:
    settings = free_settings(NEXA_USAGE_DSN=dsn, NEXA_STATE_DIR=str(tmp_path))
    with LiveServer(settings) as live:
        (sink,) = (one for one in live.app.recorder.sinks if isinstance(one, DatabaseSink))
        with load(live.url) as clients, capture_logs() as lines:
            assert clients.goes_on()
            for _ in range(2):
                postgres.stop()
                assert clients.goes_on(40)
                assert sink.backlog >= 40
                postgres.start()
                gathered = len(clients.ids)
                assert clients.goes_on()
                # Not the backlog: who asks faster than records are written keeps it up.
                assert wait_until(partial(has_rows, postgres, database, gathered), 120)
        assert wait_until(lambda: live.is_idle() and sink.backlog == 0)
        assert sink.dropped == 0
    counts = Counter(rows(postgres, database, REQUEST_IDS))
    assert counts == Counter(clients.ids)
    assert max(counts.values()) == 1
    assert PASSWORD not in str(lines)
    assert any(line["event"] == "usage_database_away" for line in lines)


def test_connections_that_are_cut_lose_nothing(
    postgres: PostgresServer, database: str, dsn: str, make_sink: Callable[[str], DatabaseSink]
) -> None:
    sink = make_sink(dsn)
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
    records: list[UsageRecord] = []
    for _ in range(30):
        records += put(sink, some_records(40))
        postgres.execute(cut)
    assert wait_until(lambda: sink.backlog == 0)
    assert_all_once(postgres, database, records)


def test_a_database_that_is_away_at_the_start_gets_all_later_and_the_log_says_so_once(
    postgres: PostgresServer,
    database: str,
    dsn: str,
    make_sink: Callable[[str], DatabaseSink],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[UsageTable] = []
    connect = UsageTable.connect

    def counting(table: UsageTable) -> None:
        tries.append(table)
        connect(table)

    monkeypatch.setattr(UsageTable, "connect", counting)
    postgres.stop()
    with capture_logs() as lines:
        sink = make_sink(dsn)
        records = put(sink, some_records(5))
        assert wait_until(lambda: len(tries) > 3)
        assert [line["event"] for line in lines] == ["usage_database_away"]
        assert "Connection refused" in lines[0]["reason"]
        postgres.start()
        assert wait_until(lambda: sink.backlog == 0)
    assert lines[-1]["event"] == "usage_database_ready"
    assert_all_once(postgres, database, records)
    assert PASSWORD not in str(lines)


def test_a_missing_table_is_said_with_the_command_and_nothing_is_lost(
    postgres: PostgresServer, database: str, make_sink: Callable[[str], DatabaseSink]
) -> None:
    dsn = postgres.dsn(database)
    with capture_logs() as lines:
        sink = make_sink(dsn)
        records = put(sink, some_records(5))
        assert wait_until(lambda: bool(lines))
        create(dsn)
        assert wait_until(lambda: sink.backlog == 0)
    assert "nexa-runtime usage init" in lines[0]["reason"]
    postgres.execute("DROP TABLE ai_runtime_logs", database)
    more = put(sink, some_records(5))
    assert wait_until(lambda: sink.backlog == 5)
    create(dsn)
    assert wait_until(lambda: sink.backlog == 0)
    assert_all_once(postgres, database, more)
    assert len(records) == 5


def test_records_that_are_refused_hold_up_no_other(
    postgres: PostgresServer, database: str, dsn: str, make_sink: Callable[[str], DatabaseSink]
) -> None:
    postgres.execute("ALTER TABLE ai_runtime_logs ADD CHECK (tenant_id <> 'poison')", database)
    sink = make_sink(dsn)
    good = some_records(200)
    poison = [a_record(tenant_id="poison") for _ in range(3)]
    with capture_logs() as lines:
        put(sink, [poison[0], *good[:120], poison[1], *good[120:], poison[2]])
        assert wait_until(lambda: sink.dropped == 3 or sink.backlog == 1)
        put(sink, [last := a_record()])
        assert wait_until(lambda: sink.backlog == 0)
    assert sink.dropped == 3
    assert_all_once(postgres, database, [*good, last])
    refused = [line for line in lines if line["event"] == "usage_records_refused"]
    assert {one for line in refused for one in line["ids"]} == {record.id for record in poison}
    assert "violates check constraint" in refused[0]["reason"]


def test_many_refused_records_in_a_row_hold_up_no_other(
    postgres: PostgresServer, database: str, dsn: str, make_sink: Callable[[str], DatabaseSink]
) -> None:
    postgres.execute("ALTER TABLE ai_runtime_logs ADD CHECK (tenant_id <> 'poison')", database)
    sink = make_sink(dsn)
    with capture_logs() as lines:
        put(sink, [a_record(tenant_id="poison") for _ in range(700)])
        assert wait_until(lambda: any(line["event"] == "usage_database_away" for line in lines))
        good = put(sink, some_records(700))
        assert wait_until(lambda: sink.backlog == 0)
    assert sink.dropped == 700
    assert_all_once(postgres, database, good)


def test_a_table_that_refuses_everything_loses_nothing(
    postgres: PostgresServer, database: str, dsn: str, make_sink: Callable[[str], DatabaseSink]
) -> None:
    postgres.execute("ALTER TABLE ai_runtime_logs ADD COLUMN theirs int NOT NULL", database)
    sink = make_sink(dsn)
    with capture_logs() as lines:
        records = put(sink, some_records(20))
        assert wait_until(lambda: any(line["event"] == "usage_database_away" for line in lines))
        postgres.execute("ALTER TABLE ai_runtime_logs DROP COLUMN theirs", database)
        assert wait_until(lambda: sink.backlog == 0)
    assert sink.dropped == 0
    assert_all_once(postgres, database, records)


def test_a_slow_database_keeps_nobody_waiting(
    postgres: PostgresServer, database: str, dsn: str, tmp_path: Path
) -> None:
    settings = free_settings(NEXA_USAGE_DSN=dsn, NEXA_STATE_DIR=str(tmp_path))
    with LiveServer(settings) as live, psycopg.connect(dsn) as other:
        (sink,) = (one for one in live.app.recorder.sinks if isinstance(one, DatabaseSink))
        other.execute("LOCK TABLE ai_runtime_logs")
        with load(live.url) as clients:
            assert clients.goes_on(40)
            spool = tmp_path / "usage-spool" / "1"
            assert wait_until(lambda: sink.backlog >= 40)
            assert wait_until(
                lambda: sum(file.read_bytes().count(b"\n") for file in spool.glob("*.spool")) >= 40
            )
            other.rollback()
        assert wait_until(lambda: live.is_idle() and sink.backlog == 0)
    assert Counter(rows(postgres, database, REQUEST_IDS)) == Counter(clients.ids)


def test_a_frozen_database_is_given_up(
    postgres: PostgresServer, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexa_runtime.usage.postgres._FROZEN_S", 0.2)
    table = UsageTable(SecretStr(dsn))
    table.connect()
    assert table._connection is not None
    backend = table._connection.info.backend_pid
    os.kill(backend, signal.SIGSTOP)
    try:
        with pytest.raises(UsageDatabaseError, match="closed the connection"):
            table.insert(some_records(1))
    finally:
        os.kill(backend, signal.SIGCONT)
    assert not table.is_connected


def test_what_was_not_delivered_is_by_the_next_start(
    postgres: PostgresServer, database: str, dsn: str, make_sink: Callable[[str], DatabaseSink]
) -> None:
    postgres.stop()
    first = make_sink(dsn)
    records = put(first, some_records(50))
    asyncio.run(first.close())
    assert first.backlog == 50
    postgres.start()
    with capture_logs() as lines:
        second = make_sink(dsn)
        assert wait_until(lambda: second.backlog == 0)
    assert {"event": "usage_spool_found", "records": 50, "log_level": "info", "room": "usage"} in lines
    assert_all_once(postgres, database, records)


def test_a_server_that_is_killed_delivers_after_its_restart(
    postgres: PostgresServer, database: str, dsn: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "NEXA_USAGE_DSN": dsn, "NEXA_STATE_DIR": str(tmp_path), "NEXA_PORT": "0"}
    postgres.stop()
    spool = tmp_path / "usage-spool"
    with serving(environment) as (process, url), load(url) as clients:
        assert clients.goes_on(30)
        answered = list(clients.ids)
        assert wait_until(lambda: all(one.encode() in read_all(spool) for one in answered))
        process.kill()
        process.wait()
        assert wait_until(lambda: len(clients.failures) == 3), "each client notices"
    postgres.start()
    spooled = read_all(spool).count(b'"request_id"')
    with serving(environment) as (_, url):
        assert wait_until(lambda: len(rows(postgres, database, IDS)) == spooled)
        assert httpx.get(f"{url}/readyz").status_code == 200
    counts = Counter(rows(postgres, database, REQUEST_IDS))
    assert max(counts.values()) == 1
    assert set(answered) <= set(counts)
    assert read_all(spool) == b""
    assert PASSWORD not in (tmp_path / "log").read_text()
    assert "usage_spool_found" in (tmp_path / "log").read_text()


@contextmanager
def serving(environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """``nexa-runtime serve`` in a process of its own, and its address once it is ready."""
    path = Path(environment["NEXA_STATE_DIR"]) / "log"
    with path.open("ab") as log:
        start = log.tell()
        process = subprocess.Popen([NEXA, "serve"], env=environment, stderr=log)

    def url() -> str:
        words = path.read_bytes()[start:].decode().split()
        return next((word for word in words if word.startswith("http://127.0.0.1:")), "")

    def is_ready() -> bool:
        try:
            return bool(url()) and httpx.get(f"{url()}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    try:
        assert wait_until(is_ready, 60), path.read_text()
        yield process, url()
    finally:
        process.terminate()
        process.wait(20)


def read_all(spool: Path) -> bytes:
    """All segments; one that is delivered meanwhile is none."""
    found = b""
    for path in sorted(spool.glob("*/*.spool")):
        try:
            found += path.read_bytes()
        except FileNotFoundError:
            continue
    return found


def test_without_the_library_the_start_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "nexa_runtime.usage.postgres")
    monkeypatch.delattr("nexa_runtime.usage.postgres")
    settings = load_settings({"NEXA_USAGE_DSN": "postgresql://host"}).usage_database
    with pytest.raises(ConfigError, match=r"psycopg: pip install .nexa-runtime\[postgres\]"):
        open_database_sink(settings, tmp_path)


def test_without_a_dsn_nothing_is_imported_or_written(tmp_path: Path) -> None:
    program = "import sys, nexa_runtime.server.app; sys.exit('psycopg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert open_database_sink(load_settings().usage_database, tmp_path / "usage-spool") is None
    assert not (tmp_path / "usage-spool").exists()


def test_what_waits_in_memory_has_no_bodies(tmp_path: Path) -> None:
    sink = DatabaseSink(Spool(tmp_path, 10**6), UsageTable(SecretStr("postgresql://127.0.0.1:1/none")))
    record = a_record()
    sink.put(record.with_body({"messages": ["a long one"]}))
    assert list(sink._taken) == [record]


def test_what_overflows_in_memory_is_counted(tmp_path: Path) -> None:
    sink = DatabaseSink(Spool(tmp_path, 10**6), UsageTable(SecretStr("postgresql://127.0.0.1:1/none")))
    record = a_record()
    for _ in range(10_005):
        sink.put(record)
    assert (sink.backlog, sink.dropped) == (10_000, 5)
