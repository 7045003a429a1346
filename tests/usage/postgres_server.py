"""A real PostgreSQL for tests: a cluster of its own in a temporary folder, on a free port.

It refuses to run as root; so where the tests do, it gets another user.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psycopg

from tests.support import free_port, wait_until

PASSWORD = "s3cret-of-the-test"
_USER = "nobody"
_OPTIONS = ("fsync=off", "listen_addresses=127.0.0.1", "max_connections=20", "shared_buffers=1MB")


def find_binaries() -> Path | None:
    """The folder of ``initdb``: Debian's newest, or the one on the PATH."""
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    found = newest[-1] if newest else on_path and Path(on_path)
    return found.parent if found else None


class PostgresServer:
    """``start`` and ``stop`` any number of times; ``remove`` at the end."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="nexa-postgres-"))
        self._as_user: dict[str, Any] = {"cwd": self._folder}
        if os.geteuid() == 0:
            shutil.chown(self._folder, _USER)
            self._as_user |= {"user": _USER, "extra_groups": []}
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        password_file = self._folder / "password"
        password_file.write_text(PASSWORD)
        command = [
            str(binaries / "initdb"), "--no-sync", "--username=nexa", f"--pwfile={password_file}",
            "--auth=scram-sha-256", "--locale=C", "--encoding=UTF8", f"--pgdata={self._folder / 'data'}",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, **self._as_user)
        self.start()

    def dsn(self, database: str = "postgres", *, user: str = "nexa", password: str = PASSWORD) -> str:
        """How to reach a database of it."""
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    @property
    def is_running(self) -> bool:
        """Between ``start`` and ``stop``."""
        return self._process is not None

    def start(self) -> None:
        """Until it answers."""
        command: list[object] = [self._binaries / "postgres", "-D", "data", "-p", str(self.port), "-k", "."]
        for option in _OPTIONS:
            command += ["-c", option]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([str(part) for part in command], stderr=log, **self._as_user)
        # After a crash it reads its log again, and a busy disk has made that take more than 20 s.
        assert wait_until(self._answers, 120), (self._folder / "log").read_text()

    def stop(self) -> None:
        """At once, without a word to anybody, as in a crash."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(20)
            self._process = None

    def remove(self) -> None:
        """Stop it and leave nothing."""
        self.stop()
        shutil.rmtree(self._folder)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True
