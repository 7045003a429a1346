"""A PostgreSQL of our own, that may be stopped and started again.

Owns a cluster in a temporary folder and its server process. ``faults`` uses it where Debian's package is.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from scripts.bench.common import BenchError, free_port

_USER = "nobody"
"""initdb refuses to run as root."""


def find_binaries() -> Path | None:
    """The folder of the newest PostgreSQL that Debian has put here; None: there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda one: int(one.parts[4]))
    return found[-1].parent if found else None


class Postgres:
    """A cluster that ``start`` and ``stop`` may be called on in turn; ``remove`` it at the end."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="nexa-pg-"))
        self._prefix: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(self._folder, _USER)
            self._prefix = ["setpriv", f"--reuid={_USER}", "--regid=nogroup", "--clear-groups"]
        self.port = free_port()
        self.dsn = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._run("initdb", "-D", f"{self._folder}/data", "-U", "postgres", "-A", "trust", "--no-sync")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self._folder} -c fsync=off"
        log = f"{self._folder}/server.log"
        self._run("pg_ctl", "-D", f"{self._folder}/data", "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """Stop it at once, as a crash would."""
        self._run("pg_ctl", "-D", f"{self._folder}/data", "-w", "-m", "immediate", "stop")

    def query(self, statement: str) -> str:
        """What ``psql`` prints, without headings."""
        return self._run("psql", self.dsn, "-At", "-c", statement)

    def remove(self) -> None:
        """Stop it if it runs, and remove the cluster."""
        if (self._folder / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, name: str, *words: str) -> str:
        command = [*self._prefix, str(self._binaries / name), *words]
        # Its server keeps what it inherits open: a pipe would never end.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/")
            output.seek(0)
            text = output.read().decode(errors="replace").strip()
        if done.returncode:
            raise BenchError(f"{name} ended with {done.returncode}: {text[-500:]}")
        return text
