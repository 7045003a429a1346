"""The Responses API with the openai package against the running server: whole, streamed, and refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
import yaml
from openai.types.responses import Response
from pydantic import BaseModel

from nexa_runtime.llama import DecodeStatus
from nexa_runtime.tenancy.keys import create_key, digest
from tests.server.bodies import read_event, unknown_to_the_client
from tests.server.test_api import error_of
from tests.support import EventStream, LiveServer, wait_until

FRANCE, ANSWER = "What is the capital of France?", "The capital of France is Paris."
QUESTION: Any = {"role": "user", "content": "What's the weather like in Paris?"}
WEATHER = '{"city": "Paris", "temperature_c": 18, "condition": "cloudy"}'
GET_WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "The name of the city"}},
        "required": ["city"],
    },
}
COLD: dict[str, Any] = {"model": "demo", "temperature": 0}


@pytest.fixture
def client(server: LiveServer) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def post(server: LiveServer, **fields: object) -> Any:
    return server.http.post("/v1/responses", json={"input": FRANCE, "temperature": 0, **fields})


def events_of(server: LiveServer, **fields: object) -> list[Any]:
    """The events of a stream; each frame is named after what is in it."""
    body = {"input": FRANCE, "temperature": 0, "stream": True, **fields}
    with server.http.stream("POST", "/v1/responses", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        frames = response.read().decode().split("\n\n")
    assert frames.pop() == ""
    found = []
    for frame in frames:
        name, data = frame.split("\n")
        event: Any = read_event(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {event.type}"
        found.append(event)
    assert [event.sequence_number for event in found] == list(range(len(found)))
    return found


def test_a_whole_response(server: LiveServer, client: Any) -> None:
    found = client.responses.create(**COLD, input=FRANCE, metadata={"a": "b"})
    assert found.output_text == ANSWER
    assert (found.object, found.status, found.model) == ("response", "completed", "demo")
    (message,) = found.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert (found.id[:5], message.id[:4]) == ("resp_", "msg_")
    assert found.metadata == {"a": "b"}
    assert found.usage.input_tokens > 0
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    body = post(server).json()
    read = Response.model_validate(body)
    assert set(unknown_to_the_client(read)) == {"store"}
    assert body["store"] is False
    chat = server.chat(FRANCE, temperature=0).json()["usage"]
    assert (read.usage and read.usage.output_tokens) == chat["completion_tokens"]
    assert (read.usage and read.usage.input_tokens) == chat["prompt_tokens"]


def test_what_was_asked_before_is_cached(server: LiveServer) -> None:
    text = "Say something nobody has said here: one two three four five six seven."
    first, second = (post(server, input=text, max_output_tokens=2).json()["usage"] for _ in range(2))
    assert first["input_tokens"] == second["input_tokens"]
    cached = [one["input_tokens_details"]["cached_tokens"] for one in (first, second)]
    assert cached[0] < cached[1] < second["input_tokens"]


def test_the_events_of_a_stream(server: LiveServer) -> None:
    events = events_of(server)
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(event.delta for event in deltas) == ANSWER
    assert [event.type.removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added",
        *["output_text.delta"] * len(deltas),
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    last = events[-1].response
    assert last.output_text == ANSWER
    assert last.usage.output_tokens > 0
    whole = post(server).json()
    streamed = last.model_dump(mode="json", exclude_unset=True)
    assert set(streamed) == set(whole)
    different = {name for name in whole if streamed[name] != whole[name]}
    assert different <= {"id", "created_at", "completed_at", "output", "usage"}


def test_the_clients_own_stream(client: Any) -> None:
    with client.responses.stream(**COLD, input=FRANCE) as stream:
        events = list(stream)
        final = stream.get_final_response()
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == final.output_text == ANSWER


def test_the_tool_loop(client: Any) -> None:
    items: list[Any] = [QUESTION]
    first = client.responses.create(**COLD, input=items, tools=[GET_WEATHER])
    (call,) = first.output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert json.loads(call.arguments) == {"city": "Paris"}
    assert (call.id[:3], call.call_id[:5]) == ("fc_", "call_")
    items += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": WEATHER}]
    second = client.responses.create(**COLD, input=items, tools=[GET_WEATHER])
    assert second.output_text == "It is 18 °C and cloudy in Paris."
    assert [item.type for item in second.output] == ["message"]


def test_the_tool_loop_streamed(server: LiveServer, client: Any) -> None:
    events = events_of(server, input=[QUESTION], tools=[GET_WEATHER])
    deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(deltas) > 1
    assert "".join(event.delta for event in deltas) == '{"city": "Paris"}'
    assert [event.type.removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added",
        *["function_call_arguments.delta"] * len(deltas),
        "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    with client.responses.stream(**COLD, input=[QUESTION], tools=[GET_WEATHER]) as stream:
        (call,) = stream.get_final_response().output
    output = {"type": "function_call_output", "call_id": call.call_id,
              "output": [{"type": "input_text", "text": WEATHER}]}  # fmt: skip
    sent = {name: getattr(call, name) for name in ("type", "id", "call_id", "name", "arguments", "status")}
    with client.responses.stream(**COLD, input=[QUESTION, sent, output], tools=[GET_WEATHER]) as stream:
        assert stream.get_final_response().output_text == "It is 18 °C and cloudy in Paris."


def test_a_named_tool_is_called(client: Any) -> None:
    choice = {"type": "function", "name": "get_weather"}
    found = client.responses.create(
        model="demo", input="Hello", tools=[GET_WEATHER], tool_choice=choice, max_output_tokens=200
    )
    assert [item.name for item in found.output] == ["get_weather"]
    assert found.tool_choice.name == "get_weather"


def test_several_turns(client: Any) -> None:
    items: list[Any] = [{"role": "user", "content": FRANCE}]
    first = client.responses.create(**COLD, input=items)
    items += [*first.output, {"role": "user", "content": "What is the capital of Spain?"}]
    assert "Madrid" in client.responses.create(**COLD, input=items).output_text


def test_instructions_are_a_system_message(server: LiveServer) -> None:
    chat = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": FRANCE}]}
    usage = server.http.post("/v1/chat/completions", json={**chat, "temperature": 0}).json()["usage"]
    found = post(server, instructions="Be brief.").json()
    assert found["instructions"] == "Be brief."
    assert found["usage"]["input_tokens"] == usage["prompt_tokens"]


class Order(BaseModel):
    item: Literal["cake", "wine"]
    is_paid: bool


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_becomes_a_pydantic_model(client: Any, is_streamed: bool) -> None:
    fields: dict[str, Any] = {
        "model": "demo",
        "input": "Go on.",
        "text_format": Order,
        "max_output_tokens": 99,
    }
    if is_streamed:
        with client.responses.stream(**fields) as stream:
            found = stream.get_final_response()
    else:
        found = client.responses.parse(**fields)
    assert isinstance(found.output_parsed, Order)
    assert found.text.format.name == "Order"


def test_json_of_a_schema_and_any_object(server: LiveServer) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    form = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    found = post(server, text={"format": form}, temperature=1.5, seed=1).json()
    assert json.loads(found["output"][0]["content"][0]["text"]) in ({"a": 1}, {"a": 2})
    assert found["text"]["format"] == {**form, "description": None}
    cut = post(server, text={"format": {"type": "json_object"}}, max_output_tokens=30).json()
    assert cut["output"][0]["content"][0]["text"].startswith("{")


def test_an_answer_that_is_cut(server: LiveServer) -> None:
    found = Response.model_validate(post(server, max_output_tokens=3).json())
    assert found.status == "incomplete"
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"
    assert found.max_output_tokens == 3
    assert found.usage is not None
    assert found.usage.output_tokens == 3
    events = events_of(server, max_output_tokens=3)
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output[0].status == "incomplete"
    assert events[-1].response.output_text == found.output_text


def test_reasoning_is_an_item_of_its_own_and_goes_back_as_input(server: LiveServer, client: Any) -> None:
    forced = {"regex": "<think>\nIt is Paris.\n</think>\n\nParis"}
    found = client.responses.create(**COLD, input=FRANCE, extra_body=forced)
    thought, message = found.output
    assert ([part.text for part in thought.content], thought.summary) == (["It is Paris."], [])
    assert message.content[0].text == "Paris"
    events = events_of(server, **forced, reasoning={"effort": "low", "summary": "auto"})
    deltas = [event.delta for event in events if event.type == "response.reasoning_summary_text.delta"]
    assert "".join(deltas) == "It is Paris."
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message"]
    items = [{"role": "user", "content": FRANCE}, *found.output, {"role": "user", "content": "Hello"}]
    assert client.responses.create(**COLD, input=items).status == "completed"


def test_log_probabilities(client: Any) -> None:
    found = client.responses.create(
        **COLD, input=FRANCE, top_logprobs=2, include=["message.output_text.logprobs"]
    )
    (part,) = found.output[0].content
    assert {len(one.top_logprobs) for one in part.logprobs} == {2}
    assert b"".join(bytes(one.bytes) for one in part.logprobs).decode() == ANSWER
    assert found.top_logprobs == 2


def test_sampling_that_openai_does_not_have(server: LiveServer) -> None:
    hot = {"temperature": 1.5, "top_k": 0, "min_p": 0, "seed": 7, "max_output_tokens": 8}
    first, second = (post(server, **hot).json()["output"][0]["content"][0]["text"] for _ in range(2))
    assert first == second
    stopped = post(server, stop=["France"]).json()
    assert stopped["output"][0]["content"][0]["text"] == "The capital of "
    assert stopped["status"] == "completed"
    assert post(server, timings=True).json()["timings"]["predicted_n"] > 0


def test_what_clients_send_without_being_asked_is_taken_and_named(server: LiveServer) -> None:
    response = post(server, store=True, background=False, colour="red", tools=[], service_tier="auto")
    assert response.status_code == 200
    assert response.headers["x-nexa-ignored"] == "colour, store"
    assert response.json()["store"] is False


def test_a_refusal_has_the_ordinary_shape(server: LiveServer, client: Any) -> None:
    response = post(server, previous_response_id="resp_1", stream=True)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["code"], error["param"]) == ("unsupported_parameter", "previous_response_id")
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="none", input="Hi")
    assert missing.value.code == "model_not_found"
    long = post(server, input=[{"role": "user", "content": "one two three " * 9000}])
    assert (error_of(long)["code"], error_of(long)["param"]) == ("context_length_exceeded", "input")
    bad = {**GET_WEATHER, "parameters": {"type": "object", "$ref": "http://example.org/x"}}
    assert error_of(post(server, tools=[bad]))["param"] == "tools[0].parameters"


def test_nothing_is_kept(client: Any) -> None:
    made = client.responses.create(**COLD, input=FRANCE, store=True)
    for ask in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError, match="keeps none") as missing:
            ask(made.id)
        assert missing.value.code == "not_found"


def test_a_tenants_cap_clamps(make_server: Callable[..., LiveServer], tmp_path: Path) -> None:
    key = create_key("acme")
    limits = {"NEXA_API_KEY_SHA256": digest(key).hex(), "NEXA_MAX_OUTPUT_TOKENS": "5"}
    (tmp_path / "tenants.yaml").write_text(yaml.safe_dump({"tenants": {"acme": limits}}))
    server = make_server(NEXA_TENANTS_FILE=str(tmp_path / "tenants.yaml"))
    body = {"input": FRANCE, "max_output_tokens": 1024, "ignore_eos": True}
    headers = {"authorization": f"Bearer {key}"}
    response = server.http.post("/v1/responses", json=body, headers=headers)
    assert response.headers["x-nexa-clamped"] == "max_output_tokens=5"
    assert response.json()["max_output_tokens"] == response.json()["usage"]["output_tokens"] == 5
    assert response.json()["status"] == "incomplete"
    assert server.http.post("/v1/responses", json=body).status_code == 400
    assert server.http.get("/v1/responses/resp_1").status_code == 400


def test_a_stream_that_fails_says_so(server: LiveServer) -> None:
    context = server.loaded.context
    assert context is not None
    decode = context.decode
    body = {"input": "Hello", "stream": True, "ignore_eos": True, "max_output_tokens": 1000}
    with server.http.stream("POST", "/v1/responses", json=body) as response:
        events = EventStream(response).events()
        found = [next(events)]
        context.decode = lambda batch: DecodeStatus.COMPUTE_FAILED  # type: ignore[method-assign]
        try:
            found += events
        finally:
            context.decode = decode  # type: ignore[method-assign]
    read: list[Any] = [read_event(one) for one in found]
    assert [event.sequence_number for event in read] == list(range(len(read)))
    assert read[-1].type == "response.failed"
    assert read[-1].response.status == "failed"
    assert read[-1].response.error.type == "decode_failed"
    assert read[-1].response.output[-1].status == "incomplete"
    assert wait_until(server.is_idle)
