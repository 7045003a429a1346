"""The anthropic package against the running server: streamed and not, tools, thinking, errors."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import pytest
import yaml
from anthropic.types import MessageTokensCount
from anthropic.types.shared import ErrorResponse

from nexa_runtime.llama import Batch, DecodeStatus
from nexa_runtime.server.protocol import anthropic as wire_format
from nexa_runtime.server.protocol.anthropic_writer import SIGNATURE
from nexa_runtime.tenancy.keys import create_key, digest
from tests.server.test_anthropic_writer import EVENTS
from tests.support import LiveServer, free_settings, wait_until

QUESTION: dict[str, Any] = {"role": "user", "content": "What is the capital of France?"}
ANSWER = "The capital of France is Paris."
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the current weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "The name of the city"}},
        "required": ["city"],
    },
}
WEATHER_QUESTION: dict[str, Any] = {"role": "user", "content": "What's the weather like in Paris?"}
WEATHER_RESULT = '{"city": "Paris", "temperature_c": 18, "condition": "cloudy"}'
SAID_WEATHER = "It is 18 °C and cloudy in Paris."

SERVICE_KEY, ACME_KEY = "service-key", create_key("acme")
TENANTS: dict[str, dict[str, object]] = {
    "acme": {"NEXA_API_KEY_SHA256": digest(ACME_KEY).hex(), "NEXA_MAX_OUTPUT_TOKENS": 5},
    "rare": {"TENANT_HARD_LIMIT_RPM": 1},
    "picky": {"NEXA_ALLOWED_MODELS": "mistral"},
    "broken": {"NEXA_WEIGHT": "heavy"},
}


def client_of(server: LiveServer, key: str = "none", **headers: str) -> Any:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, default_headers=headers)


@pytest.fixture
def client(server: LiveServer) -> Iterator[Any]:
    with client_of(server) as made:
        yield made


def ask(client: Any, *messages: dict[str, Any], **fields: Any) -> Any:
    """A message of the client's, or its raw stream."""
    body = {"model": "demo", "max_tokens": 64, "messages": list(messages) or [QUESTION]}
    return client.messages.create(**{**body, **fields})


def post(server: LiveServer, body: dict[str, Any], path: str = "/v1/messages") -> httpx.Response:
    return server.http.post(path, json={"messages": [QUESTION], **body})


def events_of(server: LiveServer, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The raw events of a stream, each with the name that its data has, and of the client's own type."""
    events = []
    with server.http.stream(
        "POST", "/v1/messages", json={"messages": [QUESTION], "stream": True, **body}
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    for name, data in zip(lines[::2], lines[1::2], strict=True):
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENTS[event["type"]].model_validate(event)
        events.append(event)
    return events


def error_of(response: httpx.Response) -> tuple[int, str]:
    """Status and type of an error in Anthropic's shape, whose id is that of the response."""
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}
    assert set(body["error"]) == {"type", "message"}
    assert body["type"] == "error"
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    return response.status_code, body["error"]["type"]


def test_a_message(client: Any) -> None:
    message = ask(client)
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "demo")
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": ANSWER}]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens > 3
    assert message._request_id


def test_raw_events_of_a_stream(client: Any, server: LiveServer) -> None:
    names = [event.type for event in ask(client, stream=True)]
    assert names[:2] == ["message_start", "content_block_start"]
    assert set(names[2:-3]) == {"content_block_delta"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert [event["type"] for event in events_of(server, {})] == names


def test_the_clients_own_stream(client: Any) -> None:
    ask(client)  # from now on the prompt is cached
    with client.messages.stream(model="demo", max_tokens=64, messages=[QUESTION]) as stream:
        assert "".join(stream.text_stream) == ANSWER
        message = stream.get_final_message()
    whole = ask(client)
    assert message.content[0].text == ANSWER
    assert (message.stop_reason, message.usage) == (whole.stop_reason, whole.usage)


def test_async_and_its_stream(server: LiveServer) -> None:
    async def run() -> tuple[str, str]:
        client: Any
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none") as client:
            fields: Any = {"model": "demo", "max_tokens": 64, "messages": [QUESTION]}
            whole = await client.messages.create(**fields)
            async with client.messages.stream(**fields) as stream:
                text = "".join([part async for part in stream.text_stream])
            return whole.content[0].text, text

    assert asyncio.run(run()) == (ANSWER, ANSWER)


def test_the_beta_path_and_its_headers(client: Any) -> None:
    message = client.beta.messages.create(
        model="demo", max_tokens=64, messages=[QUESTION], betas=["interleaved-thinking-2025-05-14"]
    )
    assert message.content[0].text == ANSWER


def test_max_tokens_may_be_absent_and_is_kept_to(client: Any, server: LiveServer) -> None:
    body = post(server, {}).json()
    assert (body["content"][0]["text"], body["stop_reason"]) == (ANSWER, "end_turn")
    message = ask(client, max_tokens=3)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 3)


