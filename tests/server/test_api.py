"""The API over real HTTP: answers, defaults, headers, and what is refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support import LiveServer

FRANCE = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, which has exactly OpenAI's four fields."""
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["code"], str)
    assert "\n" not in error["message"]
    return error


def test_chat(server: LiveServer) -> None:
    body = server.chat(FRANCE, temperature=0).json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "demo"
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert choice["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


def test_streamed_chat(server: LiveServer) -> None:
    with server.stream(FRANCE, temperature=0, stream_options={"include_usage": True}) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        text, reason, events = stream.read()
    assert (text, reason) == (ANSWER, "stop")
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] > 0
    assert all("usage" not in event for event in events[:-2])


def test_completion_of_a_text_a_list_and_token_ids(server: LiveServer) -> None:
    prompt = f"<|im_start|>user\n{FRANCE}<|im_end|>\n<|im_start|>assistant\n"
    tokens = server.loaded.model.vocab.tokenize(prompt, parse_special=True).tolist()
    for given, num_choices in ((prompt, 1), ([prompt, prompt], 2), (tokens, 1), ([tokens, tokens], 2)):
        body = server.http.post("/v1/completions", json={"prompt": given, "temperature": 0}).json()
        assert body["object"] == "text_completion"
        assert [choice["text"] for choice in body["choices"]] == [ANSWER] * num_choices
        assert [choice["index"] for choice in body["choices"]] == list(range(num_choices))
        assert body["usage"]["prompt_tokens"] == len(tokens) * num_choices


def test_streamed_completion_of_several_prompts(server: LiveServer) -> None:
    body = {"prompt": ["One", "Two", "Three"], "max_tokens": 4, "ignore_eos": True, "stream": True}
    texts = ["", "", ""]
    reasons = [None, None, None]
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    for line in lines:
        (choice,) = json.loads(line)["choices"]
        texts[choice["index"]] += choice["text"]
        reasons[choice["index"]] = choice["finish_reason"]
    assert all(texts)
    assert reasons == ["length"] * 3


def test_models(server: LiveServer) -> None:
    body = server.http.get("/v1/models").json()
    assert [model["id"] for model in body["data"]] == ["demo"]
    assert server.http.get("/v1/models/demo").json() == body["data"][0]
    missing = server.http.get("/v1/models/no/such")
    assert missing.status_code == 404
    assert error_of(missing)["code"] == "model_not_found"


def test_health_and_readiness(server: LiveServer) -> None:
    assert server.http.get("/health").json() == {"status": "ok"}
    ready = server.http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["status"] == "ready"
    assert ready.json()["slots"] == 8


@pytest.mark.parametrize("name", [None, "", "demo"])
def test_a_model_that_is_not_named_is_the_default(server: LiveServer, name: str | None) -> None:
    assert server.chat("Hello", model=name, max_tokens=1).json()["model"] == "demo"


def test_an_unknown_model_is_404(server: LiveServer) -> None:
    response = server.chat("Hello", model="gpt-9")
    assert response.status_code == 404
    assert error_of(response)["param"] == "model"


def test_served_names(make_server: Any) -> None:
    server = make_server(NEXA_SERVED_NAMES="gpt-4o,llama-3-8b-instruct")
    assert server.chat("Hello", model="gpt-4o", max_tokens=1).json()["model"] == "gpt-4o"
    ids = [model["id"] for model in server.http.get("/v1/models").json()["data"]]
    assert ids == ["demo", "gpt-4o", "llama-3-8b-instruct"]


def test_every_field_may_be_null(server: LiveServer) -> None:
    from nexa_runtime.server.protocol.parameters import CHAT, COMPLETION

    nulls = dict.fromkeys(CHAT)
    body = nulls | {"messages": [{"role": "user", "content": FRANCE, "name": None}], "temperature": 0}
    assert (
        server.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        == ANSWER
    )
    nulls = dict.fromkeys(COMPLETION)
    response = server.http.post("/v1/completions", json=nulls | {"prompt": "Hi", "max_tokens": 1})
    assert response.status_code == 200


