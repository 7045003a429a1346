"""A server process that may be stopped, killed, starved and started again, and what it said.

Owns the process, its folder and its log. It judges nothing: the faults do. ``common.running`` is for servers
that only serve.
"""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from scripts.bench.common import BenchError, clean_environment, free_port, nexa_command
from scripts.bench.raw import RawAnswer, request_bytes, send

CHAT = "/v1/chat/completions"
ENDLESS = {"ignore_eos": True, "max_tokens": 100_000}


class Broken(Exception):
    """The server did not do what it promises; the text says what it did."""


def expect(is_so: bool, text: str) -> None:
    """Raise ``Broken`` with ``text`` unless it is so."""
    if not is_so:
        raise Broken(text)


def chat(content: str = "Hello", **fields: Any) -> dict[str, Any]:
    """A chat's body."""
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, **fields}


class Child:
    """``nexa-runtime serve`` with the demo model, its store, state and request log in ``folder``."""

    def __init__(self, folder: Path, *, max_files: int | None = None, **settings: object) -> None:
        """``max_files``: file descriptors that it may have."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.request_log = folder / "requests.jsonl"
        self.log_path = folder / "server.log"
        self._max_files = max_files
        given = {
            "NEXA_MODEL_STORE": folder / "store",
            "NEXA_STATE_DIR": folder / "state",
            "NEXA_REQUEST_LOG": self.request_log,
            "NEXA_SLOTS": 8,
            "NEXA_THREADS": 1,
            "HF_HUB_OFFLINE": 1,
        } | settings
        self.environment = clean_environment() | {name: str(value) for name, value in given.items()}
        self.process = self.start()

    def start(self, log_path: Path | None = None) -> subprocess.Popen[bytes]:
        """Start it, again if it has ended."""
        with (log_path or self.log_path).open("ab") as log:
            self.process = subprocess.Popen(
                nexa_command(self.port, {}),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=self._limit if self._max_files else None,
            )
        return self.process

    def _limit(self) -> None:
        assert self._max_files is not None
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._max_files, self._max_files))

    @property
    def log(self) -> str:
        """All that it has said so far."""
        return self.log_path.read_text(errors="replace")

    @property
    def _last_line(self) -> str:
        lines = [line for line in self.log.splitlines() if line.strip()]
        return lines[-1][:300] if lines else "without a word"

    async def ready(self, timeout_s: float = 60) -> float:
        """Wait until it takes requests; how long that took. Raises ``BenchError``."""
        begin = time.perf_counter()
        while time.perf_counter() - begin < timeout_s:
            if self.process.poll() is not None:
                raise BenchError(f"the server ended with {self.process.returncode}: {self._last_line}")
            with suppress(BenchError):
                if await self.status("/readyz") == 200:
                    return time.perf_counter() - begin
            await asyncio.sleep(0.05)
        raise BenchError(f"the server was not ready after {timeout_s:g} s")

    async def status(self, path: str, timeout_s: float = 5) -> int:
        """The status of a GET on a connection of its own. Raises ``BenchError`` where there is none."""
        try:
            async with httpx.AsyncClient(timeout=timeout_s) as client:
                return (await client.get(self.url + path)).status_code
        except httpx.HTTPError as error:
            raise BenchError(f"{path}: {type(error).__name__}") from None

    async def json(self, path: str) -> Any:
        """What a GET answers."""
        async with httpx.AsyncClient(timeout=10) as client:
            return (await client.get(self.url + path)).json()

    async def ask(self, body: Mapping[str, Any], path: str = CHAT, timeout_s: float = 60) -> RawAnswer:
        """One request on a connection of its own."""
        return await send(self.url, request_bytes(path, body), timeout_s)

    async def command(self, *words: str) -> None:
        """Run ``nexa-runtime`` with the server's settings. Raises ``Broken`` when it fails."""
        command = [str(Path(sys.executable).with_name("nexa-runtime")), *words]
        done = await asyncio.to_thread(
            subprocess.run, command, env=self.environment, capture_output=True, text=True, check=False
        )
        expect(done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-300:]}")

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def ended(self, timeout_s: float = 30) -> int:
        """Wait for its end; the exit code. Raises ``Broken``."""
        await until(lambda: self.process.poll() is not None, timeout_s, "the process did not end")
        return int(self.process.returncode)

    def kill(self) -> None:
        """End it, whatever it does; nothing if it has ended."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Stream:
    """A streamed chat that is read as it comes."""

    def __init__(self, child: Child, **fields: Any) -> None:
        self.data = b""
        self._address = ("127.0.0.1", child.port)
        self._request = request_bytes(CHAT, chat(stream=True, **fields))
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def begin(self) -> None:
        """Send it and wait for the first text. Raises ``Broken``."""
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        self._writer.write(self._request)
        async with asyncio.timeout(30):
            while b'"content":"' not in self.data.replace(b'"content":""', b""):
                await self._read()

    async def end(self, timeout_s: float = 60) -> str:
        """Read to the end of the connection; ``complete``, the code of an error frame, or ``cut``."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(timeout_s):
                while await self._read():
                    pass
        assert self._writer is not None
        self._writer.close()
        if b"data: [DONE]" in self.data:
            return "complete"
        _, found, rest = self.data.partition(b'"code":"')
        return rest.partition(b'"')[0].decode() if found else "cut"

    async def _read(self) -> bool:
        assert self._reader is not None
        part = await self._reader.read(65536)
        self.data += part
        return bool(part)


async def until(condition: Callable[[], bool], timeout_s: float, text: str) -> float:
    """Wait for ``condition``; the seconds that it took. Raises ``Broken`` with ``text``."""
    begin = time.perf_counter()
    while not condition():
        expect(time.perf_counter() - begin < timeout_s, f"{text} within {timeout_s:g} s")
        await asyncio.sleep(0.02)
    return time.perf_counter() - begin
