"""Anthropic's answers on the wire: whole ones and streams, read by the types of its own client."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import (
    Message,
    RawContentBlockDeltaEvent,
    RawContentBlockStartEvent,
    RawContentBlockStopEvent,
    RawMessageDeltaEvent,
    RawMessageStartEvent,
    RawMessageStopEvent,
)
from anthropic.types.shared import ErrorResponse

from nexa_runtime.chat.dialects.base import CallDelta
from nexa_runtime.chat.messages import ToolCall
from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.errors import DecodeError, InvalidRequestError, OverloadedError
from nexa_runtime.server.protocol.anthropic_writer import SIGNATURE, AnthropicWriter
from nexa_runtime.serving.choices import Choice, ChoiceDelta
from nexa_runtime.serving.generation import Usage

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
USAGE = Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=6)
USAGE_BODY = {
    "input_tokens": 4,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 6,
    "output_tokens": 4,
}
EVENTS: dict[str, Any] = {
    "message_start": RawMessageStartEvent,
    "content_block_start": RawContentBlockStartEvent,
    "content_block_delta": RawContentBlockDeltaEvent,
    "content_block_stop": RawContentBlockStopEvent,
    "message_delta": RawMessageDeltaEvent,
    "message_stop": RawMessageStopEvent,
}


def writer(*, shows_thinking: bool = True) -> AnthropicWriter:
    return AnthropicWriter("msg_1", "demo", "req_1", shows_thinking=shows_thinking)


def whole(choice: Choice, *, shows_thinking: bool = True) -> Mapping[str, Any]:
    """A whole answer, which is what the client says an answer is."""
    body = writer(shows_thinking=shows_thinking).response([choice], USAGE, None)
    Message.model_validate(body)
    return body


def streamed(deltas: Sequence[ChoiceDelta], *, shows_thinking: bool = True) -> list[Mapping[str, Any]]:
    """The events of a stream, each of which is what the client says it is."""
    one = writer(shows_thinking=shows_thinking)
    events = [*one.first_chunks(1, Usage(prompt_tokens=10))]
    for delta in deltas:
        events += one.chunks(delta)
    events += one.last_chunks(USAGE, None)
    for event in events:
        EVENTS[str(event["type"])].model_validate(event)
    return events


def accumulated(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the client makes of a stream, nulls left out."""
    message: Any = None
    buffers: dict[int, bytes] = {}
    for event in events:
        parsed = EVENTS[event["type"]].model_validate(event)
        message = accumulate_event(event=parsed, current_snapshot=message, json_bufs=buffers)
    return message.to_dict(exclude_none=True)  # type: ignore[no-any-return]


def test_a_whole_message() -> None:
    assert whole(Choice("Hi", finish_reason=STOP)) == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "demo",
        "content": [{"type": "text", "text": "Hi"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE_BODY,
    }
    assert whole(Choice(finish_reason=STOP))["content"] == []


def test_a_whole_message_with_everything() -> None:
    calls = [ToolCall("c1", "f", '{"a": [1, null]}'), ToolCall("c2", "g", "")]
    body = whole(Choice("So:", "hm", calls, STOP))
    assert body["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": SIGNATURE},
        {"type": "text", "text": "So:"},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": [1, None]}},
        {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
    ]
    hidden = whole(Choice("So:", "hm", finish_reason=STOP), shows_thinking=False)
    assert hidden["content"][0] == {"type": "thinking", "thinking": "", "signature": SIGNATURE}


@pytest.mark.parametrize(
    ("choice", "reason", "stop"),
    [
        (Choice("a", finish_reason=STOP), "end_turn", None),
        (Choice("a", finish_reason=LENGTH), "max_tokens", None),
        (Choice("a", finish_reason=STOP, stop="b"), "stop_sequence", "b"),
        (Choice(calls=[ToolCall("c", "f", "{}")], finish_reason=STOP), "tool_use", None),
        (Choice(calls=[ToolCall("c", "f", "{}")], finish_reason=LENGTH), "max_tokens", None),
        (Choice("a", finish_reason=FinishReason.ABORT), "max_tokens", None),
    ],
)
def test_why_it_ended(choice: Choice, reason: str, stop: str | None) -> None:
    body = whole(choice)
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, stop)
    deltas = [ChoiceDelta(0, choice.text)]
    deltas += [
        ChoiceDelta(0, call=CallDelta(index, one.arguments, one.id, one.name))
        for index, one in enumerate(choice.calls)
    ]
    deltas.append(ChoiceDelta(0, finish_reason=choice.finish_reason, stop=choice.stop))
    ended = streamed(deltas)[-2]
    assert ended == {
        "type": "message_delta",
        "delta": {"stop_reason": reason, "stop_sequence": stop},
        "usage": USAGE_BODY,
    }


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ('{"city": "Paris", "day": "mon', {"city": "Paris"}),
        ('{"city": "Par', {}),
        ('{"a": {"b": [1, 2', {"a": {"b": [1, 2]}}),
        ("", {}),
        ('{"n": 123456789012345678901234567890}', {"n": 1.2345678901234568e29}),
        ('{"n": NaN}', {"INVALID_JSON": '{"n": NaN}'}),
        ("not JSON", {"INVALID_JSON": "not JSON"}),
        ("[1]", {"INVALID_JSON": "[1]"}),
    ],
)
def test_a_call_that_was_cut_has_what_came_of_its_input(arguments: str, value: object) -> None:
    body = whole(Choice(calls=[ToolCall("c", "f", arguments)], finish_reason=LENGTH))
    assert body["content"] == [{"type": "tool_use", "id": "c", "name": "f", "input": value}]


