"""Responses on the wire: whole ones and streams, read by OpenAI's own types."""

from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from nexa_runtime.chat.dialects.base import CallDelta
from nexa_runtime.chat.messages import ToolCall
from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.errors import DecodeError
from nexa_runtime.llama import TokenLogprobs
from nexa_runtime.server.protocol.logprobs import TokenTexts
from nexa_runtime.server.protocol.responses_writer import ResponsesWriter
from nexa_runtime.serving.choices import Choice, ChoiceDelta, Timings
from nexa_runtime.serving.generation import Usage
from tests.server.bodies import read_event, responses_wire

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
USAGE = Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=6)
TIMINGS = Timings(queue_s=0.5, prompt_s=0.25, predicted_s=2.0)
TEXTS = TokenTexts([b"a", b"b", b""])
LOGPROBS = (TokenLogprobs(0, -0.5, ((0, -0.5), (1, -1.5))),)

THOUGHT = ChoiceDelta(0, reasoning="hm")
SAID = ChoiceDelta(0, "Hi")
CALLED = ChoiceDelta(0, call=CallDelta(0, id="call_1", name="f"))
WITH = ChoiceDelta(0, call=CallDelta(0, '{"a": 1}'))
ENDED = ChoiceDelta(0, finish_reason=STOP)
CUT = ChoiceDelta(0, finish_reason=LENGTH)

MESSAGE_EVENTS = [
    "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
    "output_item.done",
]  # fmt: skip
CALL_EVENTS = [
    "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
]  # fmt: skip
REASONING_EVENTS = [
    "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
    "content_part.done", "output_item.done",
]  # fmt: skip
SUMMARY_EVENTS = [
    "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
    "reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done",
]  # fmt: skip


def writer(**fields: Any) -> ResponsesWriter:
    wire = responses_wire(**fields)
    settings = wire.settings(wire.to_conversation(), None)
    return ResponsesWriter("resp_1", 7, "demo", TEXTS, settings, shows_summary=wire.shows_summary)


def stream(deltas: Iterable[ChoiceDelta], **fields: Any) -> list[BaseModel]:
    """The events of a whole stream, as OpenAI's client reads them."""
    one = writer(**fields)
    chunks = [*one.first_chunks(1, USAGE)]
    for delta in deltas:
        chunks += one.chunks(delta)
    chunks += one.last_chunks(USAGE, None)
    return [read_event(orjson.loads(orjson.dumps(chunk))) for chunk in chunks]


def names(events: Iterable[Any]) -> list[str]:
    """The types of the events of items."""
    found = [event.type.removeprefix("response.") for event in events]
    assert found[:2] == ["created", "in_progress"]
    return found[2:-1]


def whole(choice: Choice, **fields: Any) -> Response:
    body = writer(**fields).response([choice], USAGE, None)
    return Response.model_validate(orjson.loads(orjson.dumps(body)))


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([SAID, ENDED], MESSAGE_EVENTS),
        ([ChoiceDelta(0, "Hi", finish_reason=STOP)], MESSAGE_EVENTS),
        ([CALLED, WITH, ENDED], CALL_EVENTS),
        ([CALLED, WITH, CALLED, WITH, ENDED], CALL_EVENTS * 2),
        ([THOUGHT, SAID, CALLED, WITH, ENDED], REASONING_EVENTS + MESSAGE_EVENTS + CALL_EVENTS),
        ([THOUGHT, SAID, THOUGHT, SAID, ENDED], (REASONING_EVENTS + MESSAGE_EVENTS) * 2),
        ([ENDED], MESSAGE_EVENTS),
        ([THOUGHT, CUT], REASONING_EVENTS),
    ],
)
def test_events_come_in_openais_order(deltas: list[ChoiceDelta], expected: list[str]) -> None:
    events: list[Any] = stream(deltas)
    assert names(events) == expected
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == f"response.{events[-1].response.status}"


def test_what_was_thought_is_a_summary_where_one_is_asked_for_and_never_both() -> None:
    summary = {"reasoning": {"summary": "auto"}}
    events: list[Any] = stream([THOUGHT, SAID, ENDED], **summary)
    assert names(events) == SUMMARY_EVENTS + MESSAGE_EVENTS
    (thought, _) = events[-1].response.output
    assert [part.text for part in thought.summary] == ["hm"]
    assert thought.content is None
    plain: Any = whole(Choice("Hi", reasoning="hm", finish_reason=STOP)).output[0]
    assert (plain.summary, [part.text for part in plain.content]) == ([], ["hm"])


def test_the_last_event_has_what_the_others_said() -> None:
    events: list[Any] = stream([THOUGHT, SAID, SAID, CALLED, WITH, WITH, ENDED])
    done = [event.item for event in events if event.type == "response.output_item.done"]
    last = events[-1].response
    assert last.output == done
    assert [event.output_index for event in events if event.type == "response.output_item.done"] == [0, 1, 2]
    assert last.output_text == "HiHi"
    assert last.output[2].arguments == '{"a": 1}' * 2
    assert {item.status for item in last.output} == {"completed"}
    added = [event.item for event in events if event.type == "response.output_item.added"]
    assert [item.id for item in added] == [item.id for item in done]
    assert {item.status for item in added} == {"in_progress"}
    assert [event.response.output for event in events[:2]] == [[], []]
    assert events[0].response.usage is None


