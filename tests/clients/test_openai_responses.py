"""The Responses API as users of the openai package write it; ``tests/server`` has the details."""

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.clients.cases import (
    ANSWER,
    PERSON_QUESTION,
    QUESTION,
    TOO_LONG,
    WEATHER,
    WEATHER_ANSWER,
    WEATHER_QUESTION,
    Booking,
    Person,
)
from tests.clients.test_openai_tools import GetWeather
from tests.support import LiveServer

ASK: Any = {"model": "demo", "temperature": 0}


def test_create_and_its_stream(client: Any) -> None:
    response = client.responses.create(**ASK, input=QUESTION, instructions="You are helpful.")
    assert response.output_text == ANSWER
    assert response.status == "completed"
    assert response.usage.total_tokens > 0
    events = client.responses.create(**ASK, input=QUESTION, stream=True)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == ANSWER


def test_the_streaming_helper(client: Any) -> None:
    with client.responses.stream(**ASK, input=QUESTION) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert final.output_text == ANSWER


def test_async(server: LiveServer) -> None:
    async def run() -> list[str]:
        client: Any
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            whole = await client.responses.create(**ASK, input=QUESTION)
            async with client.responses.stream(**ASK, input=QUESTION) as stream:
                final = await stream.get_final_response()
            return [whole.output_text, final.output_text]

    assert asyncio.run(run()) == [ANSWER] * 2


def test_an_answer_parsed_into_a_class(client: Any) -> None:
    parsed = client.responses.parse(**ASK, input=PERSON_QUESTION, text_format=Person)
    assert parsed.output_parsed == Person(name="Ana", age=30)
    with client.responses.stream(**ASK, input="Go on.", text_format=Booking) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Booking)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_tool_loop(client: Any, is_streamed: bool) -> None:
    items: list[Any] = [{"role": "user", "content": WEATHER_QUESTION}]
    tools = [openai.pydantic_function_tool(GetWeather, name="get_weather")["function"]]
    fields: Any = {**ASK, "input": items, "tools": [{"type": "function", **tools[0]}]}

    def send() -> Any:
        if not is_streamed:
            return client.responses.create(**fields)
        with client.responses.stream(**fields) as stream:
            return stream.get_final_response()

    first = send()
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    items += [
        *first.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": WEATHER},
    ]
    assert send().output_text == WEATHER_ANSWER


def test_errors_become_the_clients_own(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.retrieve("resp_1")
    assert missing.value.code == "not_found"
    for fields, code in [
        ({"input": TOO_LONG}, "context_length_exceeded"),
        ({"input": QUESTION, "previous_response_id": "resp_1"}, None),
        ({"input": QUESTION, "tools": [{"type": "web_search"}]}, "unsupported_parameter"),
    ]:
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(**ASK | fields)
        assert code is None or refused.value.code == code