def test_text_parts_and_all_roles(server: LiveServer) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is the capital"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "get_time", "arguments": '{"city":"Lima"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "14:05"},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
    ]
    response = server.http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 5})
    assert response.status_code == 200
    assert response.json()["usage"]["prompt_tokens"] > 20


def test_max_tokens_and_its_newer_name(server: LiveServer) -> None:
    for fields in (
        {"max_tokens": 2},
        {"max_completion_tokens": 2},
        {"max_tokens": 9, "max_completion_tokens": 2},
    ):
        body = server.chat("Hello", ignore_eos=True, **fields).json()
        assert body["usage"]["completion_tokens"] == 2
        assert body["choices"][0]["finish_reason"] == "length"
    assert server.chat(FRANCE, max_tokens=-1).json()["choices"][0]["finish_reason"] == "stop"


def test_the_default_cap(make_server: Any) -> None:
    server = make_server(NEXA_DEFAULT_MAX_TOKENS=3)
    assert server.chat("Hello", ignore_eos=True).json()["usage"]["completion_tokens"] == 3


def test_a_larger_cap_than_the_context_leaves_is_lowered_and_told(server: LiveServer) -> None:
    response = server.chat(FRANCE, max_tokens=1_000_000)
    assert response.status_code == 200
    room = server.loaded.max_sequence_tokens - response.json()["usage"]["prompt_tokens"]
    assert response.headers["x-nexa-clamped"] == f"max_tokens={room}"
    assert "x-nexa-clamped" not in server.chat(FRANCE, max_tokens=10).headers


def test_a_prompt_without_room_for_an_answer_is_refused_with_the_numbers(server: LiveServer) -> None:
    context = server.loaded.max_sequence_tokens
    response = server.chat("word " * context)
    assert response.status_code == 400
    error = error_of(response)
    assert error["code"] == "context_length_exceeded"
    assert f"a prompt may take {context - 1}." in error["message"]
    fits = server.http.post("/v1/completions", json={"prompt": [5] * (context - 1)})
    assert fits.json()["usage"]["completion_tokens"] == 1
    full = server.http.post("/v1/completions", json={"prompt": [5] * context})
    assert f"it has {context} tokens" in error_of(full)["message"]


def test_a_seed_repeats(server: LiveServer) -> None:
    def ask() -> str:
        fields = {"temperature": 1.5, "seed": 42, "max_tokens": 20}
        content = server.chat("Tell me something", ignore_eos=True, **fields).json()["choices"][0]["message"]
        return str(content["content"])

    assert ask() == ask()


def test_logit_bias_can_forbid_and_force(server: LiveServer) -> None:
    vocab = server.loaded.model.vocab
    (token,) = vocab.tokenize("Z", parse_special=False).tolist()
    body = server.chat("Hello", logit_bias={str(token): 100}, max_tokens=3, ignore_eos=True).json()
    assert body["choices"][0]["message"]["content"] == "ZZZ"


def test_unknown_fields_are_named_and_harmless_ones_are_not(server: LiveServer) -> None:
    response = server.chat(
        "Hello", max_tokens=1, store=True, metadata={"a": "b"}, mood="good", **{"x\u00e9\n": 1}
    )
    assert response.status_code == 200
    assert response.headers["x-nexa-ignored"] == "mood, x??"


def test_unknown_fields_of_blanks_are_named_too(server: LiveServer) -> None:
    response = server.chat("Hello", max_tokens=1, **{"": 1, "a ": 1, "  ": 1})
    assert (response.status_code, response.headers["x-nexa-ignored"]) == (200, '"", a, ""')


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("verbosity", "high"),
        ("web_search_options", {}),
    ],
)
def test_what_is_not_supported_yet_is_refused_by_name(server: LiveServer, field: str, value: object) -> None:
    response = server.chat("Hello", **{field: value})
    assert response.status_code == 400
    error = error_of(response)
    assert (error["code"], error["param"]) == ("unsupported_parameter", field)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"tools": []},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"logprobs": False},
    ],
)
def test_what_asks_for_nothing_is_accepted(server: LiveServer, fields: dict[str, object]) -> None:
    assert server.chat("Hello", max_tokens=1, **fields).status_code == 200


HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": HI, "temperature": "hot"}, "temperature"),
        ({"messages": HI, "temperature": "0.5"}, "temperature"),
        ({"messages": HI, "temperature": -1}, "temperature"),
        ({"messages": HI, "temperature": 2.01}, "temperature"),
        ({"messages": HI, "temperature": True}, "temperature"),
        ({"messages": HI, "top_p": 1.5}, "top_p"),
        ({"messages": HI, "top_k": 1.5}, "top_k"),
        ({"messages": HI, "min_p": -0.1}, "min_p"),
        ({"messages": HI, "seed": 2**64}, "seed"),
        ({"messages": HI, "max_tokens": 0}, "max_tokens"),
        ({"messages": HI, "max_tokens": -2}, "max_tokens"),
        ({"messages": HI, "max_tokens": "10"}, "max_tokens"),
        ({"messages": HI, "max_completion_tokens": 0}, "max_completion_tokens"),
        ({"messages": HI, "stop": 5}, "stop"),
        ({"messages": HI, "stop": [1]}, "stop[0]"),
        ({"messages": HI, "stop": ["x"] * 17}, "stop"),
        ({"messages": HI, "stop": "x" * 257}, "stop"),
        ({"messages": HI, "presence_penalty": 3}, "presence_penalty"),
        ({"messages": HI, "frequency_penalty": -3}, "frequency_penalty"),
        ({"messages": HI, "repeat_penalty": 0}, "repeat_penalty"),
        ({"messages": HI, "logit_bias": {"a": 1}}, "logit_bias"),
        ({"messages": HI, "logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"messages": HI, "logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"messages": HI, "logit_bias": [1]}, "logit_bias"),
        ({"messages": HI, "stream": "yes"}, "stream"),
        ({"messages": HI, "stream_options": 1}, "stream_options"),
        ({"messages": HI, "model": 5}, "model"),
        ({"messages": HI, "model": ["demo"]}, "model"),
    ],
)
def test_an_invalid_chat_names_the_field(server: LiveServer, body: dict[str, object], param: str) -> None:
    response = server.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert error["message"].startswith(param) or param == "logit_bias" or "type" in param


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        (5, "prompt"),
        ([], "prompt"),
        ([[]], "prompt[0]"),
        (["a", 1], "prompt[0]"),
        ([1, "a"], "prompt[0]"),
        ([-1], "prompt[0]"),
        ([10**9], "prompt"),
        ("", "prompt"),
        (["x"] * 65, "prompt"),
    ],
)
def test_an_invalid_prompt_names_the_field(server: LiveServer, prompt: object, param: str) -> None:
    response = server.http.post("/v1/completions", json={"prompt": prompt})
    assert response.status_code == 400
    assert str(error_of(response)["param"]).startswith("prompt")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"hi"',
        b"null",
        b'{"messages": NaN}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": 1e999, "messages": [{"role": "user", "content": "hi"}]}',
        b'{"a": "\xff\xfe"}',
        b'{"a": "\\ud800"}',
        b'{"messages": [{"role": "user", "content": "hi"}],}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"messages": ' + b"[" * 2000 + b"]" * 2000 + b"}",
    ],
    ids=lambda body: body[:24].decode("ascii", "replace"),
)
def test_a_body_that_is_no_sane_json_is_400(server: LiveServer, body: bytes) -> None:
    response = server.http.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    error_of(response)


def test_a_body_over_the_cap_is_413_announced_or_not(make_server: Any) -> None:
    server = make_server(NEXA_MAX_BODY_BYTES=2000)
    long = json.dumps({"messages": [{"role": "user", "content": "x" * 3000}]}).encode()
    announced = server.http.post("/v1/chat/completions", content=long)
    chunked = server.http.post("/v1/chat/completions", content=iter([long[:1500], long[1500:]]))
    for response in (announced, chunked):
        assert response.status_code == 413
        assert error_of(response)["code"] == "request_too_large"
    assert server.chat("Hello", max_tokens=1).status_code == 200


