"""The usage table in PostgreSQL, over psycopg.

Owns the connection and the meaning of what goes wrong with it; the one module that imports psycopg. It never
retries: ``delivery`` does, on its own thread, and ``cli`` says what happened. No text of its errors holds the
password, nor what a malformed connection string may have made of it.

Deliberate: no prepared statements, and no setting outlives a transaction, so that the poolers of Supabase and
PgBouncer in transaction mode can stand between.
"""

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

from nexa_runtime.errors import ConfigError, RecordsRefusedError, UsageDatabaseError
from nexa_runtime.usage.record import UsageRecord
from nexa_runtime.usage.table import (
    COLUMNS,
    CREATE,
    FIND_COLUMNS,
    INSERT,
    SUMMARIZE,
    TABLE,
    UsageSummary,
    row_of,
)

_DEFAULTS: dict[str, str] = {
    "connect_timeout": "5",
    "fallback_application_name": "nexa-runtime",
    "keepalives_idle": "30",
    "tcp_user_timeout": "20000",
    "client_encoding": "utf8",
}
"""Where the connection string says nothing of them."""

_STATEMENT_TIMEOUT = "20s"
_FROZEN_S = 30.0
"""A database that does not even say that its time is up is cut off: it, or what stands between, hangs."""

_REFUSALS = ("22", "23", "P0")
"""Classes of SQLSTATE that are about the values: bad data, a constraint, a trigger's exception."""
_NO_PRIVILEGE = "42501"
_SECRETS = ("password", "sslpassword")


class UsageTable:
    """The table behind a connection string. Not for two threads at once."""

    def __init__(self, dsn: SecretStr) -> None:
        """Raises ``ConfigError`` for what is no connection string."""
        self._options = _parse(dsn)
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    @property
    def is_connected(self) -> bool:
        """As far as is known: a connection may be dead and nobody has noticed."""
        return self._connection is not None

    def connect(self) -> None:
        """Connect if that is not done, and look whether the table is as it must be.

        Raises ``UsageDatabaseError``; there is no connection then.
        """
        if self._connection is not None:
            return
        with self._closing_on_error():
            self._open()
            with self._deadline():
                found = {name for (name,) in self._fetch(FIND_COLUMNS)}
            lacking = [name for name in COLUMNS if name not in found]
            if lacking:
                what = f"the table {TABLE} lacks {', '.join(lacking)}" if found else f"no table {TABLE}"
                raise UsageDatabaseError(f"{what}; the command `nexa-runtime usage init` adds it.")

    def insert(self, records: Sequence[UsageRecord]) -> None:
        """After ``connect``: add records, all or none; those that are there already stay as they are.

        Raises ``RecordsRefusedError``, and ``UsageDatabaseError``: there is no connection then.
        """
        if not records:
            return
        columns = [list(column) for column in zip(*map(row_of, records), strict=True)]
        with self._closing_on_error(f"the user needs INSERT and SELECT on {TABLE}"), self._deadline():
            self._fetch(INSERT, columns, timeout=_STATEMENT_TIMEOUT)

    def create(self) -> None:
        """Make the table and its indices, or add what is lacking. Raises ``UsageDatabaseError``."""
        with self._closing_on_error("the owner can run what `nexa-runtime usage init --print` says"):
            self._open()
            for statement in CREATE:
                self._fetch(statement)

    def summarize(self, since: datetime, tenant_id: str | None) -> list[UsageSummary]:
        """What was used since a moment, by tenant and model. Raises ``UsageDatabaseError``."""
        self.connect()
        with self._closing_on_error():
            rows = self._fetch(SUMMARIZE, {"since": since, "tenant_id": tenant_id})
        return [UsageSummary(*row) for row in rows]

    def close(self) -> None:
        """Hang up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()

    def _open(self) -> None:
        if self._connection is None:
            target = make_conninfo("", **self._options)
            self._connection = psycopg.connect(target, autocommit=True, prepare_threshold=None)

    def _fetch(
        self, statement: str, values: Any = None, *, timeout: str | None = None
    ) -> list[tuple[Any, ...]]:
        """The rows of one statement, in a transaction of its own."""
        assert self._connection is not None
        with self._connection.transaction(), self._connection.cursor() as cursor:
            if timeout is not None:
                cursor.execute("SELECT set_config('statement_timeout', %s, true)", [timeout])
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def _closing_on_error(self, remedy: str = "") -> Iterator[None]:
        """Errors of psycopg become ours; after one that is not about the records the connection is closed.

        ``remedy``: for a lack of permission.
        """
        try:
            yield
        except psycopg.Error as error:
            refusal = self._error_of(error, remedy)
            if not isinstance(refusal, RecordsRefusedError):
                self.close()
            raise refusal from None
        except UsageDatabaseError:
            self.close()
            raise
        except OSError as error:  # no file descriptor is left for the deadline's handle
            self.close()
            raise UsageDatabaseError(f"{error.strerror or error}.") from None

    @contextmanager
    def _deadline(self) -> Iterator[None]:
        """Cut the connection off if what is inside takes too long."""
        assert self._connection is not None
        # A handle of our own: the connection's may be another file by the time this one is used.
        with socket.socket(fileno=os.dup(self._connection.fileno())) as handle:
            timer = threading.Timer(_FROZEN_S, _shut_down, [handle])
            timer.daemon = True
            timer.start()
            try:
                yield
            finally:
                timer.cancel()
                timer.join()

    def _error_of(self, error: psycopg.Error, remedy: str) -> UsageDatabaseError:
        text = error.diag.message_primary or str(error) or type(error).__name__
        for name in _SECRETS:
            if secret := self._options.get(name):
                text = text.replace(secret, "***")
        reason = text.splitlines()[0].rstrip(".")
        state = error.sqlstate or ""
        if state[:2] in _REFUSALS or isinstance(error, psycopg.DataError):
            return RecordsRefusedError(f"{reason}.")
        if state == _NO_PRIVILEGE and remedy:
            reason = f"{reason}; {remedy}"
        return UsageDatabaseError(f"{reason}.")


def _parse(dsn: SecretStr) -> dict[str, str]:
    """The options of a connection string, with our defaults."""
    text = dsn.get_secret_value()
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(text).items()}
    except psycopg.Error:  # its message shows pieces of the text
        raise ConfigError(
            "NEXA_USAGE_DSN is no connection string: it must be like postgresql://user:password@host:5432/name,"
            " with a password's special characters percent-encoded, or key=value pairs."
        ) from None
    # Where a password has an @ or a / that is not encoded, the rest of it is taken for a host or a name,
    # and would be in every message about them.
    shown = [value for name, value in given.items() if name not in ("user", *_SECRETS)]
    is_address = text.strip().startswith(("postgresql://", "postgres://"))
    if is_address and (any("@" in value for value in shown) or not _is_port(given.get("port", ""))):
        raise ConfigError("NEXA_USAGE_DSN has a password with special characters; percent-encode them.")
    return _DEFAULTS | given


def _is_port(text: str) -> bool:
    return all(part == "" or part.isdecimal() for part in text.split(","))


def _shut_down(handle: socket.socket) -> None:
    with suppress(OSError):
        handle.shutdown(socket.SHUT_RDWR)
