"""``/metrics``: exactly what happened, per tenant; for the owner only; in a text that Prometheus takes."""

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from nexa_runtime.config import load_settings
from nexa_runtime.errors import ConfigError
from nexa_runtime.server.app import bind_metrics
from nexa_runtime.telemetry.metrics.labels import OTHER, TenantLabels
from nexa_runtime.usage import UsageRecord
from tests.support import LiveServer, free_settings, wait_until

SERVICE_KEY, ADMIN_KEY = "service-key", "admin-key"
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"

TENANTS: dict[str, dict[str, object]] = {
    "red": {},
    "blue": {"NEXA_MAX_OUTPUT_TOKENS": 5},
    "slow": {"TENANT_HARD_LIMIT_RPM": 2},
}

Labels = dict[str, str]
Samples = dict[str, list[tuple[Labels, float]]]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Several tenants, keys, a port of its own for metrics, and a small cache."""
    path = tmp_path_factory.mktemp("metrics") / "tenants.yaml"
    path.write_text(yaml.safe_dump({"tenants": TENANTS}))
    settings = free_settings(
        NEXA_TENANTS_FILE=str(path),
        NEXA_API_KEY=SERVICE_KEY,
        NEXA_ADMIN_KEY=ADMIN_KEY,
        NEXA_METRICS_PORT=0,
        NEXA_MAX_BODY_BYTES=65_536,
        NEXA_SLOTS=4,
    )
    with LiveServer(settings) as server:
        yield server


def url_of(live: LiveServer) -> str:
    """Of the port for metrics."""
    assert live.metrics_listener is not None
    return f"http://127.0.0.1:{live.metrics_listener.getsockname()[1]}/metrics"


def scrape(live: LiveServer, **params: str) -> Samples:
    """All samples by name."""
    response = httpx.get(url_of(live), params=params)
    assert response.status_code == 200
    samples: Samples = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of all samples that have these labels."""
    found = samples.get(name, [])
    return sum(value for has, value in found if labels.items() <= has.items())


def grown(before: Samples, after: Samples, name: str, *by: str) -> dict[tuple[str, ...], float]:
    """By these labels, how much was counted between two scrapes."""
    counts: Counter[tuple[str, ...]] = Counter()
    for samples, sign in ((before, -1), (after, 1)):
        for labels, value in samples.get(name, []):
            counts[tuple(labels[one] for one in by)] += sign * int(value)
    return {key: value for key, value in counts.items() if value}


class Client:
    """Asks as one tenant, and notes what it was told that it used."""

    def __init__(self, live: LiveServer, tenant: str) -> None:
        self._live = live
        self.tenant = tenant
        self.headers = {"authorization": f"Bearer {SERVICE_KEY}", "x-tenant-id": tenant}
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = self.embedded_tokens = 0

    def chat(self, content: str, **fields: object) -> int:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, **fields}
        response = self._live.http.post(CHAT, json=body, headers=self.headers)
        if response.status_code == 200:
            self._note(response.json()["usage"])
        return response.status_code

    def stream(self, content: str, *, events: int | None = None) -> None:
        """Read a stream to its end, or leave after so many events."""
        body = {
            "messages": [{"role": "user", "content": content}],
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"max_tokens": 8} if events is None else {"max_tokens": 3000, "ignore_eos": True}),
        }
        with self._live.http.stream("POST", CHAT, json=body, headers=self.headers) as response:
            assert response.status_code == 200
            for number, line in enumerate(
                line for line in response.iter_lines() if line.startswith("data: ")
            ):
                if events is not None and number >= events:
                    return
                if '"usage":{' in line:
                    self._note(httpx.Response(200, text=line.removeprefix("data: ")).json()["usage"])

    def embed(self, *texts: str) -> None:
        response = self._live.http.post(EMBED, json={"input": texts}, headers=self.headers)
        self._note(response.json()["usage"])
        self.embedded_tokens += response.json()["usage"]["prompt_tokens"]

    def _note(self, usage: dict[str, Any]) -> None:
        self.prompt_tokens += usage["prompt_tokens"]
        self.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        self.completion_tokens += usage.get("completion_tokens", 0)