def test_a_body_that_never_comes_is_408(make_server: Any) -> None:
    import socket

    server = make_server(NEXA_BODY_TIMEOUT_S=0.2)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_paths_and_methods_that_are_not_there(server: LiveServer) -> None:
    missing = server.http.get("/v1/nothing")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "not_found")
    wrong = server.http.get("/v1/chat/completions")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")


def test_every_answer_has_a_request_id(server: LiveServer) -> None:
    for path in ("/health", "/v1/nothing", "/v1/models"):
        assert server.http.get(path).headers["x-request-id"].startswith("req_")
    sane = server.http.get("/health", headers={"x-request-id": "my-id.1"})
    assert sane.headers["x-request-id"] == "my-id.1"
    for bad in ("has space", "x" * 200, "a;b"):
        answered = server.http.get("/health", headers={"x-request-id": bad})
        assert answered.headers["x-request-id"].startswith("req_")


def test_a_full_queue_is_503_and_says_when_to_come_back(make_server: Any) -> None:
    server = make_server(NEXA_SLOTS=1, NEXA_MAX_QUEUE=0)
    with server.stream("Hello", ignore_eos=True, max_tokens=3000) as stream:
        next(stream.events())
        refused = server.chat("Hello")
        assert refused.status_code == 503
        assert error_of(refused)["code"] == "overloaded"
        assert int(refused.headers["retry-after"]) >= 1


def test_several_kinds_of_sampling_share_one_engine(server: LiveServer) -> None:
    fields: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1, "top_k": 0},
        {"repeat_penalty": 1.5, "frequency_penalty": 1.0, "presence_penalty": -1.0},
        {"min_p": 0.5, "top_p": 0.1},
        {"top_p": 0},
        {"top_k": -1, "min_p": 0, "top_p": 1},
    ]
    for one in fields:
        assert server.chat("Hello", max_tokens=8, **one).status_code == 200


def test_unknown_fields_inside_are_named_too(server: LiveServer) -> None:
    message = {
        "role": "user",
        "content": [{"type": "text", "text": "Hi", "cache": 1}],
        "mood": "good",
        "audio": None,
    }
    body = {"messages": [message], "max_tokens": 1, "stream_options": {"x": 1}, "stream": False}
    response = server.http.post("/v1/chat/completions", json=body)
    ignored = "stream_options.x, messages[0].mood, messages[0].content[0].cache"
    assert response.headers["x-nexa-ignored"] == ignored


def test_the_least_of_several_lowered_caps_is_told(server: LiveServer) -> None:
    room = server.loaded.max_sequence_tokens
    body = {"prompt": [[5] * (room - 3), [5]], "max_tokens": 4, "ignore_eos": True}
    response = server.http.post("/v1/completions", json=body)
    assert response.headers["x-nexa-clamped"] == "max_tokens=3"


def test_a_body_of_very_many_objects_is_refused_unparsed(server: LiveServer) -> None:
    many = b'{"messages": [' + b"{}," * 60_000 + b"{}]}"
    response = server.http.post("/v1/chat/completions", content=many)
    assert response.status_code == 400
    assert "objects, lists and fields" in error_of(response)["message"]
    text = json.dumps({"messages": [{"role": "user", "content": "{[" * 60_000}]}).encode()
    refused = server.http.post("/v1/chat/completions", content=text)
    assert error_of(refused)["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "field",
    [
        b'"stop": [' + b"1," * 400_000 + b"1]",
        b'"logit_bias": {' + b",".join(b'"x%d": 1' % index for index in range(100_000)) + b"}",
        b'"messages": [{"role": "user", "content": [' + b"1," * 400_000 + b"1]}]",
        b'"messages": [' + b"1," * 400_000 + b"1]",
    ],
    ids=["stop", "bias", "parts", "messages"],
)
def test_very_many_wrong_items_are_one_error(server: LiveServer, field: bytes) -> None:
    prefix = b'{"messages": [{"role": "user", "content": "hi"}], ' if b"messages" not in field else b"{"
    response = server.http.post("/v1/chat/completions", content=prefix + field + b"}")
    assert response.status_code == 400
    assert len(response.content) < 1000