def test_a_null_for_every_optional_field(server: LiveServer) -> None:
    nulls = dict.fromkeys(set(wire_format.FIELDS) - {"messages"})
    answer = post(server, nulls)
    assert "x-nexa-ignored" not in answer.headers
    assert answer.json()["content"] == [{"type": "text", "text": ANSWER}]


def test_unknown_fields_are_named_wherever_they_are(server: LiveServer) -> None:
    block = {"type": "text", "text": QUESTION["content"], "mood": "good"}
    answer = post(server, {"messages": [{"role": "user", "content": [block]}], "min_p": 0.1, "metadata": {}})
    assert answer.headers["x-nexa-ignored"] == "min_p, messages[0].content[0].mood"


def test_a_system_is_rendered_as_a_chats(server: LiveServer) -> None:
    chat = server.http.post(
        "/v1/chat/completions",
        json={"messages": [{"role": "system", "content": "You are kind."}, QUESTION], "max_tokens": 1},
    ).json()
    for system in (
        "You are kind.",
        [{"type": "text", "text": "You are "}, {"type": "text", "text": "kind."}],
    ):
        usage = post(server, {"system": system, "max_tokens": 1}).json()["usage"]
        num_tokens = usage["input_tokens"] + usage["cache_read_input_tokens"]
        assert num_tokens == chat["usage"]["prompt_tokens"]


def test_the_answer_continues_the_assistants_last_message(client: Any, server: LiveServer) -> None:
    said = {"role": "assistant", "content": "The capital of France"}
    assert ask(client, QUESTION, said).content[0].text == " is Paris."
    events = events_of(server, {"messages": [QUESTION, said]})
    assert "".join(event.get("delta", {}).get("text", "") for event in events) == " is Paris."


@pytest.mark.parametrize("tools", [[], [WEATHER]], ids=["alone", "beside tools"])
@pytest.mark.parametrize(
    ("stops", "text", "found"),
    [
        (["never", "Paris"], "The capital of France is ", "Paris"),
        (["is Paris", "France is"], "The capital of ", "France is"),
        (["never"], ANSWER, None),
    ],
)
def test_the_stop_sequence_that_was_found_is_named(
    client: Any, stops: list[str], text: str, found: str | None, tools: Any
) -> None:
    reason = "end_turn" if found is None else "stop_sequence"
    fields: Any = {"stop_sequences": stops, "tools": tools}
    with client.messages.stream(model="demo", max_tokens=64, messages=[QUESTION], **fields) as stream:
        streamed = stream.get_final_message()
    for message in (ask(client, **fields), streamed):
        assert message.content[0].text == text
        assert (message.stop_reason, message.stop_sequence) == (reason, found)


def test_a_tool_loop(client: Any) -> None:
    first = ask(client, WEATHER_QUESTION, tools=[WEATHER])
    assert first.stop_reason == "tool_use"
    (call,) = first.content
    assert (call.type, call.name, call.input) == ("tool_use", "get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": WEATHER_RESULT}
    turns = [WEATHER_QUESTION, first.to_param(), {"role": "user", "content": [result]}]
    second = ask(client, *turns, tools=[WEATHER])
    assert (second.content[0].text, second.stop_reason) == (SAID_WEATHER, "end_turn")