class LateSink:
    """Has taken some records and lost others."""

    name = "late"
    backlog = 3
    dropped = 2

    def put(self, record: UsageRecord, /) -> None:
        pass

    def start(self) -> None:
        pass

    async def close(self) -> None:
        pass


def red_load(red: Client) -> None:
    assert [red.chat(f"Hello {number}") for number in range(4)] == [200] * 4
    red.stream("Tell me a story")
    red.stream("Tell me another")
    assert red.chat("word " * 5000) == 400
    assert red.chat("Hello", model="no-such-model") == 404


def blue_load(blue: Client) -> None:
    assert blue.chat("Hola", n=2) == 200
    blue.embed("one", "two", "three")
    blue.stream("Hola")


def slow_load(slow: Client) -> None:
    assert [slow.chat("Olá") for _ in range(5)] == [200, 200, 429, 429, 429]


def stray_load(http: httpx.Client, red: Client, blue: Client) -> None:
    """What never gets as far as a model."""
    assert [http.post(CHAT, json={}).status_code for _ in range(3)] == [401] * 3
    assert [http.get(path).status_code for path in ("/nothing", "/else", CHAT)] == [404, 404, 405]
    assert http.get("/v1/models/demo", headers=red.headers).status_code == 200
    assert http.get("/v1/models/nope", headers=red.headers).status_code == 404
    assert http.post(CHAT, content=b"{", headers=red.headers).status_code == 400
    assert http.post(EMBED, content=b" " * 70_000, headers=blue.headers).status_code == 413


def test_a_load_of_known_size_gives_exactly_its_counts(live: LiveServer) -> None:
    red, blue, slow = (Client(live, name) for name in TENANTS)
    before = scrape(live)
    with ThreadPoolExecutor(4) as pool:
        for done in (
            pool.submit(red_load, red),
            pool.submit(blue_load, blue),
            pool.submit(slow_load, slow),
            pool.submit(stray_load, live.http, red, blue),
        ):
            done.result()
    assert wait_until(live.is_idle)
    after = scrape(live)

    assert grown(before, after, "nexa_requests_total", "tenant", "model", "endpoint", "status") == {
        ("red", "demo", CHAT, "200"): 6,
        ("red", "demo", CHAT, "400"): 1,
        ("red", OTHER, CHAT, "404"): 1,
        ("red", "", CHAT, "400"): 1,
        ("red", "", "/v1/models/{name}", "200"): 1,
        ("red", "", "/v1/models/{name}", "404"): 1,
        ("blue", "demo", CHAT, "200"): 2,
        ("blue", "demo", EMBED, "200"): 1,
        ("blue", "", EMBED, "413"): 1,
        ("slow", "demo", CHAT, "200"): 2,
        ("slow", "", CHAT, "429"): 3,
        ("", "", CHAT, "401"): 3,
        ("", "", CHAT, "405"): 1,
        ("", "", OTHER, "404"): 2,
    }
    assert grown(before, after, "nexa_refusals_total", "tenant", "reason") == {
        ("red", "context_length_exceeded"): 1,
        ("red", "model_not_found"): 2,
        ("red", "invalid_request"): 1,
        ("blue", "request_too_large"): 1,
        ("slow", "rate_limit_exceeded"): 3,
        ("", "invalid_api_key"): 3,
        ("", "method_not_allowed"): 1,
        ("", "not_found"): 2,
    }
    for client in (red, blue, slow):
        for kind in ("prompt", "cached", "completion"):
            name = f"nexa_{kind}_tokens_total"
            counted = total(after, name, tenant=client.tenant) - total(before, name, tenant=client.tenant)
            assert counted == getattr(client, f"{kind}_tokens"), (client.tenant, kind)
    embedded = grown(before, after, "nexa_rows_total", "kind")[("embedding",)]
    assert embedded == blue.embedded_tokens
    answers = grown(before, after, "nexa_answers_total", "tenant")
    assert answers == {("red",): 6, ("blue",): 2, ("slow",): 2}
    assert grown(before, after, "nexa_request_seconds_count", "tenant") == {
        ("red",): 8,
        ("blue",): 3,
        ("slow",): 2,
    }
    for name in ("nexa_time_to_first_token_seconds_count", "nexa_queue_seconds_count"):
        assert grown(before, after, name, "tenant") == answers


