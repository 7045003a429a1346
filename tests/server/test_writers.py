"""Answers on the wire: whole ones and streams, read by OpenAI's own types."""

import json
from collections.abc import Callable, Mapping
from typing import Any, cast

import orjson
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from nexa_runtime.chat.dialects.base import CallDelta
from nexa_runtime.chat.messages import ToolCall
from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.llama import TokenLogprobs
from nexa_runtime.server.protocol.chat_writer import ChatWriter
from nexa_runtime.server.protocol.completion_writer import CompletionWriter
from nexa_runtime.server.protocol.logprobs import LOWEST, CompletionLogprobs, TokenTexts, chat_logprobs
from nexa_runtime.serving.choices import Choice, ChoiceDelta, Timings
from nexa_runtime.serving.generation import Usage

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
USAGE = Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=6)
TIMINGS = Timings(queue_s=0.5, prompt_s=0.25, predicted_s=2.0)
TEXTS = TokenTexts([b"a", "é".encode()[:1], "é".encode()[1:], b" \xff", b""])
LOGPROBS = (
    TokenLogprobs(0, -0.5, ((0, -0.5), (4, float("-inf")))),
    TokenLogprobs(1, -1.0, ((2, -0.25),)),
)


def chat_writer(*, is_named: bool = False, wants_usage: bool = False) -> ChatWriter:
    return ChatWriter("chatcmpl-1", 7, "demo", TEXTS, is_named=is_named, wants_usage=wants_usage)


def completion_writer(texts: TokenTexts = TEXTS, *, wants_usage: bool = False) -> CompletionWriter:
    return CompletionWriter("cmpl-1", 7, "demo", texts, wants_usage=wants_usage)


def whole(choice: Choice, *, is_named: bool = False) -> dict[str, Any]:
    """The only choice of a chat's answer, as OpenAI's client reads the body."""
    body = chat_writer(is_named=is_named).response([choice], USAGE, None)
    ChatCompletion.model_validate_json(orjson.dumps(body), strict=False)
    (written,) = cast(list[dict[str, Any]], body["choices"])
    return written


def deltas(chunks: list[Mapping[str, object]]) -> list[tuple[Any, Any]]:
    """What each chunk of a chat adds, and whether it ends it."""
    choices = [cast(list[dict[str, Any]], chunk["choices"])[0] for chunk in chunks]
    return [(choice["delta"], choice["finish_reason"]) for choice in choices]


def test_a_whole_chat() -> None:
    body = chat_writer().response(
        [Choice("Hi", finish_reason=STOP), Choice(finish_reason=LENGTH)], USAGE, None
    )
    assert body == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "demo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": "", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            },
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 4,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 6},
        },
    }
    ChatCompletion.model_validate(body)


def test_a_message_of_calls() -> None:
    calls = [ToolCall("c1", "f", '{"a": 1}'), ToolCall("c2", "g", "{}")]
    choice = whole(Choice(calls=calls, reasoning="hm", finish_reason=STOP))
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
            {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }
    assert whole(Choice("So:", calls=calls, finish_reason=STOP))["message"]["content"] == "So:"


@pytest.mark.parametrize(
    ("reason", "is_named", "name"),
    [
        (STOP, False, "tool_calls"),
        (STOP, True, "stop"),
        (LENGTH, False, "length"),
        (FinishReason.ABORT, False, "abort"),
    ],
)
def test_how_calls_end(reason: FinishReason, is_named: bool, name: str) -> None:
    body = chat_writer(is_named=is_named).response(
        [Choice(calls=[ToolCall("c", "f", "")], finish_reason=reason)], USAGE, None
    )
    assert cast(list[dict[str, Any]], body["choices"])[0]["finish_reason"] == name
    writer = chat_writer(is_named=is_named)
    writer.chunks(ChoiceDelta(0, call=CallDelta(0, id="c", name="f")))
    ((_, ended),) = deltas(writer.chunks(ChoiceDelta(0, finish_reason=reason)))
    assert ended == name
    ((_, other),) = deltas(writer.chunks(ChoiceDelta(1, finish_reason=STOP)))
    assert other == "stop"


