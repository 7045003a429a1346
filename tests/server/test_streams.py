"""The ways a stream ends: finished, stop string, length, disconnect, abort, error, shutdown, timeout."""

import json
import socket
import threading
from typing import Any

import httpx
import pytest

from nexa_runtime.errors import DecodeError
from nexa_runtime.llama import Batch, DecodeStatus
from tests.support import LiveServer, wait_until

LONG: dict[str, Any] = {"ignore_eos": True, "max_tokens": 4000}


def test_finished(server: LiveServer) -> None:
    with server.stream("What is the capital of France?") as stream:
        text, reason, events = stream.read()
    assert (text, reason, events[-1]) == ("The capital of France is Paris.", "stop", "[DONE]")
    assert wait_until(server.is_idle)


def test_stop_string(server: LiveServer) -> None:
    with server.stream("What is the capital of France?", stop=["Paris", "never"]) as stream:
        text, reason, events = stream.read()
    assert (text, reason, events[-1]) == ("The capital of France is ", "stop", "[DONE]")
    assert wait_until(server.is_idle)


def test_length(server: LiveServer) -> None:
    with server.stream("Hello", ignore_eos=True, max_tokens=5) as stream:
        _, reason, events = stream.read()
    assert (reason, events[-1]) == ("length", "[DONE]")
    assert wait_until(server.is_idle)


def test_disconnect(server: LiveServer) -> None:
    with server.stream("Hello", **LONG) as stream:
        next(stream.events())
        assert not server.is_idle()
    assert wait_until(server.is_idle)


def test_abort(server: LiveServer) -> None:
    with server.stream("Hello", **LONG) as stream:
        events = stream.events()
        next(events)
        (key,) = server.app.dispatcher._receivers
        server.engine.abort(key)
        last = list(events)[-2:]
    assert last[0]["choices"][0]["finish_reason"] == "abort"
    assert last[1] == "[DONE]"
    assert wait_until(server.is_idle)


def test_error_in_the_middle_is_an_error_frame_and_then_the_end(server: LiveServer) -> None:
    context = server.loaded.context
    assert context is not None
    decode = context.decode
    with server.stream("Hello", **LONG) as stream:
        events = stream.events()
        next(events)

        def fail(batch: Batch) -> DecodeStatus:
            return DecodeStatus.COMPUTE_FAILED

        context.decode = fail  # type: ignore[method-assign]
        try:
            last = list(events)[-1]
        finally:
            context.decode = decode  # type: ignore[method-assign]
    assert last["error"]["code"] == DecodeError.code
    assert last["error"]["type"] == "server_error"
    assert wait_until(server.is_idle)


def test_error_before_the_first_token_is_a_real_status(server: LiveServer) -> None:
    context = server.loaded.context
    assert context is not None
    decode = context.decode
    context.decode = lambda batch: DecodeStatus.COMPUTE_FAILED  # type: ignore[method-assign]
    try:
        with server.stream("Hello") as stream:
            assert stream.response.status_code == 500
            stream.response.read()
            assert stream.response.json()["error"]["code"] == DecodeError.code
    finally:
        context.decode = decode  # type: ignore[method-assign]
    assert wait_until(server.is_idle)


def test_shutdown_is_an_error_frame_and_leaves_no_thread(make_server: Any) -> None:
    before = {thread.name for thread in threading.enumerate()}
    server = make_server()
    with server.stream("Hello", **LONG) as stream:
        events = stream.events()
        next(events)
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        last = list(events)[-1]
        assert last["error"]["code"] == "server_shutting_down"
    stopper.join()
    after = {thread.name for thread in threading.enumerate() if not thread.name.startswith("AnyIO")}
    assert after <= before