EVERYTHING = [
    ChoiceDelta(0, reasoning="h"),
    ChoiceDelta(0, reasoning="m"),
    ChoiceDelta(0, "So"),
    ChoiceDelta(0),
    ChoiceDelta(0, ":"),
    ChoiceDelta(0, call=CallDelta(0, '{"a"', "c1", "f")),
    ChoiceDelta(0, call=CallDelta(0, ": 1}")),
    ChoiceDelta(0, call=CallDelta(1, "", "c2", "g")),
    ChoiceDelta(0, finish_reason=STOP),
]


def test_a_stream_in_anthropics_order() -> None:
    def start(index: int, **block: object) -> dict[str, object]:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def added(index: int, kind: str, **delta: object) -> dict[str, object]:
        return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **delta}}

    def stop(index: int) -> dict[str, object]:
        return {"type": "content_block_stop", "index": index}

    first, *middle, ended, last = streamed(EVERYTHING)
    usage = {**USAGE_BODY, "input_tokens": 10, "cache_read_input_tokens": 0, "output_tokens": 0}
    assert first == {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "demo",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        },
    }
    assert middle == [
        start(0, type="thinking", thinking="", signature=""),
        added(0, "thinking_delta", thinking="h"),
        added(0, "thinking_delta", thinking="m"),
        added(0, "signature_delta", signature=SIGNATURE),
        stop(0),
        start(1, type="text", text=""),
        added(1, "text_delta", text="So"),
        added(1, "text_delta", text=":"),
        stop(1),
        start(2, type="tool_use", id="c1", name="f", input={}),
        added(2, "input_json_delta", partial_json='{"a"'),
        added(2, "input_json_delta", partial_json=": 1}"),
        stop(2),
        start(3, type="tool_use", id="c2", name="g", input={}),
        stop(3),
    ]
    assert ended["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert last == {"type": "message_stop"}


@pytest.mark.parametrize("shows_thinking", [True, False])
@pytest.mark.parametrize(
    "deltas",
    [
        EVERYTHING,
        [ChoiceDelta(0, "Hi", finish_reason=STOP)],
        [ChoiceDelta(0, "Hi", "hm", CallDelta(0, "{}", "c1", "f"), STOP)],
        [ChoiceDelta(0, reasoning="hm"), ChoiceDelta(0, finish_reason=LENGTH)],
        [ChoiceDelta(0, finish_reason=STOP, stop="x")],
    ],
)
def test_the_client_makes_the_whole_message_of_a_stream(
    deltas: list[ChoiceDelta], shows_thinking: bool
) -> None:
    events = streamed(deltas, shows_thinking=shows_thinking)
    body = whole(Choice.of(deltas), shows_thinking=shows_thinking)
    assert accumulated(events) == Message.model_validate(body).to_dict(exclude_none=True)


def test_hidden_thinking_sends_its_signature_only() -> None:
    events = streamed([ChoiceDelta(0, reasoning="secret"), ChoiceDelta(0, "a")], shows_thinking=False)
    assert "secret" not in json.dumps(events)


def test_frames_are_named_by_their_type() -> None:
    one = writer()
    assert one.frame({"type": "message_stop"}) == b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    assert one.ending == b""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DecodeError("broken"), "api_error", "broken"),
        (OverloadedError(3, 1.0), "overloaded_error", "3"),
        (InvalidRequestError("Too long.", param="system"), "invalid_request_error", "system: Too long."),
        (
            InvalidRequestError("system: is wrong.", param="system"),
            "invalid_request_error",
            "system: is wrong.",
        ),
    ],
)
def test_a_stream_that_is_cut_ends_with_anthropics_error(error: Any, kind: str, message: str) -> None:
    body: Any = writer().error_chunk(error)
    assert set(body) == {"type", "error", "request_id"}
    assert (body["type"], body["error"]["type"], body["request_id"]) == ("error", kind, "req_1")
    assert message in body["error"]["message"]
    ErrorResponse.model_validate(body)
