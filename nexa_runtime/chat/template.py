"""Messages to the prompt that a model was trained on.

Owns what a template is given, as Hugging Face defines it, and the guard that keeps a user's text from turning
into control tokens; ``sandbox`` keeps the template itself within bounds. It never tokenizes and never sees
the engine. ``serving`` calls it from worker threads.

The guard: inside every control token that a *user's* text spells out, one character that Unicode reserves for
internal use is put. Whoever tokenizes the prompt drops it and leaves what it broke up as plain text
(``llama.Vocab.tokenize_guarded``); control tokens written by the template itself stay whole.
"""

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

import jinja2

from nexa_runtime.chat.budget import charge
from nexa_runtime.chat.messages import Message, Role
from nexa_runtime.chat.sandbox import Sandbox, TemplateBoundsError, bounded
from nexa_runtime.errors import InvalidRequestError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For models without a template of their own."""

_GUARDS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Unicode's noncharacters: no text that is interchanged has them."""
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
        self._globals = {"bos_token": bos_text, "eos_token": eos_text}
        # A lookahead finds overlapping control texts too; a text of one character cannot be broken up.
        texts = sorted((text for text in control_texts if len(text) > 1), key=len, reverse=True)
        pattern = "|".join(re.escape(text) for text in texts)
        self._control = re.compile(f"(?=(?:{pattern}))(.)", re.DOTALL) if texts else None

    def render(self, messages: Iterable[Message]) -> RenderedPrompt:
        """The prompt up to where the assistant speaks. Raises ``InvalidRequestError`` if the template
        refuses.
        """
        turns = list(messages)
        guard = _unused_guard(turns)
        try:
            with bounded():
                text = self._template.render(
                    messages=[self._turn(message, guard) for message in turns],
                    add_generation_prompt=True,
                    **self._globals,
                )
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
        return RenderedPrompt(text, guard)

    def _turn(self, message: Message, guard: str) -> dict[str, object]:
        turn: dict[str, object] = {
            "role": message.role.value,
            "content": self._guarded(message.content, guard),
        }
        if message.name is not None:
            turn["name"] = self._guarded(message.name, guard)
        if message.role is Role.TOOL and message.tool_call_id is not None:
            turn["tool_call_id"] = self._guarded(message.tool_call_id, guard)
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": self._guarded(call.id, guard),
                    "type": "function",
                    "function": {
                        "name": self._guarded(call.name, guard),
                        "arguments": self._arguments(call.arguments, guard),
                    },
                }
                for call in message.tool_calls
            ]
        return turn

    def _arguments(self, text: str, guard: str) -> object:
        """Templates want arguments as an object; what is not JSON stays text.

        JSON first, then the guard: an escape in the text may stand for a control token's character.
        """
        value = _parsed(text)
        return self._guarded_value(value, guard) if isinstance(value, dict) else self._guarded(text, guard)

    def _guarded_value(self, value: object, guard: str) -> object:
        if isinstance(value, str):
            return self._guarded(value, guard)
        if isinstance(value, list):
            return [self._guarded_value(item, guard) for item in value]
        if isinstance(value, dict):
            return {
                self._guarded(key, guard): self._guarded_value(item, guard) for key, item in value.items()
            }
        return value

    def _guarded(self, text: str | None, guard: str) -> str | None:
        if text is None or self._control is None:
            return text
        return self._control.sub(lambda match: match[1] + guard, text)


def _unused_guard(messages: Iterable[Message]) -> str:
    used: set[str] = set()
    for message in messages:
        for text in (message.content, message.name, message.tool_call_id):
            used.update(text or "")
        for call in message.tool_calls:
            used.update(call.id, call.name, call.arguments)
            used.update(json.dumps(_parsed(call.arguments), ensure_ascii=False))
    for guard in _GUARDS:
        if guard not in used:
            return guard
    raise InvalidRequestError("The messages use every character that Unicode reserves.", param="messages")


def _parsed(text: str) -> object:
    """The value of a JSON text, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _short(error: Exception) -> str:
    """What it says; a template may say anything."""
    return str(error)[:_MAX_REASON_LENGTH]


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _MAX_PATTERN_LENGTH:
        raise TemplateBoundsError(f"it formats a date by more than {_MAX_PATTERN_LENGTH} characters")
    return datetime.now().astimezone().strftime(pattern)