def test_a_whole_response() -> None:
    calls = [ToolCall("c1", "f", '{"a": 1}'), ToolCall("c2", "g", "{}")]
    found: Any = whole(Choice("Hi", "hm", calls, STOP))
    assert [item.type for item in found.output] == ["reasoning", "message", "function_call", "function_call"]
    assert [item.call_id for item in found.output[2:]] == ["c1", "c2"]
    assert [item.id.split("_")[0] for item in found.output] == ["rs", "msg", "fc", "fc"]
    assert (found.id, found.created_at, found.status, found.error) == ("resp_1", 7, "completed", None)
    assert found.completed_at >= 7
    assert found.usage.model_dump(exclude_none=True) == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 14,
    }


@pytest.mark.parametrize(
    ("choice", "kind"),
    [
        (Choice("Hi", finish_reason=LENGTH), "message"),
        (Choice(reasoning="hm", finish_reason=LENGTH), "reasoning"),
        (Choice("Hi", calls=[ToolCall("c", "f", '{"a')], finish_reason=LENGTH), "function_call"),
        (Choice(finish_reason=LENGTH), "message"),
    ],
)
def test_an_answer_that_is_cut_says_so_and_where(choice: Choice, kind: str) -> None:
    found: Any = whole(choice)
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert found.completed_at is None
    assert (found.output[-1].type, found.output[-1].status) == (kind, "incomplete")
    assert {item.status for item in found.output[:-1]} <= {"completed"}


def test_log_probabilities_are_those_of_the_text() -> None:
    late = ChoiceDelta(0, finish_reason=STOP, logprobs=LOGPROBS)
    events: list[Any] = stream([ChoiceDelta(0, logprobs=LOGPROBS), SAID, late])
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [(event.delta, len(event.logprobs)) for event in deltas] == [("Hi", 1), ("", 1)]
    (done,) = (event for event in events if event.type == "response.output_text.done")
    assert [one.token for one in done.logprobs] == ["a", "a"]
    part = whole(Choice("Hi", finish_reason=STOP, logprobs=[*LOGPROBS] * 2)).output[0]
    assert isinstance(part, BaseModel)
    (text,) = part.model_dump()["content"]
    assert [len(one["top_logprobs"]) for one in text["logprobs"]] == [2, 2]


def test_a_stream_that_fails_ends_with_all_that_came() -> None:
    one = writer()
    for delta in (THOUGHT, SAID):
        one.chunks(delta)
    event: Any = read_event(orjson.loads(orjson.dumps(one.error_chunk(DecodeError("it broke")))))
    assert event.type == "response.failed"
    failed = event.response
    assert (failed.status, failed.error.code, failed.error.type) == (
        "failed",
        "server_error",
        "decode_failed",
    )
    assert "it broke" in failed.error.message
    assert [(item.type, item.status) for item in failed.output] == [
        ("reasoning", "completed"),
        ("message", "incomplete"),
    ]


def test_timings_where_they_are_asked_for() -> None:
    body = writer().response([Choice("Hi", finish_reason=STOP)], USAGE, TIMINGS)
    assert isinstance(body["timings"], dict)
    assert body["timings"]["queue_ms"] == 500
    assert "timings" not in writer().response([Choice("Hi", finish_reason=STOP)], USAGE, None)


def test_what_the_request_said_is_repeated() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    found = whole(
        Choice("Hi", finish_reason=STOP),
        instructions="Be brief.",
        max_output_tokens=9,
        metadata={"a": "b"},
        parallel_tool_calls=False,
        prompt_cache_key="k",
        reasoning={"effort": "low"},
        safety_identifier="s",
        store=True,
        temperature=0.5,
        text={"format": schema},
        tool_choice="none",
        tools=[tool],
        top_logprobs=2,
        top_p=0.9,
        user="u",
    ).model_dump(exclude_none=True, by_alias=True)
    expected = {
        "background": False,
        "instructions": "Be brief.",
        "max_output_tokens": 9,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "reasoning": {"effort": "low"},
        "safety_identifier": "s",
        "service_tier": "default",
        "store": False,
        "temperature": 0.5,
        "text": {"format": schema, "verbosity": "medium"},
        "tool_choice": "none",
        "tools": [{**tool, "strict": False}],
        "top_logprobs": 2,
        "top_p": 0.9,
        "truncation": "disabled",
        "user": "u",
    }
    assert {name: found[name] for name in expected} == expected
    silent = writer().response([Choice("Hi", finish_reason=STOP)], USAGE, None)
    assert (silent["tool_choice"], silent["tools"], silent["temperature"]) == ("auto", [], None)