def test_a_client_that_leaves_is_counted_once_with_what_it_used(live: LiveServer) -> None:
    client = Client(live, "red")
    before = scrape(live)
    client.stream("Repeat after me", events=3)
    assert wait_until(live.is_idle)
    after = scrape(live)
    usage = live.app.dispatcher.admission.usage("red")
    assert grown(before, after, "nexa_requests_total", "tenant", "status") == {("red", "499"): 1}
    assert grown(before, after, "nexa_answers_total", "tenant") == {}
    assert grown(before, after, "nexa_refusals_total", "tenant") == {}
    assert total(after, "nexa_completion_tokens_total", tenant="red") == usage.completion_tokens
    assert total(after, "nexa_prompt_tokens_total", tenant="red") == usage.prompt_tokens


def test_the_engine_says_what_it_holds_and_does(live: LiveServer) -> None:
    client = Client(live, "red")
    before = scrape(live)
    body = {
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "max_tokens": 3000,
        "ignore_eos": True,
    }
    with live.http.stream("POST", CHAT, json=body, headers=client.headers) as response:
        lines = response.iter_lines()
        next(lines)
        assert wait_until(lambda: total(scrape(live), "nexa_sequences_running", tenant="red") == 1)
        during = scrape(live)
        assert total(during, "nexa_open_sequences") == 1
        assert total(during, "nexa_sequences_waiting") == 0
        assert total(during, "nexa_kv_cells_used") > total(during, "nexa_kv_cells_resident")
        assert total(during, "nexa_tenant_kv_cells", tenant="red") > 0
        assert total(during, "nexa_ready") == 1
    assert wait_until(live.is_idle)
    assert wait_until(lambda: total(scrape(live), "nexa_sequences_running") == 0)
    after = scrape(live)
    model = live.loaded
    assert total(after, "nexa_slots", model="demo") == model.slots == 4
    assert total(after, "nexa_kv_cells", model="demo") == model.num_cells
    assert total(after, "nexa_kv_cells_used") == total(after, "nexa_kv_cells_resident") > 0
    assert total(after, "nexa_models_loaded") == 1
    assert total(after, "nexa_model_load_seconds", model="demo") > 0
    steps = "nexa_step_seconds_count"
    num_steps = total(after, steps, lane="generation")
    assert num_steps == live.totals.num_steps > total(before, steps, lane="generation")
    assert num_steps == total(after, "nexa_step_rows_count", lane="generation")
    rows = total(after, "nexa_step_rows_sum", lane="generation")
    assert rows == total(after, "nexa_rows_total", kind="prefill") + total(
        after, "nexa_rows_total", kind="decode"
    )
    phases = {labels["phase"]: value for labels, value in after["nexa_step_phase_seconds_total"]}
    assert set(phases) == {"schedule", "decode", "sample", "publish"}
    assert min(phases.values()) > 0
    # A step's phases are all of it; handing over goes on when it has been measured.
    assert sum(phases.values()) >= total(after, "nexa_step_seconds_sum", lane="generation") * 0.999
    assert grown(before, after, "nexa_inter_token_seconds_count", "model")[("demo",)] > 1
    assert wait_until(lambda: total(scrape(live), "nexa_event_loop_lag_seconds_count") > 0)


