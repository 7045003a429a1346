"""What a dialect is: how one family of models writes tool calls and reasoning.

Owns the terms between a dialect and those who use it: ``template`` asks it how to fill the model's template,
``constraint`` takes its grammars, ``serving`` feeds its parsers. A dialect knows no vocabulary but the texts
and ids of the tokens that it is given, and never sees a request. Its objects are made per model, its parsers
per choice of an answer.

A marker, such as ``<tool_call>``, is a token of its own in most vocabularies. Whoever turns tokens to text
writes such a token as ``MARK`` and its text, so that it cannot be taken for the same letters in plain text,
which a user may have put into the model's mouth. Where the vocabulary has no such token, the letters are the
marker.
"""

import json
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from nexa_runtime.chat.messages import Conversation, Tool

MARK = "\ufdd0"
"""Stands before the text of a token that is a marker; Unicode keeps it out of all text."""


class UnsupportedSchemaError(ValueError):
    """A tool's schema says more than a grammar of the dialect can keep to.

    ``tool``: its name; None: all tools together. ``keyword``: what of the schema it is.
    """

    def __init__(self, tool: str | None, keyword: str, reason: str) -> None:
        which = "schemas of the tools" if tool is None else f"schema of the tool {tool!r}"
        super().__init__(f"The {which} cannot be used with this model: {reason}.")
        self.tool = tool
        self.keyword = keyword


@dataclass(frozen=True, slots=True)
class CallDelta:
    """Part of a call. The first of a call has ``id`` and ``name``; ``arguments``: JSON text to append."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """Part of an assistant's message: text to append to its content or its reasoning, or part of a call."""

    content: str = ""
    reasoning: str = ""
    call: CallDelta | None = None


class Parser(ABC):
    """Reads one answer as it comes. Nothing is read twice; how the text is cut does not matter."""

    @abstractmethod
    def feed(self, text: str) -> list[ChatDelta]:
        """What ``text``, the next of the answer, adds to the message."""

    @abstractmethod
    def finish(self) -> list[ChatDelta]:
        """The answer has ended, wherever it was: what was held back."""


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """The texts between which a model reasons."""

    opening: str
    closing: str


class Dialect(ABC):
    """How one family writes. ``special_texts``: text → id of the vocabulary's tokens that are markers.

    ``template``: the model's own, for what differs between the templates of a family.
    """

    name: ClassVar[str]
    """For ``models.yaml``."""
    markers: ClassVar[tuple[str, ...]] = ()
    """Texts that a parser wants to see as ``MARK`` and text, where the vocabulary has tokens for them."""
    reasoning: ReasoningTags | None = None
    channel: ReasoningTags | None = None
    """Where reasoning is messages of the answer, without a stage of its own: what begins such a message, and
    what ends it and begins the next.
    """
    reasoning_key: ClassVar[str] = "reasoning_content"
    """What the family's templates call the reasoning of an earlier turn."""
    takes_arguments_as_text: bool = False
    """Whether the template wants a call's arguments as JSON text and not as an object."""

    def __init__(self, special_texts: Mapping[str, int], template: str = "") -> None:
        self.special_texts = special_texts
        self.template = template

    @classmethod
    @abstractmethod
    def fits(cls, template: str) -> bool:
        """Whether a model with this chat template, Jinja's source, belongs to the family."""

    def prepare(self, conversation: Conversation) -> Conversation:
        """What the template is to render: for families whose templates leave something open.

        Markers that it writes into a message itself are ``marked``: they are no client's text. Whatever
        clients wrote has no ``MARK`` any more. Raises nothing but ``InvalidRequestError``.
        """
        return conversation

    @abstractmethod
    def parser(self, tools: Sequence[Tool], *, is_reasoning: bool = False, is_constrained: bool) -> Parser:
        """A parser for one answer. ``tools``: those that it may call; with none, no call is looked for.

        ``is_reasoning``: the prompt has opened the reasoning already. ``is_constrained``: the answer follows
        this dialect's grammar, so the arguments of a call are handed on as they come; else a call is held
        back until it is known to be one, and becomes content if it is not.
        """

    @abstractmethod
    def grammar(self, tools: Sequence[Tool], *, is_forced: bool, is_parallel: bool) -> str:
        """A grammar in llguidance's Lark for answers with calls.

        ``is_forced``: at least one call and nothing else, from the first token on; else any text (reasoning
        too), in which every call that begins is a valid one. Without ``is_parallel`` there is one call at
        most.

        Raises ``UnsupportedSchemaError`` where the arguments of a forced call, or of a strict tool, could not
        be kept to their schema. Those of other calls are any values then.
        """

    def marked(self, text: str) -> str:
        """``text`` as it comes when the markers in it are tokens."""
        pattern = "|".join(re.escape(one) for one in self._tokens())
        return re.sub(pattern, lambda match: MARK + match[0], text) if pattern else text

    def visible_tokens(self) -> dict[int, str]:
        """Ids of the markers that are tokens, and what a parser is to see of each."""
        return {self.special_texts[text]: MARK + text for text in self._tokens()}

    def lark(self, text: str) -> str:
        """``text`` for a rule of a grammar: literals, and the tokens of markers by their ids."""
        words = [
            f"<[{self.special_texts[part]}]>" if part in self.special_texts else lark_literal(part)
            for part in self.split(text)
        ]
        return " ".join(words)

    def split(self, text: str) -> list[str]:
        """``text`` cut into the markers that are tokens, and what is between them."""
        pattern = "|".join(re.escape(one) for one in self._tokens())
        parts = re.split(f"({pattern})", text) if pattern else [text]
        return [part for part in parts if part]

    def _tokens(self) -> list[str]:
        """Markers that are tokens here, the longest first."""
        return sorted({one for one in self.markers if one in self.special_texts}, key=len, reverse=True)


def lark_literal(text: str) -> str:
    """A literal of a Lark grammar."""
    return json.dumps(text)


def lark_json(schema: Mapping[str, object]) -> str:
    """A JSON value of this schema, for a rule of a grammar, with the spaces that models are used to.

    ``oneOf`` is taken for ``anyOf``.
    """
    options = {
        "whitespace_flexible": False,
        "item_separator": ", ",
        "key_separator": ": ",
        "coerce_one_of": True,
    }
    return "%json " + json.dumps({**schema, "x-guidance": options})


def plain(text: str) -> str:
    """``text`` as it is shown: markers are but their letters."""
    return text.replace(MARK, "")


def new_call_id() -> str:
    """An id for a call, as OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"