def test_more_prompts_than_the_server_can_ever_take_is_400(make_server: Any) -> None:
    server = make_server(NEXA_SLOTS=1, NEXA_MAX_QUEUE=1)
    response = server.http.post("/v1/completions", json={"prompt": ["a", "b", "c"], "max_tokens": 1})
    assert response.status_code == 400
    assert "At most 2 answers" in error_of(response)["message"]


def test_odd_paths(server: LiveServer) -> None:
    assert server.http.get("/health/").status_code == 404
    assert server.http.get("/v1/models/").status_code == 404


def test_every_field_of_openai_is_in_the_tables() -> None:
    from openai.types import completion_create_params, embedding_create_params
    from openai.types.chat import completion_create_params as chat_create_params

    from nexa_runtime.server.protocol.parameters import CHAT, COMPLETION, EMBEDDING

    def fields(params: Any) -> set[str]:
        return {name for cls in params.__mro__ for name in getattr(cls, "__annotations__", {})}

    assert fields(chat_create_params.CompletionCreateParamsBase) | {"stream"} <= set(CHAT)
    assert fields(completion_create_params.CompletionCreateParamsBase) | {"stream"} <= set(COMPLETION)
    assert fields(embedding_create_params.EmbeddingCreateParams) <= set(EMBEDDING)


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
def test_each_field_does_what_its_table_says(server: LiveServer, endpoint: str) -> None:
    from nexa_runtime.server.protocol import parameters

    tables: dict[str, tuple[Any, Any]] = {
        "/v1/chat/completions": (parameters.CHAT, {"messages": HI, "max_tokens": 1}),
        "/v1/completions": (parameters.COMPLETION, {"prompt": "hi", "max_tokens": 1}),
        "/v1/embeddings": (parameters.EMBEDDING, {"input": "hi"}),
    }
    table, body = tables[endpoint]
    for name, support in table.items():
        odd = {"wrong": ["type"]}
        response = server.http.post(endpoint, json={**body, name: odd})
        error = response.json().get("error", {})
        if support is parameters.Support.HARMLESS:
            assert response.status_code == 200, name
        elif support is parameters.Support.REFUSED:
            assert (error["code"], error["param"]) == ("unsupported_parameter", name)
        elif name not in ("stream_options", "json_schema"):
            assert response.status_code == 400, name
            assert error["param"].partition(".")[0] == name
        assert "x-nexa-ignored" not in response.headers or name == "stream_options"


def test_a_sequence_that_outgrows_the_pool_ends_with_length(make_server: Any) -> None:
    server = make_server(NEXA_CTX_SIZE=512)
    body = server.chat("Hello", ignore_eos=True).json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["total_tokens"] == 512


def test_split_kv_gives_the_same_answers_and_reuses_what_has_ended(make_server: Any) -> None:
    server = make_server(NEXA_KV="split", NEXA_SLOTS=2, NEXA_CTX_SIZE=2048)
    assert server.loaded.max_sequence_tokens == 1024
    for _ in range(3):
        body = server.chat(FRANCE, temperature=0).json()
        assert body["choices"][0]["message"]["content"] == ANSWER
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == body["usage"]["prompt_tokens"] - 1
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: server.chat(FRANCE, temperature=0).json(), range(12)))
    assert {answer["choices"][0]["message"]["content"] for answer in answers} == {ANSWER}


def test_eight_requests_with_one_system_prompt_compute_it_once(make_server: Any) -> None:
    server = make_server()
    system = "You are a careful and friendly helper. " * 90
    vocab = server.loaded.model.vocab
    num_system = len(vocab.tokenize(system, parse_special=False))
    assert num_system >= 1000

    def ask(index: int) -> dict[str, Any]:
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": f"What is {index} + 4?"},
        ]
        body = {"messages": messages, "max_tokens": 8}
        usage: dict[str, Any] = server.http.post("/v1/chat/completions", json=body).json()["usage"]
        return usage

    with ThreadPoolExecutor(8) as pool:
        usages = list(pool.map(ask, range(8)))
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert sum(count > num_system - 32 for count in cached) == 7
    tails = sum(usage["prompt_tokens"] - num_system for usage in usages)
    assert server.totals.num_prefill_rows <= 1.1 * (num_system + tails)
