"""What a server writes about its requests, and that they do not depend on whether it can be written."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
import yaml

from nexa_runtime.tenancy.keys import create_key, digest
from tests.support import LiveServer, free_port, free_settings, wait_until

NEXA = Path(sys.executable).with_name("nexa-runtime")
SERVICE_KEY, ADMIN_KEY, ACME_KEY = "service-key-1", "admin-key-1", create_key("acme")
QUESTION = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}


def id_of(key: str) -> str:
    return digest(key).hex()[:8]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with keys of all kinds."""
    path = tmp_path_factory.mktemp("tenants") / "tenants.yaml"
    tenants = {"acme": {"NEXA_API_KEY_SHA256": digest(ACME_KEY).hex()}, "loud": {"NEXA_LOG_PROMPTS": True}}
    path.write_text(yaml.safe_dump({"tenants": tenants}))
    keys = {"NEXA_API_KEY": SERVICE_KEY, "NEXA_ADMIN_KEY": ADMIN_KEY}
    with LiveServer(free_settings(NEXA_TENANTS_FILE=str(path), **keys)) as live:
        yield live


class Log:
    """The lines of the servers in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def of(self, request_id: str, event: str) -> dict[str, Any]:
        """The one line of that event of a request; it may come after the answer."""

        def found() -> list[dict[str, Any]]:
            self._text += self._capsys.readouterr().err
            lines = [json.loads(line) for line in self._text.splitlines()]
            return [line for line in lines if (line.get("request_id"), line["event"]) == (request_id, event)]

        assert wait_until(lambda: bool(found()))
        (line,) = found()
        return line

    def text(self) -> str:
        """All of it so far."""
        self._text += self._capsys.readouterr().err
        return self._text

    def clear(self) -> None:
        """Forget it."""
        self._text = ""


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Log:
    return Log(capsys)


def ask(server: LiveServer, key: str | None, **headers: str) -> httpx.Response:
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return server.http.post("/v1/chat/completions", json={**QUESTION, "model": "demo"}, headers=headers)


@pytest.mark.parametrize("key", [ACME_KEY, SERVICE_KEY], ids=["tenant", "service"])
def test_a_request_has_two_lines_that_say_who_asked_and_what_came_of_it(
    closed: LiveServer, log: Log, key: str
) -> None:
    response = ask(closed, key, **{"x-tenant-id": "acme"})
    usage, request_id = response.json()["usage"], response.headers["x-request-id"]
    caller = {"tenant": "acme", "key_id": id_of(key), "model": "demo", "status": 200}
    line = log.of(request_id, "request")
    assert line.items() >= {**caller, "path": "/v1/chat/completions", "method": "POST", "code": None}.items()
    ended = log.of(request_id, "request_ended")
    tokens = {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}
    assert ended.items() >= {**caller, **tokens, "endpoint": "/v1/chat/completions"}.items()
    assert ended["outcome"] in ("stop", "length")
    assert all(ended[name] >= 0 for name in ("queue_ms", "ttft_ms", "total_ms"))
    assert line["ms"] >= ended["ttft_ms"]
    assert ACME_KEY not in log.text()
    assert SERVICE_KEY not in log.text()


def test_a_refusal_says_its_code_and_which_key_was_shown(closed: LiveServer, log: Log) -> None:
    stranger = create_key("acme")
    refused = ask(closed, stranger)
    line = log.of(refused.headers["x-request-id"], "request")
    assert line.items() >= {"status": 401, "code": "invalid_api_key", "key_id": id_of(stranger)}.items()
    assert line["tenant"] is None
    nobody = log.of(ask(closed, None).headers["x-request-id"], "request")
    assert (nobody["status"], nobody["key_id"]) == (401, None)


def test_the_admin_has_a_key_id_too(closed: LiveServer, log: Log) -> None:
    response = closed.http.get("/admin/tenants", headers={"authorization": f"Bearer {ADMIN_KEY}"})
    line = log.of(response.headers["x-request-id"], "request")
    assert (line["status"], line["key_id"], line["tenant"]) == (200, id_of(ADMIN_KEY), None)


def test_a_stream_whose_client_leaves_is_said_to_be_left(closed: LiveServer, log: Log) -> None:
    body = {**QUESTION, "stream": True, "max_tokens": 2000, "ignore_eos": True}
    headers = {"authorization": f"Bearer {ACME_KEY}"}
    with closed.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        next(response.iter_lines())
    ended = log.of(response.headers["x-request-id"], "request_ended")
    assert (ended["outcome"], ended["status"], ended["tenant"]) == ("client_disconnected", 499, "acme")


def test_nothing_is_forged_by_what_a_client_sends(closed: LiveServer, log: Log) -> None:
    with socket.create_connection(("127.0.0.1", int(closed.url.rsplit(":", 1)[1]))) as connection:
        path = b"/x%0d%0a%1b[2J{%22event%22:%22forged%22}/" + b"y" * 5000
        connection.sendall(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\nx-request-id: a\x1b[2J\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 404")
    assert wait_until(lambda: "forged" in log.text())
    (line,) = [line for line in log.text().splitlines() if "forged" in line]
    parsed = json.loads(line)
    assert parsed["path"].startswith("/x\r\n\x1b[2J")
    assert len(parsed["path"]) <= 200
    assert parsed["request_id"].startswith("req_")
    assert line.isprintable()


def test_prompts_are_logged_where_the_tenant_allows_and_bounded(closed: LiveServer, log: Log) -> None:
    body = {**QUESTION, "messages": [{"role": "user", "content": "words " * 5000 + "the end"}]}
    headers = {"authorization": f"Bearer {SERVICE_KEY}"}
    for tenant, is_logged in (("loud", True), ("acme", False)):
        headers["x-tenant-id"] = tenant
        answer = closed.http.post("/v1/completions", json={"prompt": "my words"}, headers=headers)
        assert answer.status_code == 200
        log.of(answer.headers["x-request-id"], "request_ended")
        assert ("my words" in log.text()) is is_logged
        log.clear()
    headers["x-tenant-id"] = "loud"
    long = closed.http.post("/v1/chat/completions", json=body, headers=headers)
    prompt = log.of(long.headers["x-request-id"], "prompt")
    assert len(prompt["texts"][0]) <= 8193


# Processes of their own, whose log cannot be written.


@contextmanager
def serving(stderr: int | IO[bytes], **env: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """A server that answers, and what asks it."""
    port = free_port()
    environment = os.environ | {"NEXA_PORT": str(port), **env}
    with subprocess.Popen(
        [NEXA, "serve"], env=environment, stdin=subprocess.DEVNULL, stderr=stderr
    ) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

                def is_ready() -> bool:
                    try:
                        return client.get("/readyz").status_code == 200
                    except httpx.TransportError:
                        return False

                assert wait_until(is_ready, 60)
                yield process, client
        finally:
            process.kill()


def end(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(30)


def test_a_full_target_harms_no_request() -> None:
    with open("/dev/full", "wb", buffering=0) as full, serving(full) as (process, client):
        for _ in range(3):
            assert client.post("/v1/chat/completions", json=QUESTION).status_code == 200
        assert client.post("/v1/chat/completions", json={**QUESTION, "model": "x"}).status_code == 404
        assert end(process) == 0


def test_a_pipe_that_nobody_reads_harms_no_request_and_loses_nothing_that_fits() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(reader, "rb") as lines, serving(writer, LOG_LEVEL="DEBUG") as (process, client):
        os.close(writer)
        ids = []
        for _ in range(5):
            answer = client.post("/v1/chat/completions", json=QUESTION)
            assert answer.status_code == 200
            ids.append(answer.headers["x-request-id"])
        process.send_signal(signal.SIGTERM)
        talk = lines.read()
        assert process.wait(30) == 0
    parsed = [json.loads(line) for line in talk.splitlines() if line.startswith(b"{")]
    assert len(talk) > 3 * 4096
    asked = [one["request_id"] for one in parsed if (one["event"], one.get("status")) == ("request", 200)]
    assert [one for one in asked if one in ids] == ids


def test_the_end_does_not_wait_for_a_reader_that_never_comes() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        with serving(writer, LOG_LEVEL="DEBUG") as (process, client):
            for _ in range(3):
                assert client.post("/v1/chat/completions", json=QUESTION).status_code == 200
            assert end(process) == 0
    finally:
        os.close(reader)
        os.close(writer)
