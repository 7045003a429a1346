"""A server as a process of its own, for what only a process can show: signals, exit codes, limits."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.support import wait_until

_ROOT = Path(__file__).parents[2]
_COMMAND = (str(Path(sys.executable).with_name("nexa-runtime")), "serve")
FAULTY = (sys.executable, "-m", "tests.server.faulty", "serve")
"""The same, and ``faulty`` does to it what its variables say."""


class Child:
    """``nexa-runtime serve`` on any free port, with ``settings`` of its own; killed if a test leaves it."""

    def __init__(self, command: Sequence[str] = _COMMAND, /, **settings: object) -> None:
        env = os.environ | {"NEXA_PORT": "0"} | {name: str(value) for name, value in settings.items()}
        self._talk: list[str] = []
        self._greeted = threading.Event()
        self.process = subprocess.Popen(command, env=env, cwd=_ROOT, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()

    @property
    def talk(self) -> str:
        """All that it has said on stderr."""
        return "".join(self._talk)

    def said(self, event: str) -> list[dict[str, Any]]:
        """Lines of the log with this event."""
        lines = [json.loads(line) for line in self._talk if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def wait_ready(self) -> None:
        """Until requests are taken."""
        with self.client() as client:
            assert wait_until(lambda: client.get("/readyz").status_code == 200, 60), self.talk

    @property
    def url(self) -> str:
        """Where it serves, once it does."""
        assert self._greeted.wait(60)
        line = next(line for line in self._talk if "Nexa Runtime serves" in line)
        return line.partition(" at ")[2].partition(" ")[0]

    def client(self) -> httpx.Client:
        """Asks it."""
        return httpx.Client(base_url=self.url, timeout=30)

    def send(self, number: signal.Signals = signal.SIGTERM) -> None:
        """A signal."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(30)
        self._reader.join()
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self._talk.append(line)
                if "Nexa Runtime serves" in line:
                    self._greeted.set()
        self._greeted.set()
