"""The table in a real PostgreSQL: how it is made, what it refuses, and what is said of it."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from nexa_runtime.errors import ConfigError, RecordsRefusedError, UsageDatabaseError
from nexa_runtime.usage.postgres import UsageTable
from nexa_runtime.usage.table import COLUMNS
from tests.usage.postgres_server import PASSWORD, PostgresServer
from tests.usage.records import a_record, some_records

SEED = """CREATE TABLE ai_runtime_logs (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(), tenant_id TEXT NOT NULL, model TEXT NOT NULL,
  prompt_tokens INT, completion_tokens INT, total_tokens INT, response_time_ms INT,
  created_at TIMESTAMPTZ DEFAULT NOW()
)"""


def open_table(dsn: str) -> UsageTable:
    return UsageTable(SecretStr(dsn))


@pytest.fixture
def table(postgres: PostgresServer, database: str) -> Any:
    """The table in a database of its own."""
    opened = open_table(postgres.dsn(database))
    opened.create()
    yield opened
    opened.close()


def run(*arguments: str, dsn: str = "") -> subprocess.CompletedProcess[str]:
    """``nexa-runtime usage`` in a process of its own."""
    return subprocess.run(
        [Path(sys.executable).with_name("nexa-runtime"), "usage", *arguments],
        capture_output=True, text=True, check=False, env={"NEXA_USAGE_DSN": dsn, "PATH": ""},
    )  # fmt: skip


def test_a_record_becomes_a_row_and_comes_once(
    postgres: PostgresServer, database: str, table: UsageTable
) -> None:
    record = a_record(model="a\0b\ud800", finish_reason=None, queue_ms=None)
    table.insert([record, a_record(), record])
    table.insert([record])
    rows = postgres.execute(
        f"SELECT {', '.join(COLUMNS)} FROM ai_runtime_logs WHERE id = '{record.id}'", database
    )
    values = dict(zip(COLUMNS, rows[0], strict=True))
    assert len(rows) == 1
    assert str(values.pop("id")) == record.id
    assert values == {
        "request_id": "req-1", "tenant_id": "demo", "model": "a\ufffdb?", "endpoint": "/v1/chat/completions",
        "status": 200, "finish_reason": None, "prompt_tokens": 20, "cached_tokens": 5,
        "completion_tokens": 10, "total_tokens": 30, "queue_ms": None, "ttft_ms": 13, "response_time_ms": 100,
        "created_at": record.created_at,
    }  # fmt: skip
    assert postgres.execute("SELECT count(*) FROM ai_runtime_logs", database) == [(2,)]


def test_one_request_id_may_come_twice(postgres: PostgresServer, database: str, table: UsageTable) -> None:
    table.insert([a_record(tenant_id="one"), a_record(tenant_id="two")])
    assert postgres.execute("SELECT count(*) FROM ai_runtime_logs", database) == [(2,)]


def test_the_table_of_the_seed_gets_what_it_lacks(postgres: PostgresServer, database: str) -> None:
    postgres.execute(SEED, database)
    postgres.execute(
        "INSERT INTO ai_runtime_logs (tenant_id, model, total_tokens) VALUES ('old', 'm', 7)", database
    )
    table = open_table(postgres.dsn(database))
    with pytest.raises(UsageDatabaseError, match=r"lacks request_id, .*`nexa-runtime usage init` adds it"):
        table.connect()
    for _ in range(2):
        table.create()
    table.insert(some_records(1))
    (new, old) = table.summarize(datetime(2026, 1, 1, tzinfo=UTC), None)
    assert (new.tenant_id, new.requests) == ("demo", 1)
    assert (old.tenant_id, old.total_tokens, old.errors, old.p95_response_time_ms) == ("old", 7, 0, None)
    table.close()


def test_no_table_is_said_with_the_command(postgres: PostgresServer, database: str) -> None:
    with pytest.raises(
        UsageDatabaseError, match="no table ai_runtime_logs; the command `nexa-runtime usage init`"
    ):
        open_table(postgres.dsn(database)).connect()


def test_all_of_a_batch_or_nothing(postgres: PostgresServer, database: str, table: UsageTable) -> None:
    with pytest.raises(RecordsRefusedError, match="integer out of range"):
        table.insert([a_record(), a_record(prompt_tokens=2**31)])
    assert table.is_connected
    assert postgres.execute("SELECT count(*) FROM ai_runtime_logs", database) == [(0,)]


def test_who_may_not_write_is_told_what_is_needed(
    postgres: PostgresServer, database: str, table: UsageTable
) -> None:
    postgres.execute(f"CREATE ROLE guest_{database} LOGIN PASSWORD 'guest-word'")
    guest = open_table(postgres.dsn(database, user=f"guest_{database}", password="guest-word"))
    guest.connect()
    with pytest.raises(UsageDatabaseError, match=r"permission denied .* needs INSERT and SELECT"):
        guest.insert(some_records(1))
    assert not guest.is_connected
    postgres.execute(f"GRANT INSERT, SELECT ON ai_runtime_logs TO guest_{database}", database)
    guest.connect()
    guest.insert(some_records(1))
    with pytest.raises(UsageDatabaseError, match=r"permission denied .* usage init --print"):
        guest.create()
    guest.close()


@pytest.mark.parametrize(
    ("dsn", "reason"),
    [
        ("postgresql://nexa:S3CRET@127.0.0.1:{port}/postgres", "password authentication failed"),
        ("postgresql://nexa:S3CRET@127.0.0.1:1/postgres?connect_timeout=2", "Connection refused"),
        (
            "host=127.0.0.1 port={port} user=nexa password=S3CRET sslmode=require",
            "not support SSL",
        ),
        ("postgresql://S3CRET:S3CRET@127.0.0.1:{port}/postgres", "authentication failed"),
    ],
    ids=["password", "port", "ssl", "echo"],
)
def test_a_failed_connection_never_shows_the_password(
    postgres: PostgresServer, dsn: str, reason: str
) -> None:
    with pytest.raises(UsageDatabaseError, match=reason) as caught:
        open_table(dsn.format(port=postgres.port)).connect()
    assert "S3CRET" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    "dsn",
    [
        "S3CRET",
        "host=x password=a S3CRET",
        "postgresql://nexa:a%S3CRET@host/db",
        "postgresql://nexa:a@S3CRET@host/db",
        "postgresql://nexa:a/S3CRET@host/db",
        "postgresql://nexa:5/S3CRET@host/db",
        "postgresql://nexa:S3CRET/a@host/db",
        "mysql://nexa:S3CRET@host/db",
    ],
)
def test_what_is_no_connection_string_is_one_sentence_without_it(dsn: str) -> None:
    with pytest.raises(ConfigError, match=r"^NEXA_USAGE_DSN [^\n]*\.$") as caught:
        open_table(dsn)
    assert "S3CRET" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_usage_init_and_summary(postgres: PostgresServer, database: str) -> None:
    dsn = postgres.dsn(database)
    summary = run("summary", dsn=dsn)
    assert summary.returncode == 1
    assert "`nexa-runtime usage init` adds it" in summary.stderr
    for _ in range(2):
        assert run("init", dsn=dsn).stdout == "The table ai_runtime_logs is there.\n"
    now = datetime.now(UTC)
    table = open_table(dsn)
    table.connect()
    table.insert(
        [a_record(created_at=now, response_time_ms=float(ms)) for ms in range(1, 101)]
        + [a_record(created_at=now, tenant_id="other", status=status) for status in (200, 499, 500)]
        + [a_record(created_at=now - timedelta(days=3))]
    )
    table.close()
    document = json.loads(run("summary", "--json", dsn=dsn).stdout)
    assert document["usage"] == [
        {
            "tenant_id": "demo", "model": "demo", "requests": 100, "errors": 0, "prompt_tokens": 2000,
            "cached_tokens": 500, "completion_tokens": 1000, "total_tokens": 3000,
            "mean_response_time_ms": 50.5, "p95_response_time_ms": 95.05,
        },
        {
            "tenant_id": "other", "model": "demo", "requests": 3, "errors": 2, "prompt_tokens": 60,
            "cached_tokens": 15, "completion_tokens": 30, "total_tokens": 90,
            "mean_response_time_ms": 100, "p95_response_time_ms": 100,
        },
    ]  # fmt: skip
    text = run("summary", "--tenant", "demo", "--since", "7d", dsn=dsn).stdout.splitlines()
    assert len(text) == 2
    assert text[1].split() == ["demo", "demo", "101", "0", "2020", "505", "1010", "3030", "51", "96"]


def test_usage_init_prints_sql_that_does_it(postgres: PostgresServer, database: str) -> None:
    printed = run("init", "--print")
    postgres.execute(printed.stdout, database)
    table = open_table(postgres.dsn(database))
    table.connect()
    table.close()


def test_commands_say_what_is_wrong_in_one_sentence(postgres: PostgresServer) -> None:
    unset = run("summary")
    assert (unset.returncode, unset.stdout) == (1, "")
    assert unset.stderr.endswith("NEXA_USAGE_DSN is not set: it says where the usage table is.\n")
    refused = run("init", dsn=postgres.dsn(password="wrong"))
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "password authentication failed" in refused.stderr
    assert PASSWORD not in refused.stderr
    assert run("summary", "--since", "yesterday", dsn=postgres.dsn()).returncode == 2
