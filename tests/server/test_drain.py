"""How the server ends: idle, while it answers, while it loads, and when it is told twice."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from nexa_runtime import exit_codes
from tests.server.child import Child
from tests.support import EventStream, free_port, wait_until

LONG: dict[str, Any] = {"ignore_eos": True, "max_tokens": 4000}
FOREVER_S = 3600
FINISHED, CUT = {None}, {"server_shutting_down"}


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello"}], **fields}


@contextmanager
def streaming(client: httpx.Client, **fields: Any) -> Iterator[Iterator[Any]]:
    """The events of an answer that has begun, the first one read."""
    with client.stream("POST", "/v1/chat/completions", json=body(stream=True, **fields)) as response:
        events = EventStream(response).events()
        next(events)
        yield events


def test_an_idle_server_ends_at_once() -> None:
    with Child(NEXA_DRAIN_S=FOREVER_S) as child, child.client() as client:
        assert client.get("/health").status_code == 200  # its connection stays open
        child.send()
        assert child.end() == exit_codes.DONE
        assert "Traceback" not in child.talk


def test_what_runs_is_finished_and_nothing_new_is_taken() -> None:
    with Child(NEXA_DRAIN_S=FOREVER_S, NEXA_SLOTS=1) as child, child.client() as client:
        with streaming(client, ignore_eos=True, max_tokens=300) as events:
            child.send()
            with child.client() as other:
                assert wait_until(lambda: other.get("/readyz").status_code == 503)
                assert "draining" in [one["code"] for one in other.get("/readyz").json()["reasons"]]
                assert other.get("/health").status_code == 200
                refused = other.post("/v1/chat/completions", json=body())
            *_, last = events
        assert last == "[DONE]"
        assert child.end() == exit_codes.DONE
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining"
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["connection"] == "close"


def test_what_takes_too_long_is_cut_and_told() -> None:
    with Child(NEXA_DRAIN_S=0.3) as child, child.client() as client:
        with streaming(client, **LONG, n=8) as events:
            child.send()
            *_, last = events
        assert last["error"]["code"] == "server_shutting_down"
        assert last["error"]["type"] == "server_error"
        assert child.end() == exit_codes.DONE
        assert '"outcome":"server_shutting_down"' in child.talk
        assert "Traceback" not in child.talk


@pytest.mark.parametrize(("drain_s", "max_tokens", "codes"), [(0.2, 4000, CUT), (FOREVER_S, 50, FINISHED)])
def test_what_waits_has_its_turn_while_there_is_time(
    make_server: Any, drain_s: float, max_tokens: int, codes: set[str | None]
) -> None:
    server = make_server(NEXA_SLOTS=1, NEXA_DRAIN_S=drain_s)

    def ask() -> str | None:
        answer = httpx.post(
            f"{server.url}/v1/chat/completions",
            json=body(ignore_eos=True, max_tokens=max_tokens),
            timeout=60,
        ).json()
        return str(answer["error"]["code"]) if "error" in answer else None

    with ThreadPoolExecutor(4) as clients:
        answers = [clients.submit(ask) for _ in range(4)]
        assert wait_until(lambda: server.app.dispatcher.num_open == 4 or all(one.done() for one in answers))
        server.stop()
        assert {one.result() for one in answers} == codes


def test_a_second_signal_ends_it_now() -> None:
    with Child(NEXA_DRAIN_S=FOREVER_S) as child, child.client() as client:
        with streaming(client, **LONG, n=8) as events:
            child.send()
            with child.client() as other:
                assert wait_until(lambda: other.get("/readyz").status_code == 503)
            child.send()
            assert child.end() == exit_codes.CUT_SHORT
            try:
                *_, last = events
            except httpx.TransportError:
                last = None
        assert last is None or last["error"]["code"] == "server_shutting_down"
        assert '"outcome":"server_shutting_down"' in child.talk
        assert "Traceback" not in child.talk


def test_a_server_that_loads_its_model_ends_at_once() -> None:
    port = free_port()
    with Child(NEXA_PORT=port) as child:

        def listens() -> bool:
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        assert wait_until(listens)  # it listens before it loads
        child.send()
        assert child.end() == exit_codes.TERMINATED
        assert "Traceback" not in child.talk
        assert "Nexa Runtime serves" not in child.talk


@pytest.mark.parametrize(("drain_s", "code"), [(0, "server_shutting_down"), (FOREVER_S, None)])
def test_an_embedding_is_finished_or_told(make_server: Any, drain_s: float, code: str | None) -> None:
    server = make_server(NEXA_DRAIN_S=drain_s)
    inputs = ["What is the capital of France? " * 10] * 64

    def ask() -> httpx.Response:
        return httpx.post(f"{server.url}/v1/embeddings", json={"input": inputs}, timeout=60)

    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(ask)
        assert wait_until(lambda: server.app.dispatcher.num_open == 1)
        server.stop()
        body = answer.result().json()
    assert body.get("error", {}).get("code") == code
    assert code is not None or len(body["data"]) == len(inputs)