def test_chunks_of_a_chat() -> None:
    writer = chat_writer()
    assert writer.chunks(ChoiceDelta(0)) == []
    assert writer.chunks(ChoiceDelta(1, "Hi")) == [
        {
            "id": "chatcmpl-1",
            "created": 7,
            "model": "demo",
            "object": "chat.completion.chunk",
            "choices": [{"index": 1, "delta": {"content": "Hi"}, "logprobs": None, "finish_reason": None}],
        }
    ]
    everything = ChoiceDelta(0, "So:", "hm", CallDelta(0, '{"a"', "c1", "f"), STOP)
    begun = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    assert deltas(writer.chunks(everything)) == [
        ({"reasoning_content": "hm"}, None),
        ({"content": "So:"}, None),
        ({"tool_calls": [begun]}, None),
        ({"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}, None),
        ({}, "tool_calls"),
    ]
    more = ChoiceDelta(0, call=CallDelta(1, ": 1}"))
    assert deltas(writer.chunks(more)) == [
        ({"tool_calls": [{"index": 1, "function": {"arguments": ": 1}"}}]}, None)
    ]


def test_openais_client_puts_a_stream_together() -> None:
    news = [
        ChoiceDelta(0, reasoning="hm"),
        ChoiceDelta(0, "It ", logprobs=LOGPROBS[:1]),
        ChoiceDelta(0, "is.", logprobs=LOGPROBS[1:]),
        ChoiceDelta(0, call=CallDelta(0, id="c1", name="f")),
        ChoiceDelta(0, call=CallDelta(0, '{"a":')),
        ChoiceDelta(0, call=CallDelta(0, " 1}")),
        ChoiceDelta(0, call=CallDelta(1, "{}", "c2", "g")),
        ChoiceDelta(0, finish_reason=STOP),
    ]
    writer, state = chat_writer(wants_usage=True), ChatCompletionStreamState()
    chunks = writer.first_chunks(1, USAGE)
    for one in news:
        chunks += writer.chunks(one)
    chunks += writer.last_chunks(USAGE, TIMINGS)
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate_json(orjson.dumps(chunk)))
    folded = state.get_final_completion()
    read = ChatCompletion.model_validate_json(orjson.dumps(writer.response([Choice.of(news)], USAGE, None)))
    message = folded.choices[0].message
    assert (message.content, folded.choices[0].finish_reason) == ("It is.", "tool_calls")
    assert [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()] == [
        ("c1", "f", '{"a": 1}'),
        ("c2", "g", "{}"),
    ]
    assert folded.usage == read.usage
    assert folded.choices[0].logprobs == read.choices[0].logprobs


def test_log_probabilities_of_a_chat() -> None:
    assert chat_logprobs(LOGPROBS, TEXTS) == {
        "content": [
            {
                "token": "a",
                "logprob": -0.5,
                "bytes": [97],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.5, "bytes": [97]},
                    {"token": "", "logprob": LOWEST, "bytes": []},
                ],
            },
            {
                "token": "\ufffd",
                "logprob": -1.0,
                "bytes": [0xC3],
                "top_logprobs": [{"token": "\ufffd", "logprob": -0.25, "bytes": [0xA9]}],
            },
        ],
        "refusal": None,
    }


@pytest.mark.parametrize("value", [float("-inf"), float("nan"), -1e9])
def test_what_json_cannot_say_is_the_lowest(value: float) -> None:
    body = chat_logprobs([TokenLogprobs(0, value, ())], TEXTS)
    assert json.loads(orjson.dumps(body))["content"][0]["logprob"] == LOWEST


def test_log_probabilities_of_a_chats_stream_come_once() -> None:
    writer = chat_writer()

    def written(delta: ChoiceDelta) -> list[bool]:
        chunks = writer.chunks(delta)
        return [cast(Any, chunk["choices"])[0]["logprobs"] is not None for chunk in chunks]

    assert written(ChoiceDelta(0, "a", "b", logprobs=LOGPROBS, finish_reason=STOP)) == [True, False, False]
    assert written(ChoiceDelta(0, logprobs=LOGPROBS)) == [True]
    assert written(ChoiceDelta(0, logprobs=LOGPROBS, finish_reason=STOP)) == [True]
    assert written(ChoiceDelta(0, "a")) == [False]
    assert deltas(writer.chunks(ChoiceDelta(0, logprobs=LOGPROBS))) == [({"content": ""}, None)]