def test_the_source_of_limits_and_the_sinks_are_watched(live: LiveServer) -> None:
    assert Client(live, "red").chat("Hi") == 200
    live.app.recorder.sinks = (*live.app.recorder.sinks, LateSink())
    samples = scrape(live)
    assert samples["nexa_limits_source_up"] == [({"source": "file"}, 1)]
    assert total(samples, "nexa_limits_source_age_seconds") >= 0
    assert total(samples, "nexa_limits_source_errors_total") == 0
    assert samples["nexa_usage_backlog_records"] .count(({"sink": "late"}, 3)) == 1
    assert samples["nexa_usage_dropped_records_total"] .count(({"sink": "late"}, 2)) == 1


def test_only_the_admin_reads_it_where_there_are_keys(live: LiveServer) -> None:
    assert live.http.get("/metrics").status_code == 401
    assert live.http.get("/metrics", headers={"authorization": f"Bearer {SERVICE_KEY}"}).status_code == 403
    response = live.http.get("/metrics", headers=ADMIN)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_an_open_server_shows_it_to_everyone_who_reaches_it(server: LiveServer) -> None:
    assert server.http.get("/metrics").status_code == 200
    assert server.http.get("/metrics", headers={"host": "evil.example"}).status_code == 403


def test_its_own_port_has_nothing_else(live: LiveServer) -> None:
    url = url_of(live)
    assert httpx.get(url).status_code == 200
    for path in ("/health", "/v1/models", "/v1/messages", "/admin/tenants"):
        assert httpx.get(url.replace("/metrics", path)).status_code == 404
    assert httpx.post(url).status_code == 405


def test_aliases_come_for_who_asks(live: LiveServer) -> None:
    assert not [name for name in scrape(live) if ":" in name]
    samples = scrape(live, aliases="1")
    assert total(samples, "vllm:generation_tokens_total") == total(samples, "nexa_completion_tokens_total")
    assert total(samples, "llamacpp:requests_processing") == 0
    response = live.http.get("/metrics", params={"aliases": "yes"}, headers=ADMIN)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "aliases")


def test_openmetrics_comes_for_who_takes_it(live: LiveServer) -> None:
    response = httpx.get(url_of(live), headers={"accept": "application/openmetrics-text;version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert response.text.endswith("# EOF\n")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_mend(live: LiveServer) -> None:
    Client(live, "blue").embed("Hello")
    text = httpx.get(url_of(live)).text
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_tenants_without_a_label_are_counted_together(
    tmp_path: Path, make_server: Callable[..., LiveServer]
) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(yaml.safe_dump({"tenants": {f"t{number}": {} for number in range(4)}}))
    live = make_server(NEXA_TENANTS_FILE=str(path), NEXA_METRICS_PORT=0)
    live.app.metrics.counts.tenants = TenantLabels(2)
    body = {"prompt": "Hi", "max_tokens": 2}
    for number in range(4):
        headers = {"x-tenant-id": f"t{number}"}
        assert live.http.post("/v1/completions", json=body, headers=headers).status_code == 200
    assert wait_until(live.is_idle)
    samples = scrape(live)
    assert {labels["tenant"]: value for labels, value in samples["nexa_requests_total"]} == {
        "t0": 1, "t1": 1, OTHER: 2,
    }  # fmt: skip
    assert total(samples, "nexa_completion_tokens_total") == 8
    assert {labels["tenant"] for labels, _ in samples["nexa_tenant_kv_cells"]} == {"t0", "t1", OTHER}


def test_a_port_that_is_taken_stops_the_start(live: LiveServer) -> None:
    assert live.metrics_listener is not None
    port = live.metrics_listener.getsockname()[1]
    settings = load_settings({"NEXA_METRICS_PORT": port})
    with pytest.raises(ConfigError, match=f":{port}: .*Choose another port with NEXA_METRICS_PORT"):
        bind_metrics(settings.server, settings.metrics)
    with pytest.raises(
        ConfigError, match="NEXA_METRICS_PORT is '70000', but must be an integer from 0 to 65535"
    ):
        load_settings({"NEXA_METRICS_PORT": "70000"})
