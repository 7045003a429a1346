"""The edge: half requests, wrong lengths, too many connections, readers that do not read."""

import json
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.child import Child
from tests.support import LiveServer, wait_until

QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
LONG: dict[str, Any] = {"ignore_eos": True, "max_tokens": 4000}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.fixture(scope="module")
def hasty() -> Iterator[LiveServer]:
    """A server that waits for nobody for long."""
    from tests.support import free_settings

    settings = free_settings(
        NEXA_HEADER_TIMEOUT_S=0.3, NEXA_BODY_TIMEOUT_S=0.3, NEXA_SEND_TIMEOUT_S=1, NEXA_MAX_QUEUE=400
    )
    with LiveServer(settings) as live:
        yield live


@contextmanager
def connection(server: LiveServer) -> Iterator[socket.socket]:
    with socket.create_connection(server._listener.getsockname(), timeout=20) as client:
        yield client


def rest(client: socket.socket) -> bytes:
    """All that comes, until the other side ends the connection."""
    data = b""
    try:
        while piece := client.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def answer_to(server: LiveServer, *pieces: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of what is answered to these bytes, after which the connection is closed."""
    with connection(server) as client:
        for piece in pieces:
            client.sendall(piece)
        head, _, body = rest(client).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, json.loads(body)


def with_length(length: int, body: bytes) -> bytes:
    return HEAD + f"Connection: close\r\nContent-Length: {length}\r\n\r\n".encode() + body


# A head must arrive.


def test_half_a_head_is_told_and_closed(hasty: LiveServer) -> None:
    status, headers, body = answer_to(hasty, HEAD)
    assert (status, body["error"]["code"]) == (408, "header_timeout")
    assert headers["connection"] == "close"
    assert headers["x-request-id"].startswith("req_")


def test_a_connection_that_says_nothing_is_closed(hasty: LiveServer) -> None:
    with connection(hasty) as client:
        assert rest(client) == b""


def test_the_metrics_port_waits_no_longer(make_server: Any) -> None:
    server = make_server(NEXA_HEADER_TIMEOUT_S=0.3, NEXA_METRICS_PORT=0)
    with socket.create_connection(server.metrics_listener.getsockname(), timeout=20) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost")
        assert rest(client).startswith(b"HTTP/1.1 408 ")
    assert 'reason="header_timeout"' in server.http.get("/metrics").text


def test_half_a_second_head_is_told_and_closed(hasty: LiveServer) -> None:
    whole = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with connection(hasty) as client:
        client.sendall(whole)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        client.sendall(whole[:20])
        assert b"HTTP/1.1 408 " in rest(client)


def test_what_is_no_http_has_the_shape_of_an_error(hasty: LiveServer) -> None:
    for nonsense in (b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"):
        status, headers, body = answer_to(hasty, nonsense)
        assert (status, body["error"]["code"]) == (400, "invalid_request")
        assert "not HTTP" in body["error"]["message"]
        assert headers["content-type"] == "application/json"


# So must a body, of the length that was said.


def test_a_missing_body(hasty: LiveServer) -> None:
    status, _, body = answer_to(hasty, HEAD + b"Connection: close\r\n\r\n")
    assert (status, body["error"]["code"]) == (400, "invalid_request")
    assert "not valid JSON" in body["error"]["message"]


def test_a_body_that_is_shorter_than_was_said(hasty: LiveServer) -> None:
    status, _, body = answer_to(hasty, with_length(1000, json.dumps(QUESTION).encode()))
    assert (status, body["error"]["code"]) == (408, "body_timeout")


def test_a_body_that_is_longer_than_was_said(hasty: LiveServer) -> None:
    content = json.dumps(QUESTION).encode()
    status, _, body = answer_to(hasty, with_length(len(content) - 1, content))
    assert (status, body["error"]["code"]) == (400, "invalid_request")
    with connection(hasty) as client:  # what is left over is no request
        client.sendall(HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode() + content + b"more\r\n\r\n")
        answers = rest(client)
    assert answers.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 400 " in answers


def test_a_broken_chunk(hasty: LiveServer) -> None:
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    status, _, body = answer_to(hasty, head + b"5\r\nhello\r\nzz\r\n")
    assert (status, body["error"]["code"]) == (400, "invalid_request")
    assert wait_until(hasty.is_idle)


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_of_60_mb(hasty: LiveServer, is_announced: bool) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(60):
            yield b"x" * 2**20

    headers = {"Content-Length": str(60 * 2**20)} if is_announced else {}
    answer = httpx.post(f"{hasty.url}/v1/chat/completions", content=pieces(), headers=headers, timeout=30)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert hasty.chat("Hello", max_tokens=3).status_code == 200


def test_a_refused_body_is_not_read_for_ever(hasty: LiveServer) -> None:
    with connection(hasty) as client:
        client.sendall(HEAD + b"Content-Length: 60000000\r\n\r\n")
        assert rest(client).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_asks_first_is_told_to_go_on_or_not(hasty: LiveServer) -> None:
    content = json.dumps(QUESTION).encode()
    expects = HEAD + b"Connection: close\r\nExpect: 100-continue\r\n"
    with connection(hasty) as client:
        client.sendall(expects + f"Content-Length: {len(content)}\r\n\r\n".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 100 ")
        client.sendall(content)
        assert rest(client).startswith(b"HTTP/1.1 200 ")
    with connection(hasty) as client:
        client.sendall(expects + b"Content-Length: 60000000\r\n\r\n")
        assert rest(client).startswith(b"HTTP/1.1 413 ")


def test_who_still_sends_a_body_when_the_server_ends_is_told(make_server: Any) -> None:
    server = make_server()
    with connection(server) as client:
        client.sendall(with_length(100, b"{"))
        assert wait_until(lambda: bool(server._server.server_state.tasks))
        server.stop()
        told = rest(client)
    assert told.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"server_shutting_down"' in told


# Connections.


def test_connections_beyond_the_cap_are_told_and_health_still_answers(make_server: Any) -> None:
    server = make_server(NEXA_MAX_CONNECTIONS=2)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connection(server))
        with httpx.Client(base_url=server.url) as client:
            refused = client.post("/v1/chat/completions", json=QUESTION)
            health = client.get("/health")
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "overloaded"
    assert refused.headers["connection"] == "close"
    assert int(refused.headers["retry-after"]) >= 1
    assert health.status_code == 200
    assert wait_until(lambda: server.chat("Hello", max_tokens=3).status_code == 200)


def test_far_beyond_the_cap_nothing_is_read(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexa_runtime.server.edge._RESERVE", 1)
    server = make_server(NEXA_MAX_CONNECTIONS=1)
    with connection(server), connection(server), connection(server) as third:
        told = rest(third)
    assert told.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"overloaded"' in told
    assert wait_until(lambda: not server._server.server_state.connections)
    assert 'nexa_refusals_total{reason="overloaded",tenant=""} 1.0' in server.http.get("/metrics").text


def test_500_idle_connections_beside_a_request(make_server: Any) -> None:
    server = make_server()
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(connection(server))
        assert wait_until(lambda: len(server._server.server_state.connections) >= 500)
        assert server.chat("Hello", max_tokens=3).status_code == 200


def test_a_server_without_file_descriptors_comes_back() -> None:
    with Child() as child, child.client() as client, ExitStack() as stack:
        assert client.post("/v1/chat/completions", json=QUESTION).status_code == 200
        pid = child.process.pid
        num_open = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (num_open + 10, num_open + 10))
        port = int(child.url.rpartition(":")[2])
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(40)]
        assert wait_until(lambda: "descriptors_exhausted" in child.talk)
        assert client.post("/v1/chat/completions", json=QUESTION).status_code == 200
        for one in idle:
            one.close()
        with child.client() as other:  # it waits in the kernel until the server looks again
            assert other.post("/v1/chat/completions", json=QUESTION).status_code == 200
        child.send()
        assert child.end() == 0
    assert child.talk.count("descriptors_exhausted") == 1
    assert "out of system resource" not in child.talk


# Readers that do not read.


def test_a_slow_reader_is_dropped_and_nobody_else_waits(hasty: LiveServer) -> None:
    """It takes a byte now and then, with buffers that hold little."""
    hasty._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    prompts = json.dumps({"prompt": ["Hello"] * 8, "stream": True, **LONG}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    with socket.socket() as slow, ThreadPoolExecutor(8) as others:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(hasty._listener.getsockname())
        slow.sendall(head + f"Content-Length: {len(prompts)}\r\n\r\n".encode() + prompts)
        assert slow.recv(1) == b"H"

        def normal(_: int) -> int:
            with hasty.stream("What is the capital of France?") as events:
                return events.response.status_code if events.read()[2][-1] == "[DONE]" else 0

        assert list(others.map(normal, range(8))) == [200] * 8

        def is_dropped() -> bool:
            slow.settimeout(0)
            try:
                slow.recv(1)
            except BlockingIOError:
                pass
            except ConnectionResetError:
                return True
            return hasty.is_idle()

        assert wait_until(is_dropped)
    assert wait_until(hasty.is_idle)


def test_a_whole_body_that_nobody_takes_is_dropped(hasty: LiveServer) -> None:
    hasty._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    content = json.dumps({"input": ["Hello"] * 512}).encode()
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    connections = hasty._server.server_state.connections

    def has_unsent() -> bool:
        return any(one.transport.get_write_buffer_size() for one in list(connections))

    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(hasty._listener.getsockname())
        slow.sendall(head + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
        assert wait_until(has_unsent)
        assert wait_until(lambda: not has_unsent())
        assert len(rest(slow)) < 2**20