def test_a_tool_loop_streamed(client: Any) -> None:
    fields: Any = {"model": "demo", "max_tokens": 64, "tools": [WEATHER]}
    with client.messages.stream(messages=[WEATHER_QUESTION], **fields) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        first = stream.get_final_message()
    assert len(parts) > 1
    assert "".join(parts) == '{"city": "Paris"}'
    (call,) = first.content
    assert (first.stop_reason, call.name, call.input) == ("tool_use", "get_weather", {"city": "Paris"})
    content = [{"type": "text", "text": WEATHER_RESULT}]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": content, "is_error": False}
    turns = [WEATHER_QUESTION, first.to_param(), {"role": "user", "content": [result]}]
    with client.messages.stream(messages=turns, **fields) as stream:
        assert "".join(stream.text_stream) == SAID_WEATHER


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_forced_calls_end_with_tool_use(client: Any, choice: Any) -> None:
    fields: Any = {"tools": [WEATHER], "tool_choice": {**choice, "disable_parallel_tool_use": True}}
    message = ask(client, {"role": "user", "content": "Say anything."}, **fields)
    (call,) = message.content
    assert (message.stop_reason, call.name, list(call.input)) == ("tool_use", "get_weather", ["city"])
    cut = ask(client, {"role": "user", "content": "Say anything."}, **{**fields, "max_tokens": 12})
    assert cut.stop_reason == "max_tokens"
    assert [block.type for block in cut.content] in ([], ["tool_use"])


def test_no_tool_is_called_with_the_choice_none(client: Any) -> None:
    message = ask(client, WEATHER_QUESTION, tools=[WEATHER], tool_choice={"type": "none"})
    assert [block.type for block in message.content] == ["text"]


def test_a_schema_that_is_refused_is_named_as_the_client_wrote_it(client: Any) -> None:
    tool = {"name": "f", "input_schema": {"$ref": "http://example.org/x"}}
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\]\.input_schema"):
        ask(client, tools=[tool])