def test_shutdown_refuses_what_waits(make_server: Any) -> None:
    server = make_server(NEXA_SLOTS=1)
    statuses: list[int] = []

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            body = {"messages": [{"role": "user", "content": "Hello"}], **LONG}
            statuses.append(client.post("/v1/chat/completions", json=body).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: server.app.dispatcher.num_open == 3)
    server.stop()
    for thread in threads:
        thread.join()
    assert statuses == [503, 503, 503]


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_request_that_takes_too_long_is_504_or_an_error_frame(make_server: Any, is_stream: bool) -> None:
    server = make_server(NEXA_REQUEST_TIMEOUT_S=0.3)
    if is_stream:
        with server.stream("Hello", **LONG) as stream:
            assert list(stream.events())[-1]["error"]["code"] == "request_timeout"
    else:
        response = server.chat("Hello", **LONG)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "request_timeout"
    assert wait_until(server.is_idle)


def test_a_request_that_times_out_in_the_queue_is_504(make_server: Any) -> None:
    server = make_server(NEXA_REQUEST_TIMEOUT_S=0.5, NEXA_SLOTS=1)
    with server.stream("Hello", **LONG) as first:
        next(first.events())
        with server.stream("Hello", **LONG) as second:
            assert second.response.status_code in (200, 504)
            second.response.read()
            assert "request_timeout" in second.response.text
    assert wait_until(server.is_idle)


def test_comments_keep_a_silent_stream_alive(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexa_runtime.server.stream.WITHHOLD_S", 0.05)
    monkeypatch.setattr("nexa_runtime.server.stream.KEEP_ALIVE_S", 0.05)
    server = make_server(NEXA_SLOTS=1, NEXA_REQUEST_TIMEOUT_S=1.5)
    with server.stream("Hello", **LONG) as first:
        next(first.events())
        with server.stream("Hello", **LONG) as second:
            assert second.response.status_code == 200
            lines = list(second.response.iter_lines())
    assert any(line.startswith(": ping") for line in lines)


def test_a_client_that_takes_nothing_is_dropped(make_server: Any) -> None:
    server = make_server(NEXA_SEND_TIMEOUT_S=0.5)
    server._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    prompts = {"prompt": ["Hello"] * 8, "stream": True, **LONG}
    with open_raw(server, "/v1/completions", prompts) as client:
        assert wait_until(lambda: server.app.dispatcher.num_open == 8)
        assert wait_until(server.is_idle)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'finish_reason":"length' not in answer
    assert b"[DONE]" not in answer


def test_what_is_there_at_the_same_time_is_sent_at_once(server: LiveServer) -> None:
    body = {
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with open_raw(server, "/v1/chat/completions", body) as client:
        _, answer = b"".join(iter(lambda: client.recv(65536), b"")).split(b"\r\n\r\n", 1)
    sizes, pieces = answer.split(b"\r\n")[::2], answer.split(b"\r\n")[1::2]
    assert [int(size, 16) for size in sizes if size] == [len(piece) for piece in pieces]
    first, text_and_end, usage_and_done, _ = pieces
    assert [piece.count(b"data: ") for piece in pieces] == [1, 2, 2, 0]
    assert b'"role":"assistant"' in first
    assert b'"content":"' in text_and_end
    assert text_and_end.endswith(b'"finish_reason":"length"}]}\n\n')
    assert usage_and_done.endswith(b"data: [DONE]\n\n")


def open_raw(server: LiveServer, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection with a small window on which one request was sent, and nothing read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(server._listener.getsockname())
    content = json.dumps(body).encode()
    client.sendall(
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    return client


def test_disconnect_of_a_client_that_does_not_stream(server: LiveServer) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], **LONG}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=0.2)
    assert wait_until(server.is_idle)


def test_disconnect_in_the_queue(make_server: Any) -> None:
    server = make_server(NEXA_SLOTS=1)
    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, **LONG}
    with server.stream("Hello", **LONG) as first:
        next(first.events())
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=0.2)
        assert wait_until(lambda: server.app.dispatcher.num_open == 1)
        assert wait_until(lambda: server.engine.stats.num_waiting == 0)
    assert wait_until(server.is_idle)
