"""What the measuring scripts share: prompts, one streamed request with its times, and a server to measure.

Owns how a time to first token is taken (at the first chunk that has text) and how a server child is started
and ended. It never decides what is measured.
"""

import argparse
import asyncio
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

MODEL_HELP = (
    "the GGUF file to serve. Speed needs no real weights: scripts/bench/make_model qwen2.5-0.5b model.gguf"
    " --vocab any.gguf writes a random-weight model of that shape, with the tokenizer of any GGUF file"
)

_FOREIGN_PREFIXES = ("NEXA_", "VAULT_", "TENANT_")
_FOREIGN_NAMES = frozenset({"API_KEY", "DEFAULT_TENANT_ID", "LOG_LEVEL", "PYTHONDONTWRITEBYTECODE"})
"""With the last one every start would compile all of our modules, which an installed server does once."""

_STOP_S = 20.0


class BenchError(Exception):
    """The measurement cannot go on; the text says why."""


@dataclass
class Result:
    """One request: when it was sent (``time.perf_counter``), when its text came, in seconds since then, the
    text and its tokens.
    """

    sent_at: float = 0.0
    moments: list[float] = field(default_factory=list)
    num_prompt: int = 0
    num_new: int = 0
    num_cached: int = 0
    text: str = ""
    error: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the answer came to its end, usage and all."""
        return self.error is None and self.num_new > 0


def words(random_: random.Random, count: int) -> str:
    """Random words that no two requests share."""
    return " ".join("".join(random_.choices("abcdefghijklmnopqrstuvwxyz", k=4)) for _ in range(count))


def streamed(
    content: dict[str, Any], max_tokens: int, *, seed: int, temperature: float = 0.8
) -> dict[str, Any]:
    """A request for exactly ``max_tokens`` streamed tokens and usage. ``content``: prompt or messages."""
    return content | {
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": temperature,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def ask(
    client: httpx.AsyncClient,
    body: dict[str, Any],
    *,
    tenant: str | None = None,
    result: Result | None = None,
) -> Result:
    """Stream one answer: a chat's if ``body`` has messages. ``result`` is filled while the answer comes, for
    who wants what a cancelled request has had.
    """
    result = Result() if result is None else result
    result.sent_at = time.perf_counter()
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    headers = {"X-Tenant-Id": tenant} if tenant else {}
    try:
        async with client.stream("POST", path, json=body, headers=headers) as response:
            if response.status_code != 200:
                await response.aread()
                result.error = f"status {response.status_code}: {response.text[:200]}"
                return result
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    _take(result, json.loads(line.removeprefix("data: ")))
    except httpx.HTTPError as error:
        result.error = f"{type(error).__name__}: {error}"
    return result


def _take(result: Result, event: dict[str, Any]) -> None:
    if "error" in event:
        result.error = str(event["error"])
    elif usage := event.get("usage"):
        result.num_prompt = usage["prompt_tokens"]
        result.num_new = usage["completion_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        result.num_cached = details.get("cached_tokens", 0)
    elif event["choices"]:
        choice = event["choices"][0]
        if text := choice.get("text") or choice.get("delta", {}).get("content"):
            result.moments.append(time.perf_counter() - result.sent_at)
            result.text += text


def check(result: Result) -> Result:
    """``result``, if its request went well. Raises ``BenchError``."""
    if result.error is not None:
        raise BenchError(f"a request failed: {result.error}")
    return result


def percentile(values: list[float], share: float) -> float | None:
    """The value that ``share`` of all do not exceed, in milliseconds."""
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)] * 1e3, 1)


def mean(values: Iterable[float]) -> float:
    """Their mean; nan of nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else math.nan


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that ``serving`` reads."""
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--threads", type=int, help="CPU threads of the server; unset: one per core")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--ctx-size", type=int, default=16_384, help="KV cells of all slots together")
    parser.add_argument("--start-timeout", type=float, default=180, help="seconds until the server is ready")
    parser.add_argument("--timeout", type=float, default=180, help="seconds that one request may take")
    parser.add_argument(
        "--log", type=Path, help="file for the server's log; unset: one in the temporary folder"
    )


@contextmanager
def serving(arguments: argparse.Namespace, tenants: Iterable[str]) -> Iterator[str]:
    """A server of our own with these tenants, without limits and without keys; its URL. It ends with the
    block, whatever ends that. Raises ``BenchError``.
    """
    if not arguments.model.is_file():
        raise BenchError(f"there is no file {arguments.model}; scripts/bench/make_model writes one")
    options = {
        "--model": arguments.model.resolve(),
        "--slots": arguments.slots,
        "--ctx-size": arguments.ctx_size,
        "--threads": arguments.threads,
    }
    limits: Mapping[str, Mapping[str, object]] = {name: {} for name in tenants}
    with serving_tenants(limits, options, log=arguments.log, timeout_s=arguments.start_timeout) as server:
        yield server.url


@dataclass(frozen=True)
class RunningServer:
    """A server child that answers. ``start_s``: from its start until it was ready."""

    url: str
    pid: int
    start_s: float


@contextmanager
def serving_tenants(
    tenants: Mapping[str, Mapping[str, object]],
    options: Mapping[str, object],
    *,
    settings: Mapping[str, object] | None = None,
    log: Path | None = None,
    timeout_s: float = 120,
) -> Iterator["RunningServer"]:
    """A server of our own with these tenants' limits, flags and settings. As ``serving``."""
    with tempfile.TemporaryDirectory(prefix="nexa-bench-") as folder:
        tenants_file = Path(folder) / "tenants.yaml"
        tenants_file.write_text(json.dumps({"tenants": tenants}))  # JSON is YAML
        port = free_port()
        log = log or Path(tempfile.gettempdir()) / f"nexa-bench-{port}.log"
        print(f"the server's log: {log}", file=sys.stderr)
        env = clean_environment() | {"TENANT_MODE": "multi", "NEXA_TENANTS_FILE": str(tenants_file)}
        env |= {name: str(value) for name, value in (settings or {}).items()}
        command = nexa_command(port, options)
        with running(command, port, "/readyz", log, env=env, timeout_s=timeout_s) as server:
            yield server