def test_an_answer_with_a_form(client: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    message = ask(client, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert json.loads(message.content[0].text)["n"] in (1, 2)


def test_a_count_is_what_the_same_message_takes(client: Any, server: LiveServer) -> None:
    fields: Any = {
        "model": "demo",
        "system": "Be short.",
        "messages": [WEATHER_QUESTION, {"role": "assistant", "content": "It is"}],
        "tools": [WEATHER],
    }
    count = client.messages.count_tokens(**fields)
    usage = ask(client, *fields["messages"], system="Be short.", tools=[WEATHER], max_tokens=1).usage
    assert count == MessageTokensCount(input_tokens=usage.input_tokens + usage.cache_read_input_tokens)
    assert count.input_tokens > client.messages.count_tokens(**{**fields, "tools": []}).input_tokens
    answer = post(server, {"mood": "good"}, "/v1/messages/count_tokens")
    assert answer.headers["x-nexa-ignored"] == "mood"
    assert wait_until(server.is_idle)


def test_what_was_cached_is_no_input(client: Any) -> None:
    question = {"role": "user", "content": "Repeat after me: a question that nobody has asked before."}
    first, second = (ask(client, question, max_tokens=1).usage for _ in range(2))
    num_tokens = client.messages.count_tokens(model="demo", messages=[question]).input_tokens
    for usage in (first, second):
        assert usage.input_tokens + usage.cache_read_input_tokens == num_tokens
        assert usage.cache_creation_input_tokens == 0
    assert second.input_tokens == 1
    assert first.input_tokens > 10


def test_thinking_is_a_block_of_its_own(thinker: LiveServer) -> None:
    schema = {"type": "object", "properties": {"n": {"const": 1}}, "required": ["n"]}
    form = {"format": {"type": "json_schema", "schema": schema}}
    fields: Any = {"thinking": {"type": "enabled", "budget_tokens": 6}, "model": "", "output_config": form}
    fields["extra_body"] = {"temperature": 0}
    with client_of(thinker) as client:
        message = ask(client, **fields)
        with client.messages.stream(messages=[QUESTION], max_tokens=64, **fields) as stream:
            kinds = [event.type for event in stream if event.type in ("thinking", "signature", "text")]
            streamed = stream.get_final_message()
        turns = [QUESTION, message.to_param(), QUESTION]
        count = client.messages.count_tokens(model="", messages=turns).input_tokens
        turns[1] = {"role": "assistant", "content": message.content[1:]}
        without = client.messages.count_tokens(model="", messages=turns).input_tokens
    for one in (message, streamed):
        thought, *said = one.content
        assert (thought.type, thought.signature) == ("thinking", SIGNATURE)
        assert thought.thinking
        assert [block.text for block in said] == ['{"n": 1}']
    assert message.content[0].thinking == streamed.content[0].thinking
    order = list(dict.fromkeys(kinds))
    assert order == ["thinking", "signature", "text"]
    assert count > without


def test_thinking_that_is_not_to_be_seen_or_not_to_be_done(thinker: LiveServer) -> None:
    with client_of(thinker) as client:
        hidden: Any = {"type": "enabled", "budget_tokens": 6, "display": "omitted"}
        thought = ask(client, model="", thinking=hidden).content[0]
        assert (thought.type, thought.thinking, thought.signature) == ("thinking", "", SIGNATURE)
        message = ask(client, model="", thinking={"type": "disabled"})
        assert [block.type for block in message.content] == ["text"]
        assert message.content[0].text == ANSWER


@pytest.fixture(scope="module")
def multi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Several tenants, a service key, and a small cap of bodies."""
    path = tmp_path_factory.mktemp("tenants") / "tenants.yaml"
    path.write_text(yaml.safe_dump({"tenants": TENANTS}))
    fields = {"NEXA_TENANTS_FILE": str(path), "NEXA_API_KEY": SERVICE_KEY, "NEXA_MAX_BODY_BYTES": 20_000}
    with LiveServer(free_settings(NEXA_CTX_SIZE=2048, **fields)) as live:
        yield live


def test_a_tenants_cap_clamps_and_says_so(multi: LiveServer) -> None:
    with client_of(multi, ACME_KEY) as client:
        answer = client.messages.with_raw_response.create(model="demo", max_tokens=64, messages=[QUESTION])
        assert answer.headers["x-nexa-clamped"] == "max_tokens=5"
        assert answer.parse().stop_reason == "max_tokens"
        with client.messages.stream(model="demo", max_tokens=64, messages=[QUESTION]) as stream:
            assert stream.response.headers["x-nexa-clamped"] == "max_tokens=5"
            assert stream.get_final_message().usage.output_tokens == 5


def test_keys_come_in_either_header(multi: LiveServer) -> None:
    with anthropic.Anthropic(base_url=multi.url, auth_token=ACME_KEY, max_retries=0) as client:
        assert ask(client).content
    with client_of(multi, SERVICE_KEY, **{"X-Tenant-Id": "acme"}) as client:
        assert ask(client).content


LONG: dict[str, Any] = {"messages": [{"role": "user", "content": "word " * 3000}]}
LARGE: dict[str, Any] = {"messages": LONG["messages"] * 2}
ERRORS: list[tuple[str, str, dict[str, Any], type[anthropic.APIStatusError], str]] = [
    ("no key", "", {}, anthropic.AuthenticationError, "authentication_error"),
    ("no key", "acme", {}, anthropic.AuthenticationError, "authentication_error"),
    (SERVICE_KEY, "nobody", {}, anthropic.PermissionDeniedError, "permission_error"),
    (SERVICE_KEY, "picky", {}, anthropic.PermissionDeniedError, "permission_error"),
    (SERVICE_KEY, "", {}, anthropic.BadRequestError, "invalid_request_error"),
    (SERVICE_KEY, "broken", {}, anthropic.ServiceUnavailableError, "overloaded_error"),
    (ACME_KEY, "", {"model": "none"}, anthropic.NotFoundError, "not_found_error"),
    (ACME_KEY, "", {"tool_choice": {"type": "any"}}, anthropic.BadRequestError, "invalid_request_error"),
    (ACME_KEY, "", LARGE, anthropic.ContentTooLargeError, "request_too_large"),
]


@pytest.mark.parametrize("call", ["create", "stream", "count_tokens"])
@pytest.mark.parametrize(
    ("key", "tenant", "fields", "cls", "kind"), ERRORS, ids=[kind for *_, kind in ERRORS]
)
def test_errors_become_the_clients_own(
    multi: LiveServer, key: str, tenant: str, fields: dict[str, Any], cls: Any, kind: str, call: str
) -> None:
    body = {"model": "demo", "messages": [QUESTION], **fields}
    if call != "count_tokens":
        body |= {"max_tokens": 9, "stream": call == "stream"}
    headers = {"X-Tenant-Id": tenant} if tenant else {}
    with client_of(multi, key, **headers) as client, pytest.raises(cls) as caught:
        getattr(client.messages, call.replace("stream", "create"))(**body)
    error = caught.value
    assert error.type == kind
    assert error.request_id == error.body["request_id"]
    assert error_of(error.response) == (error.status_code, kind)
    if kind != "request_too_large":  # which the client's types do not have
        ErrorResponse.model_validate(error.body)


def test_what_is_too_long_to_answer_can_be_counted(multi: LiveServer) -> None:
    with client_of(multi, ACME_KEY) as client:
        with pytest.raises(anthropic.BadRequestError, match="tokens"):
            ask(client, **LONG)
        assert client.messages.count_tokens(model="demo", **LONG).input_tokens > 2048


def test_a_tenants_limit(multi: LiveServer) -> None:
    with client_of(multi, SERVICE_KEY, **{"X-Tenant-Id": "rare"}) as client:
        assert client.messages.count_tokens(model="demo", messages=[QUESTION]).input_tokens
        with pytest.raises(anthropic.RateLimitError) as caught:
            client.messages.count_tokens(model="demo", messages=[QUESTION])
    assert caught.value.type == "rate_limit_error"
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 60


def test_errors_outside_of_any_handler_have_the_same_shape(server: LiveServer) -> None:
    http = server.http
    assert error_of(http.get("/v1/messages")) == (405, "invalid_request_error")
    assert error_of(http.post("/v1/messages/batches")) == (404, "not_found_error")
    assert error_of(http.post("/v1/messages/")) == (404, "not_found_error")
    assert error_of(http.post("/v1/messages", content="{")) == (400, "invalid_request_error")
    assert error_of(http.post("/v1/messages/count_tokens", content="[]")) == (400, "invalid_request_error")
    assert "type" not in http.post("/v1/messagesque").json()


def test_a_bug_of_ours_is_an_error_in_the_same_shape(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("made up")

    monkeypatch.setattr(wire_format.MessagesRequest, "to_options", fail)
    response = post(server, {})
    assert error_of(response) == (500, "api_error")
    assert "made up" not in response.text


@pytest.fixture
def break_engine(server: LiveServer) -> Iterator[Callable[[int], None]]:
    """A function after which so many steps of the engine succeed, and no other until the test has ended."""
    context = server.loaded.context
    assert context is not None
    decode = context.decode
    left = 0

    def count(batch: Batch) -> DecodeStatus:
        nonlocal left
        left -= 1
        return decode(batch) if left >= 0 else DecodeStatus.COMPUTE_FAILED

    def break_it(num_good: int) -> None:
        nonlocal left
        left = num_good
        context.decode = count  # type: ignore[method-assign]

    yield break_it
    context.decode = decode  # type: ignore[method-assign]


def test_a_stream_that_fails_before_its_first_token_is_a_real_status(
    client: Any, break_engine: Callable[[int], None]
) -> None:
    break_engine(0)
    for is_streamed in (False, True):
        with pytest.raises(anthropic.InternalServerError) as caught:
            ask(client, stream=is_streamed)
        assert (caught.value.status_code, caught.value.type) == (500, "api_error")


def test_a_stream_that_fails_later_ends_with_an_error(
    client: Any, server: LiveServer, break_engine: Callable[[int], None]
) -> None:
    assert wait_until(server.is_idle)
    break_engine(4)
    stream = ask(client, stream=True)
    events = iter(stream)
    assert next(events).type == "message_start"
    with pytest.raises(anthropic.APIStatusError) as caught:
        list(events)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "api_error")
    assert body["request_id"] == stream.response.headers["request-id"]
    assert wait_until(server.is_idle)
