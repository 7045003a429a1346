"""Adapters over HTTP: by request and by tenant, many sets at once, nothing of one in another's answers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from structlog.testing import capture_logs

from nexa_runtime.serving.library import DEMO_PATH
from nexa_runtime.store.importing import import_file
from nexa_runtime.store.store import ModelStore
from tests.support import LiveServer, free_settings, wait_until

DATA = Path(__file__).parents[1] / "data"
CATALOG = {
    "name": "adapted",
    "repo": "org/adapted",
    "kinds": ["chat", "completion", "embedding"],
    "engine": {
        "adapters": [{"name": name, "path": str(DATA / f"{name}.gguf")} for name in ("lyon", "osaka")]
    },
}
TENANTS: dict[str, dict[str, str]] = {
    "plain": {},
    "french": {"NEXA_LORA": "lyon"},
    "both": {"NEXA_LORA": "lyon:0.9, osaka"},
    "wrong": {"NEXA_LORA": "parrot"},
}
PLAIN: list[dict[str, Any]] = []
LYON, OSAKA = [{"name": "lyon"}], [{"name": "osaka"}]


def capital(country: str, lora: list[dict[str, Any]]) -> str:
    """The right answer with these adapters."""
    names = {one["name"] for one in lora}
    changed = {"France": ("Paris", "lyon", "Lyon"), "Japan": ("Tokyo", "osaka", "Osaka")}
    known, adapter, other = changed.get(country, ("Madrid", "", ""))
    return f"The capital of {country} is {other if adapter in names else known}."


def question(country: str) -> str:
    return f"What is the capital of {country}?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The bundled model with two adapters to choose from, beside the bare one, and tenants with defaults."""
    folder = tmp_path_factory.mktemp("adapted")
    import_file(DEMO_PATH, store=ModelStore(folder / "store", folder / "state"), name="adapted")
    (folder / "models.yaml").write_text(yaml.safe_dump({"models": [CATALOG]}))
    (folder / "tenants.yaml").write_text(yaml.safe_dump({"tenants": TENANTS}))
    settings = free_settings(
        NEXA_MODEL_ID="adapted",
        NEXA_MODEL_STORE=str(folder / "store"),
        NEXA_STATE_DIR=str(folder / "state"),
        NEXA_CATALOG_FILE=str(folder / "models.yaml"),
        NEXA_TENANTS_FILE=str(folder / "tenants.yaml"),
        DEFAULT_TENANT_ID="plain",
        NEXA_CTX_SIZE=16_384,
    )
    with LiveServer(settings) as live:
        yield live


def ask(server: LiveServer, content: str, tenant: str = "plain", **fields: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 40, **fields}
    return server.http.post("/v1/chat/completions", json=body, headers={"x-tenant-id": tenant})


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def error_of(response: httpx.Response) -> dict[str, str]:
    assert response.status_code == 400, response.text
    error: dict[str, str] = response.json()["error"]
    return error


