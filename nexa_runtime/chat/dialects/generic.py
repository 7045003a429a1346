"""A way of our own, for models whose templates know no tools.

Owns the words that explain it to a model, the form of its answers, and their parser. ``registry`` chooses it
where no family fits.

The answer is one JSON object: ``{"tool_calls": [{"name": …, "arguments": {…}}, …]}`` or
``{"response": "…"}``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from nexa_runtime.chat.dialects.base import Dialect, Parser, ReasoningTags, lark_json, lark_literal
from nexa_runtime.chat.dialects.calls import CallParser, NotACallError
from nexa_runtime.chat.dialects.json_scan import Unescaper, text_of
from nexa_runtime.chat.dialects.lark_rules import Rules, named_calls
from nexa_runtime.chat.dialects.prompts import call_list, tool_list, with_system_text
from nexa_runtime.chat.dialects.reading import Steps
from nexa_runtime.chat.dialects.reasoning import with_reasoning
from nexa_runtime.chat.dialects.string_rules import ANY
from nexa_runtime.chat.messages import Conversation, Message, Role, Tool, ToolMode

_THINK = ReasoningTags("<think>", "</think>")
"""What most models that reason write, as their templates show."""
_CALLS_KEY, _RESPONSE_KEY = "tool_calls", "response"
_NO_SYSTEM = re.compile(r"raise_exception\([^)]*[Ss]ystem")
"""A template that refuses a system's message."""
_INSTRUCTIONS = """You may call these functions:
{tools}

Answer with one JSON object and nothing else. To call functions:
{{"tool_calls": [{{"name": "NAME", "arguments": {{}}}}]}}
To answer in words:
{{"response": "WORDS"}}"""


class GenericParser(CallParser):
    """Reads the object, if the answer is one."""

    def __init__(self, tools: Sequence[Tool], *, is_constrained: bool) -> None:
        super().__init__(tools, (), is_constrained=is_constrained)
        self._has_tools = bool(tools)
        self._said: list[str] = []

    def _read(self) -> Steps[None]:
        if self._has_tools:
            yield from self._attempt("")
        yield from super()._read()

    def _block(self, trigger: str) -> Steps[None]:
        yield from self._expect("{")
        yield from self._reader.space()
        key = text_of((yield from self._json_text()))
        yield from self._expect(":")
        yield from self._reader.space()
        if key == _CALLS_KEY and (yield from self._reader.peek()) == "[":
            yield from self._calls()
            if not self._has_calls():
                raise NotACallError
        elif key == _RESPONSE_KEY:
            yield from self._response()
        else:
            raise NotACallError
        yield from self._reader.space()
        if not (yield from self._reader.literal("}")) and self._said:
            raise NotACallError
        for text in self._said:
            self._write(text)
        yield from self._reader.space()
        self._reader.taken.clear()

    def _response(self) -> Steps[None]:
        """Reads a string. Under a constraint it is content at once, else once the object is whole."""
        if (yield from self._reader.peek()) != '"':
            raise NotACallError
        unescaper = Unescaper()
        say = self._write if self._is_constrained else self._said.append
        yield from self._json(lambda text: say(unescaper.add(text)))


class Generic(Dialect):
    """One JSON object."""

    name = "generic"
    markers = (_THINK.opening, _THINK.closing)

    def __init__(self, special_texts: Mapping[str, int], template: str = "") -> None:
        super().__init__(special_texts, template)
        if _THINK.closing in template:
            self.reasoning = _THINK

    @classmethod
    def fits(cls, template: str) -> bool:
        return True

    def prepare(self, conversation: Conversation) -> Conversation:
        """Puts the tools into words, and calls and what tools said into messages that any template knows.

        The template sees no tools: what it may say of them would be another way.
        """
        conversation = replace(conversation, messages=_plain_turns(conversation.messages))
        if not conversation.tools or conversation.tool_choice.mode is ToolMode.NONE:
            return conversation
        text = _INSTRUCTIONS.format(tools=tool_list(conversation.tools))
        conversation = replace(conversation, tools=())
        if not _NO_SYSTEM.search(self.template) or conversation.messages[0].role is not Role.USER:
            return with_system_text(conversation, text)
        first, *rest = conversation.messages
        first = replace(first, content=f"{text}\n\n{first.content or ''}")
        return replace(conversation, messages=(first, *rest))

    def parser(self, tools: Sequence[Tool], *, is_reasoning: bool = False, is_constrained: bool) -> Parser:
        return with_reasoning(
            self, GenericParser(tools, is_constrained=is_constrained), is_reasoning=is_reasoning
        )

    def grammar(self, tools: Sequence[Tool], *, is_forced: bool, is_parallel: bool) -> str:
        rules = Rules()
        call = named_calls(rules, self, tools, '{"name": "', '", "arguments": ', "}")
        more = f'(", " {call})*' if is_parallel else ""
        begin, end = lark_literal(f'{{"{_CALLS_KEY}": ['), lark_literal("]}")
        calls = f"{begin} {call} {more} {end}"
        if is_forced:
            return rules.grammar(calls)
        text = rules.rule(lark_json({"type": "string"}))
        said = " ".join([lark_literal(f'{{"{_RESPONSE_KEY}": '), text, lark_literal("}")])
        thought = f"({self._thought(rules)})?" if self.reasoning else ""
        return rules.grammar(f"{thought} ({calls} | {said})")

    def _thought(self, rules: Rules) -> str:
        """A rule's text for reasoning."""
        text, closing = rules.terminal(f"/{ANY}/"), self.lark(_THINK.closing)
        inner = f"{text} {closing}"
        if _THINK.closing not in self.special_texts:
            inner = rules.rule(inner, "[lazy]")
        return rf"{self.lark(_THINK.opening)} {inner} /[ \n]*/"


def _plain_turns(messages: Sequence[Message]) -> tuple[Message, ...]:
    """What tools said becomes the user's, in one turn with what the user says next: many templates want the
    roles to alternate.
    """
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    turns: list[Message] = []
    was_result = False
    for message in messages:
        is_result = message.role is Role.TOOL
        if is_result:
            name = names.get(message.tool_call_id or "", message.name or "the function")
            message = Message(Role.USER, f"Result of {name}: {message.content or ''}")
        elif message.tool_calls:
            calls = f'{{"{_CALLS_KEY}": {call_list(message.tool_calls)}}}'
            content = f"{message.content}\n{calls}" if message.content else calls
            message = replace(message, content=content, tool_calls=())
        if was_result and message.role is Role.USER:
            message = replace(message, content=f"{turns.pop().content}\n{message.content or ''}")
        turns.append(message)
        was_result = is_result
    return tuple(turns)
