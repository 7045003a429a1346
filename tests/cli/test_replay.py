"""``nexa-runtime replay``: a log of one server sent again to a real one."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from nexa_runtime.cli import replay_log
from nexa_runtime.cli.replay_body import skip_reason
from nexa_runtime.cli.replay_log import read_requests
from nexa_runtime.usage.log_line import read_line, write_line
from tests.cli.test_models_cli import NEXA, Person
from tests.support import LiveServer, free_settings, wait_until
from tests.usage.records import NOON, record

Json = dict[str, Any]

KEY = "sk-service"
TENANTS = "tenants: {acme: {NEXA_LOG_PROMPTS: true}, beta: {}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replay")


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[LiveServer]:
    """A server with keys, two tenants and a request log."""
    (folder / "tenants.yaml").write_text(TENANTS)
    settings = {
        "NEXA_TENANTS_FILE": str(folder / "tenants.yaml"),
        "NEXA_REQUEST_LOG": str(folder / "requests.jsonl"),
        "NEXA_API_KEY": KEY,
    }
    with LiveServer(free_settings(**settings)) as server:
        yield server


@pytest.fixture
def person(tmp_path: Path, live: LiveServer) -> Person:
    """Somebody who replays to that server."""
    one = Person(tmp_path)
    one.env |= {"NEXA_URL": live.url, "NEXA_API_KEY": KEY}
    return one


def logged(folder: Path) -> list[Json]:
    return [orjson.loads(line) for line in (folder / "requests.jsonl").read_bytes().splitlines()]


def write_log(path: Path, *records: Any) -> str:
    path.write_bytes(b"".join(map(write_line, records)))
    return str(path)


def test_a_replay_has_the_same_tokens(live: LiveServer, folder: Path, person: Person) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked: list[tuple[str, Json]] = [
        ("/v1/chat/completions", {"messages": question, "max_tokens": 7, "stream": True}),
        ("/v1/chat/completions", {"messages": question}),
        ("/v1/completions", {"prompt": ["Once upon", "a time"], "max_tokens": 3, "n": 2}),
        ("/v1/responses", {"input": "Hello!", "max_output_tokens": 4, "stream": True}),
        ("/v1/messages", {"messages": question, "max_tokens": 5, "stream": True}),
        ("/v1/embeddings", {"input": ["Hello", "word " * 300]}),
        ("/v1/chat/completions", {"messages": question, "model": "no-such-model"}),
        ("/tokenize", {"content": "Hello"}),
    ]
    for tenant in ("acme", "beta"):
        for path, body in asked:
            headers = {"X-Tenant-Id": tenant, "Authorization": f"Bearer {KEY}"}
            live.http.post(path, json=body, headers=headers)
    assert wait_until(lambda: len(logged(folder)) == 16)
    first = logged(folder)
    copy = folder / "copy.jsonl"
    copy.write_bytes((folder / "requests.jsonl").read_bytes())

    found = person.gets("replay", str(copy), "--speed", "0")
    assert (found["requests"], found["sent"], found["answered"]) == (16, 13, 13)
    assert found["skipped"] == {"/tokenize is not replayed": 2, "it had used no tokens": 1}
    assert found["then"]["statuses"] == found["now"]["statuses"] == {"200": 12, "404": 1}
    for name in ("prompt_tokens", "completion_tokens"):
        assert found["then"][name] == found["now"][name] > 0
    assert found["now"]["ttft_ms"]["p50"] is not None
    assert 0 < found["now"]["total_ms"]["p50"] <= found["now"]["total_ms"]["p95"]

    def counts(lines: list[Json]) -> list[tuple[str, int, int]]:
        used = [line for line in lines if line["endpoint"] != "/tokenize" and line["total_tokens"]]
        return sorted((line["tenant_id"], line["prompt_tokens"], line["completion_tokens"]) for line in used)

    # What it asked to make prompts of is a request, too.
    assert wait_until(lambda: len(logged(folder)) == 16 + 13 + 1)
    again = logged(folder)[16:]
    assert counts(first) == counts(again)
    bodies = [
        [str(line["body"]["messages"]) for line in lines if "messages" in line.get("body", {})]
        for lines in (first, again)
    ]
    assert sorted(bodies[0]) == sorted(bodies[1])


def test_a_person_gets_a_table(person: Person, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", record(status=503, prompt_tokens=40, cached_tokens=0))
    (tmp_path / "log").write_bytes(b"\xffnonsense\n" + (tmp_path / "log").read_bytes())
    done = person.runs("replay", log)
    assert done.returncode == 0
    assert "Line 1 is no request: " in done.stderr
    rows = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()]
    assert rows[0][-2:] == ["then", "now"]
    table = {name.strip(): values for name, *values in rows[1:]}
    assert table["status 200"] == ["0", "1"]
    assert table["status 503"] == ["1", "0"]
    assert table["prompt tokens"] == ["40", "40"]
    assert table["completion tokens"] == ["3", "3"]
    assert {"first text, p95, ms", "whole answer, p50, ms"} <= set(table)


def test_as_many_tokens_are_cached_as_were(person: Person, tmp_path: Path) -> None:
    records = [
        record(
            tenant_id="beta", prompt_tokens=300, cached_tokens=cached, created_at=NOON + timedelta(hours=n)
        )
        for n, cached in enumerate((256, 256, 256))
    ]
    found = person.gets("replay", write_log(tmp_path / "log", *records), "--speed", "100000")
    assert found["then"]["cached_tokens"] == 3 * 256
    assert 2 * 256 <= found["now"]["cached_tokens"] <= 2 * 256 + 20


def test_distances_in_time_are_kept(person: Person, tmp_path: Path) -> None:
    records = [record(created_at=NOON + timedelta(hours=hour)) for hour in (2, 0, 1)]
    log = write_log(tmp_path / "log", *records)
    start = time.monotonic()
    found = person.gets("replay", log, "--speed", "7200")
    assert time.monotonic() - start > 1.0
    assert found["answered"] == 3
    assert person.gets("replay", log, "--speed", "0", "--limit", "2")["answered"] == 2


def test_another_model_may_be_asked(person: Person, tmp_path: Path) -> None:
    gone = record(model="gone")
    log = write_log(tmp_path / "log", gone, record(endpoint="/v1/rerank"))
    assert "gone" in person.fails(1, "replay", log)
    assert person.gets("replay", log, "--model", "demo")["answered"] == 1
    body = record(model="gone", body={"prompt": "Hi", "model": "gone"}, endpoint="/v1/completions")
    found = person.gets("replay", write_log(tmp_path / "log", body), "--model", "demo")
    assert found["now"]["statuses"] == {"200": 1}


def test_what_is_no_log_is_one_sentence(person: Person, tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert "no file" in person.fails(3, "replay", str(tmp_path / "none"))
    assert "directory" in person.fails(1, "replay", str(tmp_path))
    path.write_bytes(b"")
    assert "no request" in person.fails(2, "replay", str(path))
    path.write_bytes(b"\n\n{}\n" + bytes(range(256)) * 50)
    assert "line 3" in person.fails(2, "replay", str(path))
    write_log(path, record())
    for speed in ("-1", "nan", "inf"):
        assert "--speed" in person.fails(2, "replay", str(path), "--speed", speed)
    person.fails(2, "replay", str(path), "--limit", "0")


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_log, "_MAX_LINE_BYTES", 1000)
    log = tmp_path / "log"
    log.write_bytes(b"x" * 5000 + b"\n" + write_line(record()) + b"y" * 5000)
    found = read_requests(log, None)
    assert (len(found.requests), found.num_bad) == (1, 2)
    assert [(bad.number, bad.reason) for bad in found.bad_lines] == [
        (number, "it is longer than 1000 bytes") for number in (1, 3)
    ]


def test_a_prompt_is_made_up_only_within_bounds() -> None:
    def reason(**fields: Any) -> str | None:
        return skip_reason(read_line(write_line(record(**fields))))

    assert reason(prompt_tokens=2**19) is None
    assert reason(prompt_tokens=2**19 + 1) == "it had more than 524288 tokens"
    assert reason(prompt_tokens=0, cached_tokens=0) == "it had used no tokens"
    assert reason(prompt_tokens=0, cached_tokens=0, body={"prompt": "Hi"}) is None
    assert reason(endpoint="/v1/rerank") == "/v1/rerank is not replayed"


def test_a_server_that_does_not_help_is_one_sentence(person: Person, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", record())
    for url in ("http://127.0.0.1:9", "http://[nowhere"):
        assert "no answer" in person.fails(1, "replay", log, env={"NEXA_URL": url})
    assert "key" in person.fails(1, "replay", log, env={"NEXA_API_KEY": "wrong"})
    stranger = write_log(tmp_path / "log", record(tenant_id="nobody"))
    assert "nobody" in person.fails(1, "replay", stranger)


def test_ctrl_c_ends_it_with_what_it_has(person: Person, live: LiveServer, folder: Path) -> None:
    log = write_log(folder / "long", record(), record(created_at=NOON + timedelta(hours=1)))
    num_before = len(logged(folder))
    with subprocess.Popen(
        [NEXA, "replay", log, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=person.env,
    ) as process:
        assert wait_until(lambda: len(logged(folder)) == num_before + 2 and live.is_idle())
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "")
    found = json.loads(stdout)
    assert (found["is_interrupted"], found["sent"]) == (True, 1)
