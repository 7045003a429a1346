"""Messages to the prompt that a model was trained on.

Owns which texts of a conversation are a client's, and so guarded (``guard``), and where a prompt ends;
``variables`` says what a template is given, ``sandbox`` keeps the template itself within bounds. It never
tokenizes and never sees the engine. ``serving`` calls it from worker threads.

No client's text has a ``MARK``, since ``without_marks`` is called before the dialect, which may write some.
"""

import re
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from typing import cast

import jinja2

from nexa_runtime.chat.budget import charge
from nexa_runtime.chat.dialects.base import MARK
from nexa_runtime.chat.guard import REPLACEMENT, ControlTexts, RenderedPrompt, unused_guards
from nexa_runtime.chat.messages import Conversation, Json, Message, Role, Tool, ToolCall
from nexa_runtime.chat.sandbox import Sandbox, TemplateBoundsError, bounded
from nexa_runtime.chat.variables import Shape, marked, variables
from nexa_runtime.errors import InvalidRequestError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For models without a template of their own."""

_ESCAPE = re.compile(r"\\(?:u(fdd0)|.)", re.DOTALL | re.IGNORECASE)
"""An escape in a JSON text; the group: it stands for ``MARK``."""
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


class ChatTemplate:
    """One model's template. ``control_texts``: the texts of its control tokens and markers."""

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
        self._control = ControlTexts(control_texts)

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
            guard, end = unused_guards(texts, 2, param=conversation.param)
            values = variables(conversation, lambda text: self._control.guarded(text, guard), shape)
            if conversation.continues:
                last = cast(list[dict[str, str]], values["messages"])[-1]
                last["content"] += end
            with bounded():
                text = self._template.render({**values, **self._globals})
                charge(len(text))
        except jinja2.TemplateError as error:
            message = f"The model's chat template refuses these messages: {_short(error)}"
            raise InvalidRequestError(message, param=conversation.param) from None
        except (
            TypeError, ValueError, ArithmeticError, LookupError, AttributeError, NameError, RuntimeError,
            AssertionError, MemoryError,
        ) as error:  # fmt: skip
            message = f"The model's chat template cannot render these messages: {_short(error)}"
            raise InvalidRequestError(message, param=conversation.param) from None
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


def without_marks(conversation: Conversation) -> Conversation:
    """The conversation with every ``MARK`` that a client sent replaced: behind one, a marker is a token.

    ``serving`` calls it before ``Dialect.prepare``, which may put marks of its own into messages.
    """

    def clean(text: str) -> str:
        return text.replace(MARK, REPLACEMENT)

    def some(text: str | None) -> str | None:
        return None if text is None else clean(text)

    def escaped(match: re.Match[str]) -> str:
        return match[0] if match[1] is None else f"\\u{ord(REPLACEMENT):x}"

    def call(one: ToolCall) -> ToolCall:
        arguments = clean(one.arguments)
        if "\\" in arguments:  # whoever reads the JSON would find the character that an escape stands for
            arguments = _ESCAPE.sub(escaped, arguments)
        return ToolCall(clean(one.id), clean(one.name), arguments)

    def message(one: Message) -> Message:
        return replace(
            one,
            content=some(one.content),
            name=some(one.name),
            tool_calls=tuple(map(call, one.tool_calls)),
            tool_call_id=some(one.tool_call_id),
            reasoning=some(one.reasoning),
        )

    def tool(one: Tool) -> Tool:
        parameters = cast(dict[str, Json], marked(dict(one.parameters), clean))
        return replace(one, name=clean(one.name), description=some(one.description), parameters=parameters)

    if not _has_mark(conversation):
        return conversation
    choice, options = conversation.tool_choice, conversation.template_options
    return replace(
        conversation,
        messages=tuple(map(message, conversation.messages)),
        tools=tuple(map(tool, conversation.tools)),
        tool_choice=replace(choice, name=some(choice.name)),
        template_options={
            clean(key): clean(value) if isinstance(value, str) else value for key, value in options.items()
        },
    )


def _has_mark(conversation: Conversation) -> bool:
    """Whether a text of a client may have a ``MARK``; an escape in arguments counts."""
    found = False

    def look(text: str | None) -> str:
        nonlocal found
        found = found or (text is not None and MARK in text)
        return ""

    for message in conversation.messages:
        for text in (message.content, message.name, message.tool_call_id, message.reasoning):
            look(text)
        for call in message.tool_calls:
            look(call.id)
            look(call.name)
            look(call.arguments)
            found = found or "\\ufdd0" in call.arguments.lower()
    for tool in conversation.tools:
        look(tool.name)
        look(tool.description)
        marked(dict(tool.parameters), look)
    look(conversation.tool_choice.name)
    marked(dict(conversation.template_options), look)
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