@contextmanager
def running(
    command: Sequence[str],
    port: int,
    ready_path: str,
    log: Path,
    *,
    env: Mapping[str, str],
    timeout_s: float,
) -> Iterator[RunningServer]:
    """A child that serves on ``port``, from the moment it says so at ``ready_path``. It ends with the block,
    whatever ends that. Raises ``BenchError``.
    """
    # So that being asked to end runs the clean-up below, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with log.open("wb") as log_stream:
        begin = time.perf_counter()
        child = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log_stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; we end the child
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url + ready_path, child, log, timeout_s)
            yield RunningServer(url, child.pid, time.perf_counter() - begin)
        finally:
            _stop(child)


def nexa_command(port: int, options: Mapping[str, object]) -> list[str]:
    """The command line of our server. ``options``: flags and values; None is left out."""
    given = {"--host": "127.0.0.1", "--port": port} | dict(options)
    words_ = [str(part) for pair in given.items() if pair[1] is not None for part in pair]
    return [str(Path(sys.executable).with_name("nexa-runtime")), "serve", *words_]


def clean_environment() -> dict[str, str]:
    """Ours without settings and keys of any other server."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _FOREIGN_NAMES and not name.startswith(_FOREIGN_PREFIXES)
    }


async def until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    """Wait for ``condition``. Raises ``BenchError`` after ``timeout_s``."""
    deadline = time.perf_counter() + timeout_s
    while not condition():
        if time.perf_counter() > deadline:
            raise BenchError(f"what was waited for did not happen within {timeout_s:g} s")
        await asyncio.sleep(0.01)


async def settle(client: httpx.AsyncClient, timeout_s: float = 30) -> None:
    """Wait until the server holds no request. Raises ``BenchError`` after ``timeout_s``."""
    deadline = time.perf_counter() + timeout_s
    while (await client.get("/readyz")).json()["open_requests"]:
        if time.perf_counter() > deadline:
            raise BenchError(f"the server still has requests {timeout_s:g} s after the last was ended")
        await asyncio.sleep(0.1)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(url: str, child: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    deadline = time.perf_counter() + timeout_s
    while time.perf_counter() < deadline:
        if child.poll() is not None:
            raise BenchError(f"the server ended with {child.returncode}; see {log}")
        try:
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.02)
    raise BenchError(f"the server was not ready after {timeout_s:g} s; see {log}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
