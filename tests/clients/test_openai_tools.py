"""Tools with the openai package: the loop of call and answer, streamed and not, and calls parsed into
classes.
"""

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.clients.cases import WEATHER, WEATHER_ANSWER, WEATHER_QUESTION, Booking
from tests.server.test_tools import GET_WEATHER

ASK: Any = {"model": "demo", "temperature": 0}


class GetWeather(BaseModel):
    """Get the current weather of a city"""

    city: str


def test_the_tool_loop(client: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": WEATHER_QUESTION}]
    first = client.chat.completions.create(**ASK, messages=messages, tools=[GET_WEATHER])
    choice = first.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": WEATHER}]
    second = client.chat.completions.create(**ASK, messages=messages, tools=[GET_WEATHER])
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content == WEATHER_ANSWER
    assert not second.choices[0].message.tool_calls


def test_the_tool_loop_streamed(client: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": WEATHER_QUESTION}]
    with client.chat.completions.stream(**ASK, messages=messages, tools=[GET_WEATHER]) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert len(deltas) > 1
    assert "".join(one.arguments_delta for one in deltas) == '{"city": "Paris"}'
    message = final.choices[0].message
    assert final.choices[0].finish_reason == "tool_calls"
    (call,) = message.tool_calls
    said = call.model_dump(exclude={"function": {"parsed_arguments"}})
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [said]},
        {"role": "tool", "tool_call_id": call.id, "content": WEATHER},
    ]
    with client.chat.completions.stream(**ASK, messages=messages, tools=[GET_WEATHER]) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
    assert text == WEATHER_ANSWER


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_arguments_of_a_call_parsed_into_a_class(client: Any, is_streamed: bool) -> None:
    fields = {
        **ASK,
        "messages": [{"role": "user", "content": WEATHER_QUESTION}],
        "tools": [openai.pydantic_function_tool(GetWeather, name="get_weather")],
    }
    if is_streamed:
        with client.chat.completions.stream(**fields) as stream:
            completion = stream.get_final_completion()
    else:
        completion = client.chat.completions.parse(**fields)
    (call,) = completion.choices[0].message.tool_calls
    assert call.function.parsed_arguments == GetWeather(city="Paris")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "Booking"}}])
def test_a_forced_call_parses_into_its_class(client: Any, choice: Any) -> None:
    completion = client.chat.completions.parse(
        **ASK | {"temperature": 1.5},
        messages=[{"role": "user", "content": "Say anything."}],
        tools=[openai.pydantic_function_tool(Booking)],
        tool_choice=choice,
        parallel_tool_calls=False,
    )
    (call,) = completion.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Booking)
