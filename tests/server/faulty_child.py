"""Servers in processes of their own, for what a test cannot do to its own process."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support import wait_until

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Child:
    """A server in a process of its own; what it says is in ``log``."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def status(self, path: str) -> int | None:
        """What a path answers with; None while nobody answers."""
        try:
            return self.http.get(path).status_code
        except httpx.TransportError:
            return None

    def wait_ready(self) -> None:
        """Until requests are taken."""
        assert wait_until(lambda: self.status("/readyz") == 200, 60), self.log.read_text()

    def said(self, event: str) -> list[dict[str, Any]]:
        """Lines of the log with this event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]


@contextmanager
def child(folder: Path, **env: str) -> Iterator[Child]:
    """A server with these settings on a free port; it is killed if the test leaves it running."""
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", "tests.server.faulty", "serve", "--port", str(port)]
    with log.open("wb") as said:
        process = subprocess.Popen(command, stderr=said, cwd=ROOT, env=os.environ | env)
    made = Child(process, port, log)
    with process:
        try:
            yield made
        finally:
            process.kill()
            made.http.close()