def cached(response: httpx.Response) -> int:
    return int(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.parametrize("lora", [PLAIN, LYON, OSAKA, [*OSAKA, *LYON]], ids=["none", "lyon", "osaka", "both"])
@pytest.mark.parametrize("country", ["France", "Japan", "Spain"])
def test_each_set_has_its_answers(server: LiveServer, lora: list[dict[str, Any]], country: str) -> None:
    assert text_of(ask(server, question(country), lora=lora)) == capital(country, lora)


def test_eight_clients_with_four_sets_each_get_their_own_answers(server: LiveServer) -> None:
    sets = [PLAIN, LYON, OSAKA, [*LYON, *OSAKA]]
    before = server.totals.num_steps

    def client(number: int) -> list[tuple[str, str]]:
        got = []
        for turn in range(6):
            lora = sets[(number + turn // 3) % 4]
            country = ["France", "Japan", "Spain"][turn % 3]
            fields = {"temperature": 0, "max_tokens": 40, "lora": lora}
            with server.stream(question(country), **fields) as events:
                text, reason, _ = events.read()
            assert reason == "stop"
            got.append((text, capital(country, lora)))
        return got

    with ThreadPoolExecutor(8) as pool:
        answers = [pair for pairs in pool.map(client, range(8)) for pair in pairs]
    assert [text for text, _ in answers] == [right for _, right in answers]
    assert len(answers) == 48
    assert server.totals.num_steps > before
    assert wait_until(server.is_idle)
    assert wait_until(server.has_clean_books)


def test_what_one_set_has_computed_is_of_no_use_to_another(server: LiveServer) -> None:
    content = "Please tell me something about capitals. " * 8
    seen = []
    for lora in (
        PLAIN,
        LYON,
        OSAKA,
        [{"name": "lyon", "scale": 0.5}],
        [*LYON, *OSAKA],
        PLAIN,
        [{"name": "lyon", "scale": 0}],
        [{"name": "lyon", "scale": 1.0}],
        [*OSAKA, *LYON],
    ):
        seen.append(cached(ask(server, content, lora=lora, max_tokens=1)))
    # What every chat begins with may be there.
    assert [count > 100 for count in seen] == [False] * 5 + [True] * 4


def test_a_tenants_default_holds_where_the_request_says_nothing(server: LiveServer) -> None:
    france, japan = question("France"), question("Japan")
    answer = ask(server, france, "french")
    assert text_of(answer) == "The capital of France is Lyon."
    assert answer.headers["x-nexa-lora"] == "lyon:1"
    assert text_of(ask(server, japan, "both")) == "The capital of Japan is Osaka."
    assert text_of(ask(server, france, "both")) == "The capital of France is Lyon."
    for tenant in ("french", "both"):
        plain = ask(server, france, tenant, lora=[])
        assert text_of(plain) == "The capital of France is Paris."
        assert "x-nexa-lora" not in plain.headers
    other = ask(server, france, "french", lora=OSAKA)
    assert text_of(other) == "The capital of France is Paris."
    assert other.headers["x-nexa-lora"] == "osaka:1"
    assert text_of(ask(server, france, "french", lora=None)) == "The capital of France is Lyon."


def test_a_default_that_the_model_lacks_is_an_error_and_not_left_out(server: LiveServer) -> None:
    error = error_of(ask(server, "Hello", "wrong"))
    assert (error["code"], error["param"]) == ("invalid_request", "lora")
    assert error["message"] == (
        "lora: the model adapted has no adapter 'parrot' (it has lyon, osaka), which NEXA_LORA makes this"
        " tenant's default; [] asks for none."
    )
    assert text_of(ask(server, question("France"), "wrong", lora=[])) == "The capital of France is Paris."
    assert text_of(ask(server, question("France"), "wrong", lora=LYON)) == "The capital of France is Lyon."
    embedded = server.http.post("/v1/embeddings", json={"input": "Hello"}, headers={"x-tenant-id": "wrong"})
    assert embedded.status_code == 200


def test_a_completion_and_its_choices_have_adapters_too(server: LiveServer) -> None:
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    for lora, city in ((PLAIN, "Paris"), (LYON, "Lyon")):
        body = {"prompt": [prompt, prompt], "n": 2, "temperature": 0, "max_tokens": 40, "lora": lora}
        choices = server.http.post("/v1/completions", json=body).json()["choices"]
        assert [choice["text"] for choice in choices] == [f"The capital of France is {city}."] * 4


def test_the_other_apis_have_the_tenants_default_and_the_field(server: LiveServer) -> None:
    headers, france = {"x-tenant-id": "french"}, question("France")
    for lora, city, worn in ((None, "Lyon", "lyon:1"), (PLAIN, "Paris", None), (OSAKA, "Paris", "osaka:1")):
        body: dict[str, Any] = {"temperature": 0, "lora": lora}
        response = server.http.post(
            "/v1/responses", json={**body, "input": france, "max_output_tokens": 40}, headers=headers
        )
        message = server.http.post(
            "/v1/messages",
            json={**body, "messages": [{"role": "user", "content": france}], "max_tokens": 40},
            headers=headers,
        )
        for content in (response.json()["output"][0]["content"], message.json()["content"]):
            assert content[0]["text"] == f"The capital of France is {city}."
        for answer in (response, message):
            assert answer.headers.get("x-nexa-lora") == worn
            assert "x-nexa-ignored" not in answer.headers


def test_a_bad_choice_is_refused_in_the_words_of_each_api(server: LiveServer) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "lora": [{"name": "parrot"}]}
    refused = server.http.post("/v1/messages", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("lora[0].name: the model adapted has no adapter")


@pytest.mark.parametrize(
    ("lora", "param", "words"),
    [
        ([{"name": "parrot"}], "lora[0].name", "has no adapter 'parrot' (it has lyon, osaka)"),
        ([*LYON, {"name": "Lyon"}], "lora[1].name", "has no adapter 'Lyon'"),
        ([{"name": ""}], "lora[0].name", "has no adapter ''"),
        ([*LYON, {"name": "lyon", "scale": 0.5}], "lora", "must name each adapter once"),
        ([{"name": "lyon", "scale": 4.01}], "lora[0].scale", "4"),
        ([{"name": "lyon", "scale": -5}], "lora[0].scale", "-4"),
        ([{"name": "lyon", "scale": "1"}], "lora[0].scale", "number"),
        ([{"name": "lyon", "scale": True}], "lora[0].scale", "number"),
        ([{"scale": 1}], "lora[0].name", "is required"),
        ([{"name": 7}], "lora[0].name", "must be a text"),
        ([{"name": f"a{index}"} for index in range(5)], "lora", "at most 4"),
        (["lyon"], "lora[0]", "an object"),
        ("lyon", "lora", "a list"),
        ({"name": "lyon"}, "lora", "a list"),
    ],
)
def test_a_bad_choice_is_refused_by_name(server: LiveServer, lora: object, param: str, words: str) -> None:
    error = error_of(ask(server, "Hello", lora=lora))
    assert (error["code"], error["param"]) == ("invalid_request", param)
    assert words in error["message"]


def test_a_scale_that_is_no_number_is_refused(server: LiveServer) -> None:
    for scale in ("NaN", "Infinity", "1e999"):
        lora = f'[{{"name": "lyon", "scale": {scale}}}]'
        body = f'{{"messages": [{{"role": "user", "content": "x"}}], "lora": {lora}}}'
        response = server.http.post("/v1/chat/completions", content=body)
        assert response.status_code == 400


def test_a_model_without_adapters_says_so(server: LiveServer, make_server: Any) -> None:
    bare = make_server()
    error = error_of(bare.chat("Hello", lora=LYON))
    assert error["message"] == "lora[0].name: the model demo has no adapter 'lyon' (it has none)."
    assert bare.chat("Hello", lora=[]).status_code == 200
    assert bare.http.get("/v1/models/demo").json()["lora"] == []


def test_the_list_of_models_names_their_adapters(server: LiveServer) -> None:
    (one,) = server.http.get("/v1/models").json()["data"]
    assert one["lora"] == [{"name": "lyon", "scale": 1.0}, {"name": "osaka", "scale": 1.0}]


def test_the_log_says_which_were_on(server: LiveServer) -> None:
    with capture_logs() as lines:
        ask(server, "Hello", lora=[*OSAKA, {"name": "lyon", "scale": 0.25}])
        assert wait_until(server.is_idle)
    (line,) = [line for line in lines if line["event"] == "request_ended"]
    assert line["lora"] == "lyon:0.25,osaka:1"


def test_a_field_of_an_adapter_that_nobody_reads_is_named(server: LiveServer) -> None:
    answer = ask(server, "Hello", lora=[{"name": "lyon", "id": 0}])
    assert answer.headers["x-nexa-ignored"] == "lora[0].id"
