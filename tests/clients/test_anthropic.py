"""The anthropic package against the running server as its users write it; ``tests/server`` has details."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from nexa_runtime.tenancy.keys import create_key, digest
from tests.clients.cases import (
    ANSWER,
    PERSON_QUESTION,
    QUESTION,
    TOO_LONG,
    WEATHER,
    WEATHER_ANSWER,
    WEATHER_QUESTION,
    Person,
)
from tests.support import LiveServer

ASK: Any = {
    "model": "demo",
    "max_tokens": 128,
    "messages": [{"role": "user", "content": QUESTION}],
    "extra_body": {"temperature": 0},  # newer versions of the package have no name for it
}
GET_WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the current weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "The name of the city"}},
        "required": ["city"],
    },
}


@pytest.fixture
def client(server: LiveServer) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def test_a_message_and_its_usage(client: Any) -> None:
    message = client.messages.create(**ASK, system="You are helpful.")
    (block,) = message.content
    assert (block.type, block.text) == ("text", ANSWER)
    assert (message.role, message.stop_reason, message.model) == ("assistant", "end_turn", "demo")
    assert message.usage.output_tokens > 3
    assert message._request_id


def test_a_stream_and_its_helper(client: Any) -> None:
    events = list(client.messages.create(**ASK, stream=True))
    assert [events[0].type, events[-1].type] == ["message_start", "message_stop"]
    with client.messages.stream(**ASK) as stream:
        assert "".join(stream.text_stream) == ANSWER
        message = stream.get_final_message()
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens > 3


def test_async(server: LiveServer) -> None:
    async def run() -> list[str]:
        client: Any
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none") as client:
            whole = await client.messages.create(**ASK)
            async with client.messages.stream(**ASK) as stream:
                text = "".join([one async for one in stream.text_stream])
            return [whole.content[0].text, text]

    assert asyncio.run(run()) == [ANSWER] * 2


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_tool_loop(client: Any, is_streamed: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": WEATHER_QUESTION}]
    fields = {**ASK, "messages": messages, "tools": [GET_WEATHER]}

    def send() -> Any:
        if not is_streamed:
            return client.messages.create(**fields)
        with client.messages.stream(**fields) as stream:
            return stream.get_final_message()

    first = send()
    assert first.stop_reason == "tool_use"
    (call,) = [block for block in first.content if block.type == "tool_use"]
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": WEATHER}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = send()
    assert [block.text for block in second.content] == [WEATHER_ANSWER]


def test_the_tool_runner(client: Any) -> None:
    asked: list[str] = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Get the current weather of a city

        Args:
            city: The name of the city
        """
        asked.append(city)
        return WEATHER

    messages = [{"role": "user", "content": WEATHER_QUESTION}]
    runner = client.beta.messages.tool_runner(**{**ASK, "messages": messages}, tools=[get_weather])
    assert runner.until_done().content[0].text == WEATHER_ANSWER
    assert asked == ["Paris"]


def test_an_answer_parsed_into_a_class(client: Any) -> None:
    messages = [{"role": "user", "content": PERSON_QUESTION}]
    message = client.messages.parse(**{**ASK, "messages": messages}, output_format=Person)
    assert message.parsed_output == Person(name="Ana", age=30)


def test_tokens_are_counted_as_they_are_computed(client: Any) -> None:
    counted = client.messages.count_tokens(model="demo", messages=ASK["messages"])
    usage = client.messages.create(**ASK).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_stop_sequences_and_the_cap(client: Any) -> None:
    stopped = client.messages.create(**ASK, stop_sequences=["France"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "France")
    assert stopped.content[0].text == "The capital of "
    assert client.messages.create(**ASK | {"max_tokens": 2}).stop_reason == "max_tokens"


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"


@pytest.mark.parametrize(
    ("fields", "error", "kind"),
    [
        ({"model": "none"}, anthropic.NotFoundError, "not_found_error"),
        ({"extra_body": {"temperature": -1}}, anthropic.BadRequestError, "invalid_request_error"),
        (
            {"messages": [{"role": "user", "content": TOO_LONG}]},
            anthropic.BadRequestError,
            "invalid_request_error",
        ),
    ],
)
def test_errors_become_the_clients_own(
    client: Any, fields: Any, error: type[anthropic.APIStatusError], kind: str
) -> None:
    for send in (client.messages.create, lambda **body: client.messages.create(**body, stream=True)):
        with pytest.raises(error) as refused:
            send(**ASK | fields)
        body: Any = refused.value.body
        assert body["error"]["type"] == kind
        assert refused.value.request_id


def test_the_key_of_a_tenant_and_its_limit(make_server: Any, tmp_path: Path) -> None:
    path, key = tmp_path / "tenants.yaml", create_key("acme")
    limits = {"NEXA_API_KEY_SHA256": digest(key).hex(), "TENANT_HARD_LIMIT_RPM": 1}
    path.write_text(json.dumps({"tenants": {"acme": limits}}))
    server: LiveServer = make_server(NEXA_TENANTS_FILE=str(path), NEXA_API_KEY="service")
    with anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError):
            client.messages.create(**ASK)
        known = client.with_options(api_key=key)
        assert known.messages.create(**ASK).content
        with pytest.raises(anthropic.RateLimitError):
            known.messages.create(**ASK)
