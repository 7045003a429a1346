"""Every request that was admitted leaves exactly one record, whatever its end."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from nexa_runtime.usage import UsageRecord
from tests.support import LiveServer, free_settings, hold_steps, wait_until


class ListSink:
    """Keeps what it gets."""

    name = "list"
    backlog = 0
    dropped = 0

    def __init__(self) -> None:
        self.records: list[UsageRecord] = []
        self.is_closed = False

    def put(self, record: UsageRecord, /) -> None:
        self.records.append(record)

    def start(self) -> None:
        pass

    async def close(self) -> None:
        self.is_closed = True


class BrokenSink(ListSink):
    """Fails."""

    name = "broken"

    def put(self, record: UsageRecord, /) -> None:
        raise RuntimeError("a bug")

    async def close(self) -> None:
        raise RuntimeError("a bug")


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    with LiveServer(free_settings(NEXA_SLOTS=2, NEXA_REQUEST_TIMEOUT_S=30)) as server:
        yield server


@pytest.fixture
def sink(live: LiveServer) -> Iterator[ListSink]:
    """All records of one test; another sink that fails is beside it."""
    assert wait_until(live.is_idle)
    kept = ListSink()
    live.app.recorder.sinks = (BrokenSink(), kept)
    yield kept
    live.app.recorder.sinks = ()


def only(live: LiveServer, sink: ListSink) -> UsageRecord:
    assert wait_until(lambda: bool(sink.records) and live.is_idle())
    (record,) = sink.records
    return record


def test_an_answer_leaves_its_usage(live: LiveServer, sink: ListSink) -> None:
    response = live.chat("What is the capital of France?")
    record = only(live, sink)
    usage = response.json()["usage"]
    assert (record.status, record.finish_reason, record.endpoint) == (200, "stop", "/v1/chat/completions")
    assert (record.tenant_id, record.model) == ("demo", "demo")
    assert record.request_id == response.headers["x-request-id"]
    assert record.prompt_tokens == usage["prompt_tokens"]
    assert record.completion_tokens == usage["completion_tokens"]
    assert record.cached_tokens == usage["prompt_tokens_details"]["cached_tokens"]
    assert record.total_tokens == usage["total_tokens"]
    assert record.ttft_ms is not None
    assert record.queue_ms is not None
    assert 0 <= record.queue_ms <= record.ttft_ms <= record.response_time_ms


def test_a_stream_with_choices_leaves_one(live: LiveServer, sink: ListSink) -> None:
    usage_fields: dict[str, Any] = {"stream_options": {"include_usage": True}, "n": 3, "max_tokens": 5}
    with live.stream("Hello", **usage_fields) as stream:
        _, _, events = stream.read()
    record = only(live, sink)
    usage = next(event["usage"] for event in events if isinstance(event, dict) and event.get("usage"))
    assert (record.prompt_tokens, record.completion_tokens) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )


def test_a_call_of_a_tool_says_so(live: LiveServer, sink: ListSink) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    response = live.chat("Hello", tools=[tool], tool_choice="required", max_tokens=64, temperature=0)
    assert response.json()["choices"][0]["finish_reason"] == "tool_calls"
    assert only(live, sink).finish_reason == "tool_calls"


def test_what_is_refused_after_it_was_admitted_leaves_one(live: LiveServer, sink: ListSink) -> None:
    assert live.chat("word " * 5000).status_code == 400
    record = only(live, sink)
    assert (record.status, record.finish_reason, record.total_tokens) == (400, None, 0)
    sink.records.clear()
    assert live.chat("Hello", model="no-such-model").status_code == 404
    record = only(live, sink)
    assert (record.status, record.model) == (404, "no-such-model")


def test_what_is_refused_before_leaves_none(live: LiveServer, sink: ListSink) -> None:
    assert live.http.post("/v1/chat/completions", content=b"{").status_code == 400
    assert live.http.get("/v1/models").status_code == 200
    assert live.is_idle()
    assert sink.records == []


def test_embeddings_and_texts_leave_one_each(live: LiveServer, sink: ListSink) -> None:
    vectors = live.http.post("/v1/embeddings", json={"input": ["Hello", "Hola"]})
    assert live.http.post("/tokenize", json={"content": "Hello"}).status_code == 200
    assert live.http.post("/v1/embeddings", json={"input": "Hello", "dimensions": 10**6}).status_code == 400
    first, second, third = sink.records
    assert (first.endpoint, first.status) == ("/v1/embeddings", 200)
    assert first.prompt_tokens == vectors.json()["usage"]["prompt_tokens"]
    assert (second.endpoint, second.status, second.total_tokens) == ("/tokenize", 200, 0)
    assert (third.status, third.total_tokens) == (400, 0)


def test_a_client_that_leaves_leaves_one(live: LiveServer, sink: ListSink) -> None:
    with live.stream("Repeat after me", ignore_eos=True, max_tokens=2000) as stream:
        next(stream.events())
    record = only(live, sink)
    assert (record.status, record.finish_reason) == (499, None)
    assert record.completion_tokens < 2000


def test_a_client_that_leaves_the_line_leaves_one(live: LiveServer, sink: ListSink) -> None:
    with (
        live.stream("One", ignore_eos=True, max_tokens=1500) as one,
        live.stream("Two", ignore_eos=True, max_tokens=1500) as two,
    ):
        next(one.events())
        next(two.events())

        def leave() -> None:
            with httpx.Client(base_url=live.url, timeout=0.2) as client, pytest.raises(httpx.ReadTimeout):
                client.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 5})

        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
        assert wait_until(lambda: len(sink.records) == 1)
        (record,) = sink.records
        assert (record.status, record.completion_tokens, record.ttft_ms) == (499, 0, None)
    assert wait_until(lambda: len(sink.records) == 3 and live.is_idle())


def test_a_request_that_takes_too_long_leaves_one() -> None:
    with LiveServer(free_settings(NEXA_REQUEST_TIMEOUT_S=0.3)) as live:
        kept = ListSink()
        live.app.recorder.sinks = (kept,)
        response = live.chat("Hello", ignore_eos=True, max_tokens=100_000)
        assert response.status_code == 504
        assert only(live, kept).status == 504


def test_a_stop_leaves_the_records_of_what_ran() -> None:
    kept = ListSink()
    live = LiveServer(free_settings())
    live.app.recorder.sinks = (kept,)
    with live.stream("Hello", ignore_eos=True, max_tokens=100_000) as stream:
        next(stream.events())
        live.stop()
    (record,) = kept.records
    assert record.status == 503
    assert record.completion_tokens > 0


def test_a_request_whose_step_hangs_at_the_end_leaves_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, kept, statuses = threading.Event(), ListSink(), list[int]()

    live = LiveServer(free_settings(NEXA_STEP_LIMIT_S=0), partial(hold_steps, gate))
    live.app.recorder.sinks = (kept,)
    engine, pool = live.app.dispatcher.engine, live.app.dispatcher.pool
    stop, close = engine.stop, pool.close

    async def close_at_last() -> None:
        statuses.extend(one.status for one in kept.records)
        gate.set()
        stop()
        await close()

    monkeypatch.setattr(engine, "stop", lambda: False)
    monkeypatch.setattr(pool, "close", close_at_last)
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(live.chat, "Hello")
        assert wait_until(lambda: engine.step_shape is not None)
        live.stop()
        asked.exception()
    assert statuses == [503]
    assert len(kept.records) == 1


@pytest.mark.parametrize("step", ["reload.Reloader.stop", "discovery.Registration.close"])
def test_sinks_are_closed_whatever_fails_at_the_end(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(f"nexa_runtime.server.{step}", fail)
    kept = ListSink()
    with LiveServer(free_settings(NEXA_ETCD_URL="http://127.0.0.1:1", NEXA_PUBLIC_URL="http://here")) as live:
        live.app.recorder.sinks = (BrokenSink(), kept)
    assert kept.is_closed
    assert not live.app.dispatcher.is_running


def test_usage_and_admission_agree(live: LiveServer, sink: ListSink) -> None:
    before = live.app.dispatcher.admission.usage("demo")
    start = (before.requests, before.prompt_tokens, before.cached_tokens, before.completion_tokens)
    live.chat("Hello", n=2, max_tokens=8)
    live.chat("word " * 5000)
    with live.stream("Hello", ignore_eos=True, max_tokens=2000) as stream:
        next(stream.events())
    assert wait_until(lambda: len(sink.records) == 3 and live.is_idle())
    after = live.app.dispatcher.admission.usage("demo")
    end = (after.requests, after.prompt_tokens, after.cached_tokens, after.completion_tokens)
    grown = tuple(new - old for old, new in zip(start, end, strict=True))
    records = sink.records
    assert grown == (
        3,
        sum(one.prompt_tokens for one in records),
        sum(one.cached_tokens for one in records),
        sum(one.completion_tokens for one in records),
    )