def test_tokens_as_ids() -> None:
    texts = TokenTexts([b"a"], as_ids=True)
    assert chat_logprobs([TokenLogprobs(0, -1, ((5, -1),))], texts)["content"] == [
        {
            "token": "token_id:0",
            "logprob": -1,
            "bytes": [97],
            "top_logprobs": [{"token": "token_id:5", "logprob": -1, "bytes": []}],
        }
    ]
    body = CompletionLogprobs(texts).body([TokenLogprobs(0, -1, ()), TokenLogprobs(0, -2, ())])
    assert body["tokens"] == ["token_id:0"] * 2
    assert body["text_offset"] == [0, 1]


def test_a_whole_completion() -> None:
    choice = Choice("aé", finish_reason=LENGTH, logprobs=[*LOGPROBS, TokenLogprobs(2, -2.0, ())])
    body = completion_writer().response([choice, Choice(finish_reason=STOP)], USAGE, None)
    first, second = cast(list[dict[str, Any]], body["choices"])
    assert second == {"index": 1, "text": "", "logprobs": None, "finish_reason": "stop"}
    assert first == {
        "index": 0,
        "text": "aé",
        "logprobs": {
            "tokens": ["a", "\ufffd", "\ufffd"],
            "token_logprobs": [-0.5, -1.0, -2.0],
            "top_logprobs": [{"a": -0.5, "": LOWEST}, {"\ufffd": -0.25}, {"\ufffd": -2.0}],
            "text_offset": [0, 1, 1],
        },
        "finish_reason": "length",
    }
    Completion.model_validate(body)


def test_chunks_of_a_completion() -> None:
    writer = completion_writer()
    token = TokenLogprobs(0, -1, ())
    news = [
        ChoiceDelta(0, "a", logprobs=(token,)),
        ChoiceDelta(1, "a", logprobs=(token,)),
        ChoiceDelta(0),
        ChoiceDelta(0, logprobs=(TokenLogprobs(1, -1, ()),)),
        ChoiceDelta(0, "é", logprobs=(TokenLogprobs(2, -1, ()), token), finish_reason=STOP),
        ChoiceDelta(1, logprobs=(token,), finish_reason=LENGTH),
    ]
    written = [
        (
            choice["index"],
            choice["text"],
            choice["logprobs"] and choice["logprobs"]["text_offset"],
            choice["finish_reason"],
        )
        for one in news
        for chunk in writer.chunks(one)
        for choice in cast(list[dict[str, Any]], chunk["choices"])
    ]
    assert written == [
        (0, "a", [0], None),
        (1, "a", [0], None),
        (0, "", [1], None),
        (0, "é", [1, 2], None),
        (0, "", None, "stop"),
        (1, "", [1], "length"),
    ]


@pytest.mark.parametrize("make", [chat_writer, completion_writer], ids=["chat", "completion"])
def test_usage_and_timings(make: Callable[..., ChatWriter | CompletionWriter]) -> None:
    writer = make()
    timings = {
        "cache_n": 6,
        "prompt_n": 4,
        "prompt_ms": 250.0,
        "prompt_per_second": 16.0,
        "predicted_n": 4,
        "predicted_ms": 2000.0,
        "predicted_per_second": 2.0,
        "queue_ms": 500.0,
    }
    assert writer.response([], USAGE, TIMINGS)["timings"] == timings
    assert "timings" not in writer.response([], USAGE, None)
    assert writer.last_chunks(USAGE, None) == []
    (last,) = writer.last_chunks(USAGE, TIMINGS)
    assert (last["choices"], last["timings"], "usage" in last) == ([], timings, False)
    (both,) = make(wants_usage=True).last_chunks(USAGE, TIMINGS)
    assert cast(dict[str, int], both["usage"])["total_tokens"] == 14
    none = Timings(0.0, 0.0, 0.0)
    assert cast(dict[str, float], writer.response([], USAGE, none)["timings"])["predicted_per_second"] == 0.0
