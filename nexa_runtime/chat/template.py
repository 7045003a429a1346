"""Messages to the prompt that a model was trained on.

Owns the guard that keeps a user's text from turning into control tokens, and where a prompt ends;
``variables`` says what a template is given, ``sandbox`` keeps the template itself within bounds. It never
tokenizes and never sees the engine. ``serving`` calls it from worker threads.

The guard: inside every control token that a *client's* text spells out, its tools and options too, one
character that Unicode reserves for internal use is put. Whoever tokenizes the prompt drops it and leaves what
it broke up as plain text (``llama.Vocab.tokenize_guarded``); control tokens written by the template itself
stay whole.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import cast

import jinja2

from nexa_runtime.chat.budget import charge
from nexa_runtime.chat.messages import Conversation, Message, Role, Tool, ToolCall
from nexa_runtime.chat.sandbox import Sandbox, TemplateBoundsError, bounded
from nexa_runtime.chat.variables import Shape, variables
from nexa_runtime.errors import InvalidRequestError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For models without a template of their own."""

_GUARDS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Unicode's noncharacters: no text that is interchanged has them."""
_PROBED_CALL = ToolCall("call00000", "find_city", "{}")
_PROBE = Conversation(
    (
        Message(Role.USER, "Where?"),
        Message(Role.ASSISTANT, None, tool_calls=(_PROBED_CALL,)),
        Message(Role.TOOL, "Lima", tool_call_id=_PROBED_CALL.id),
    ),
    tools=(Tool("find", "Finds it."),),
)
_MAX_REASON_LENGTH = 500
_MAX_PATTERN_LENGTH = 100


class TemplateSyntaxError(ValueError):
    """A model's template is not valid Jinja."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """``text`` with ``guard`` inside every control token that came from a user."""

    text: str
    guard: str


class ChatTemplate:
    """One model's template. ``control_texts``: the texts of its control tokens."""

    def __init__(
        self, source: str, *, bos_text: str = "", eos_text: str = "", control_texts: Collection[str] = ()
    ) -> None:
        environment = Sandbox()
        environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)
        try:
            self._template = environment.compile_source(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateSyntaxError(f"line {error.lineno}: {error.message}") from None
        self._contents: dict[Shape, str | None] = {}
        self._globals = {"bos_token": bos_text, "eos_token": eos_text}
        # A lookahead finds overlapping control texts too; a text of one character cannot be broken up.
        texts = sorted((text for text in control_texts if len(text) > 1), key=len, reverse=True)
        pattern = "|".join(re.escape(text) for text in texts)
        self._control = re.compile(f"(?=(?:{pattern}))(.)", re.DOTALL) if texts else None

    def render(
        self,
        conversation: Conversation,
        *,
        reasoning_key: str = "reasoning_content",
        arguments_as_text: bool = False,
    ) -> RenderedPrompt:
        """The prompt up to where the assistant goes on. Raises ``InvalidRequestError`` if the template
        refuses.

        ``reasoning_key``: the template's name for the reasoning of earlier turns. ``arguments_as_text``: it
        wants the arguments of calls as JSON text, not as an object.
        """
        if conversation.continues and not (conversation.messages and conversation.messages[-1].content):
            raise InvalidRequestError("The last message has no content to continue.", param="messages")
        shape = Shape(reasoning_key, arguments_as_text)
        if any(message.content is None for message in conversation.messages):
            shape = replace(shape, content_with_calls=self._content_with_calls(shape))
        return self._rendered(conversation, shape)

    def _rendered(self, conversation: Conversation, shape: Shape) -> RenderedPrompt:
        texts: list[str] = []

        def keep(text: str) -> str:
            texts.append(text)
            return text

        try:
            variables(conversation, keep, shape)
            guard, end = _unused(texts, 2)
            values = variables(conversation, lambda text: self._guarded(text, guard), shape)
            if conversation.continues:
                last = cast(list[dict[str, str]], values["messages"])[-1]
                last["content"] += end
            with bounded():
                text = self._template.render({**values, **self._globals})
                charge(len(text))
        except jinja2.TemplateError as error:
            message = f"The model's chat template refuses these messages: {_short(error)}"
            raise InvalidRequestError(message, param="messages") from None
        except (
            TypeError, ValueError, ArithmeticError, LookupError, AttributeError, NameError, RuntimeError,
            AssertionError, MemoryError,
        ) as error:  # fmt: skip
            message = f"The model's chat template cannot render these messages: {_short(error)}"
            raise InvalidRequestError(message, param="messages") from None
        return RenderedPrompt(_up_to(text, end) if conversation.continues else text, guard)

    def _content_with_calls(self, shape: Shape) -> str | None:
        """None, as the client said, unless the template cannot take it or writes it out; then no text."""
        if shape not in self._contents:
            none, empty = (self._probed(replace(shape, content_with_calls=content)) for content in (None, ""))
            takes_none = _PROBED_CALL.name in none and none.count("None") <= empty.count("None")
            self._contents[shape] = None if takes_none else ""
        return self._contents[shape]

    def _probed(self, shape: Shape) -> str:
        try:
            return self._rendered(_PROBE, shape).text
        except InvalidRequestError:
            return ""

    def _guarded(self, text: str, guard: str) -> str:
        if self._control is None:
            return text
        return self._control.sub(lambda match: match[1] + guard, text)


def _unused(texts: Sequence[str], count: int) -> list[str]:
    """So many of ``_GUARDS`` that no text has."""
    unused = (guard for guard in _GUARDS if not any(guard in text for text in texts))
    found = list(islice(unused, count))
    if len(found) < count:
        raise InvalidRequestError("The messages use every character that Unicode reserves.", param="messages")
    return found


def _up_to(text: str, end: str) -> str:
    if end not in text:
        message = (
            "The model's chat template cannot continue a message: it leaves out the end of the last one."
        )
        raise InvalidRequestError(message, param="continue_final_message")
    return text[: text.rindex(end)].replace(end, "")


def _short(error: Exception) -> str:
    """What it says; a template may say anything."""
    return str(error)[:_MAX_REASON_LENGTH]


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _MAX_PATTERN_LENGTH:
        raise TemplateBoundsError(f"it formats a date by more than {_MAX_PATTERN_LENGTH} characters")
    return datetime.now().astimezone().strftime(pattern)
