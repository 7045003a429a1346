"""The output of ``/v1/responses`` on the wire: items that grow, and the events that say so.

Owns how a message, a reasoning or a call is written, whole and as events without their number. It never
decides when an item begins or ends; ``responses_writer`` does. Source: OpenAI's Responses API.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from nexa_runtime.llama import TokenLogprobs
from nexa_runtime.server.protocol.logprobs import TokenTexts, chat_logprobs

Fields = dict[str, object]
"""An event, an item, or a part of one."""


class OutputItem(Protocol):
    """An item of an output, at ``output[index]``."""

    index: int

    def body(self, status: str) -> Fields:
        """All of it so far."""

    def opened(self) -> list[Fields]:
        """The events that say that it is there."""

    def closed(self, status: str) -> list[Fields]:
        """The events that say all of it once more."""


@dataclass(frozen=True, slots=True)
class TextKind:
    """What holds text, and how the API calls the parts of it.

    ``list_name``: the item's list that has the text. ``part`` and ``text`` begin the names of events.
    """

    item_type: str
    prefix: str
    list_name: str
    part_type: str
    index_name: str
    part: str
    text: str


MESSAGE = TextKind(
    "message",
    "msg",
    "content",
    "output_text",
    "content_index",
    "response.content_part",
    "response.output_text",
)
REASONING = TextKind(
    "reasoning",
    "rs",
    "content",
    "reasoning_text",
    "content_index",
    "response.content_part",
    "response.reasoning_text",
)
SUMMARY = TextKind(
    "reasoning",
    "rs",
    "summary",
    "summary_text",
    "summary_index",
    "response.reasoning_summary_part",
    "response.reasoning_summary_text",
)


class TextItem:
    """A message or a reasoning: one part of text."""

    def __init__(self, kind: TextKind, index: int, texts: TokenTexts) -> None:
        self.kind = kind
        self.index = index
        self._token_texts = texts
        self._at: Fields = {"item_id": _new_id(kind.prefix), "output_index": index, kind.index_name: 0}
        self._texts: list[str] = []
        self._logprobs: list[object] = []

    def add(self, text: str, logprobs: Iterable[TokenLogprobs] = ()) -> Fields:
        """Append; the event that says so."""
        self._texts.append(text)
        event = {"type": f"{self.kind.text}.delta", **self._at, "delta": text}
        if self.kind is MESSAGE:
            entries = self._entries(logprobs)
            self._logprobs += entries
            event["logprobs"] = entries
        return event

    def body(self, status: str) -> Fields:
        return self._body(status, [self._part("".join(self._texts), self._logprobs)])

    def opened(self) -> list[Fields]:
        return [
            _item_event("added", self.index, self._body("in_progress", [])),
            {"type": f"{self.kind.part}.added", **self._at, "part": self._part("", [])},
        ]

    def closed(self, status: str) -> list[Fields]:
        text = "".join(self._texts)
        done = {"type": f"{self.kind.text}.done", **self._at, "text": text}
        if self.kind is MESSAGE:
            done["logprobs"] = self._logprobs
        return [
            done,
            {"type": f"{self.kind.part}.done", **self._at, "part": self._part(text, self._logprobs)},
            _item_event("done", self.index, self.body(status)),
        ]

    def _body(self, status: str, parts: list[Fields]) -> Fields:
        head: Fields = {"id": self._at["item_id"], "type": self.kind.item_type, "status": status}
        if self.kind is MESSAGE:
            return {**head, "role": "assistant", "content": parts}
        return {**head, "summary": [], self.kind.list_name: parts}

    def _part(self, text: str, logprobs: list[object]) -> Fields:
        part: Fields = {"type": self.kind.part_type, "text": text}
        if self.kind is MESSAGE:
            part |= {"annotations": [], "logprobs": logprobs}
        return part

    def _entries(self, logprobs: Iterable[TokenLogprobs]) -> list[object]:
        entries = chat_logprobs(logprobs, self._token_texts)["content"]
        assert isinstance(entries, list)
        return entries


class CallItem:
    """A call of a function. ``call_id``: what its output will name."""

    def __init__(self, index: int, call_id: str, name: str) -> None:
        self.index = index
        self._id = _new_id("fc")
        self._call = {"call_id": call_id, "name": name}
        self._arguments: list[str] = []

    def add(self, arguments: str) -> Fields:
        """Append; the event that says so."""
        self._arguments.append(arguments)
        return self._event("delta", "delta", arguments)

    def body(self, status: str) -> Fields:
        arguments = "".join(self._arguments)
        head = {"id": self._id, "type": "function_call", "status": status}
        return {**head, "arguments": arguments, **self._call}

    def opened(self) -> list[Fields]:
        return [_item_event("added", self.index, self.body("in_progress"))]

    def closed(self, status: str) -> list[Fields]:
        return [
            self._event("done", "arguments", "".join(self._arguments)),
            _item_event("done", self.index, self.body(status)),
        ]

    def _event(self, name: str, key: str, text: str) -> Fields:
        kind = f"response.function_call_arguments.{name}"
        return {"type": kind, "item_id": self._id, "output_index": self.index, key: text}


def _item_event(name: str, index: int, item: Fields) -> Fields:
    return {"type": f"response.output_item.{name}", "output_index": index, "item": item}


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(24)}"
