"""``GET /admin/usage`` and the request log of a real server, under requests of several tenants at once."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support import LiveServer, free_settings, wait_until

Json = dict[str, Any]

TENANTS = "tenants: {acme: {NEXA_LOG_PROMPTS: true}, beta: {}, gamma: {TENANT_HARD_LIMIT_RPM: 1}}"
COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "total_tokens")


def settings_of(folder: Path) -> Json:
    (folder / "tenants.yaml").write_text(TENANTS)
    return {
        "NEXA_TENANTS_FILE": str(folder / "tenants.yaml"),
        "NEXA_REQUEST_LOG": str(folder / "requests.jsonl"),
    }


def logged(folder: Path) -> list[Json]:
    return [orjson.loads(line) for line in (folder / "requests.jsonl").read_bytes().splitlines()]


def sums(lines: list[Json]) -> Json:
    return {name: sum(line[name] for line in lines) for name in COUNTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("usage")


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[LiveServer]:
    with LiveServer(free_settings(**settings_of(folder))) as server:
        yield server


def ask(live: LiveServer, tenant: str, path: str, **body: Any) -> int:
    return live.http.post(path, json=body, headers={"X-Tenant-Id": tenant}).status_code


def test_what_many_tenants_use_at_once_is_counted_and_logged(live: LiveServer, folder: Path) -> None:
    question = [{"role": "user", "content": "Hello!"}]
    jobs: list[tuple[str, str, Json]] = []
    for number in range(6):
        for tenant in ("acme", "beta"):
            jobs += [
                (tenant, "/v1/chat/completions", {"messages": question, "max_tokens": 2 + number}),
                (tenant, "/v1/completions", {"prompt": "Once", "max_tokens": 3, "n": 2}),
                (tenant, "/v1/messages", {"messages": question, "max_tokens": 2}),
                (tenant, "/v1/embeddings", {"input": ["Hello", f"number {number}"]}),
            ]
    jobs += [("beta", "/v1/completions", {"prompt": "x", "model": "made-up"})]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda job: ask(live, job[0], job[1], **job[2]), jobs))
    assert sorted(statuses) == [200] * 48 + [404]
    assert wait_until(lambda: len(logged(folder)) == 49)
    lines = logged(folder)

    answer = live.http.get("/admin/usage").json()
    assert answer["total"] == {"requests": 49, "statuses": {"2xx": 48, "4xx": 1}, **sums(lines)}
    found = {(one["tenant_id"], one["model"]): one for one in answer["usage"]}
    assert set(found) == {("acme", "demo"), ("beta", "demo"), ("beta", "made-up")}
    for (tenant, model), one in found.items():
        mine = [line for line in lines if (line["tenant_id"], line["model"]) == (tenant, model)]
        assert {name: one[name] for name in COUNTS} == sums(mine)
        assert one["requests"] == len(mine)
    alone = live.http.get("/admin/usage", params={"tenant": "beta", "since": "15m"}).json()
    assert {one["tenant_id"] for one in alone["usage"]} == {"beta"}
    assert alone["total"]["requests"] == 25
    assert alone["started_at"] == alone["complete_since"] == alone["since"] <= alone["until"]


def test_a_body_is_logged_where_the_tenant_allows_it(live: LiveServer, folder: Path) -> None:
    for tenant in ("acme", "beta"):
        assert ask(live, tenant, "/v1/completions", prompt="The word is swordfish", max_tokens=1) == 200
    assert wait_until(lambda: sum("swordfish" in str(line) for line in logged(folder)) > 0)
    assert wait_until(lambda: [line["tenant_id"] for line in logged(folder)[-2:]] == ["acme", "beta"])
    acme, beta = logged(folder)[-2:]
    assert acme["body"] == {"prompt": "The word is swordfish", "max_tokens": 1}
    assert "swordfish" not in str(beta)


def test_what_was_not_admitted_is_not_there(live: LiveServer, folder: Path) -> None:
    assert ask(live, "gamma", "/tokenize", content="a") == 200
    assert ask(live, "gamma", "/tokenize", content="a") == 429
    usage = live.http.get("/admin/usage?tenant=gamma").json()
    assert (usage["total"]["requests"], usage["total"]["total_tokens"]) == (1, 0)
    assert wait_until(lambda: any(line["tenant_id"] == "gamma" for line in logged(folder)))


@pytest.mark.parametrize(
    "since",
    [
        "2026-01-01",
        "2026-01-01T10:00",
        "2026-01-01T10:00:00Z",
        "2026-01-01T10:00:00%2B02:00",
        "90s",
        "24h",
        "7d",
    ],
)
def test_a_moment_may_be_written_in_several_ways(live: LiveServer, since: str) -> None:
    assert live.http.get(f"/admin/usage?since={since}").status_code == 200


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("since=yesterday", "since"),
        ("since=", "since"),
        ("since=15", "since"),
        ("since=-5m", "since"),
        ("since=999999999999d", "since"),
        ("since=0001-01-01T00:00:00%2B10:00", "since"),
        ("since=2026-01-01T10:00:00+02:00", "since"),
        ("since=1h&since=2h", "since"),
        ("tenant=Not%20An%20Id", "tenant"),
        ("tenant=", "tenant"),
        ("tennant=acme", "tennant"),
    ],
)
def test_a_bad_query_names_its_parameter(live: LiveServer, query: str, param: str) -> None:
    response = live.http.get(f"/admin/usage?{query}")
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", param)


def test_only_the_admin_sees_it(make_server: Callable[..., LiveServer]) -> None:
    server = make_server(NEXA_API_KEY="service", NEXA_ADMIN_KEY="admin")
    for key, status in (("", 401), ("service", 403), ("admin", 200)):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        assert server.http.get("/admin/usage", headers=headers).status_code == status


def test_a_log_that_is_full_harms_no_request(make_server: Callable[..., LiveServer]) -> None:
    server = make_server(NEXA_REQUEST_LOG="/dev/full")
    for _ in range(5):
        assert server.chat("Hello", max_tokens=1).status_code == 200
    assert server.http.get("/admin/usage").json()["total"]["requests"] == 5
    (log,) = [sink for sink in server.app.recorder.sinks if sink.name == "request_log"]
    server.stop()
    assert (log.backlog, log.dropped) == (0, 5)


def test_a_restart_goes_on_in_the_same_file_and_sets_it_aside(tmp_path: Path) -> None:
    settings = settings_of(tmp_path) | {"NEXA_REQUEST_LOG_MAX_BYTES": "4K"}
    (tmp_path / "requests.jsonl").write_bytes(b'{"cut by a crash')
    for _ in range(2):
        with LiveServer(free_settings(**settings)) as server:
            for _ in range(8):
                assert ask(server, "beta", "/tokenize", content="Hello") == 200
    old, new = (tmp_path / "requests.jsonl.1").read_bytes(), (tmp_path / "requests.jsonl").read_bytes()
    assert old.startswith(b'{"cut by a crash\n{')
    lines = (old + new).splitlines()[1:]
    assert len({orjson.loads(line)["id"] for line in lines}) == len(lines) == 16
    assert max(len(old), len(new)) <= 4096
