"""DeepSeek's own markup, since V3.2: tags for each call and each of its arguments.

Owns the family's texts, their parser and their grammar. ``registry`` chooses it.
"""

import json
from collections.abc import Mapping, Sequence

from nexa_runtime.chat.dialects.base import MARK, Dialect, Parser, ReasoningTags, lark_json, lark_literal
from nexa_runtime.chat.dialects.calls import CallParser, NotACallError
from nexa_runtime.chat.dialects.free_text import TEXT, free_text, lark_regex
from nexa_runtime.chat.dialects.reading import Sink, Steps, Stops
from nexa_runtime.chat.dialects.reasoning import with_reasoning
from nexa_runtime.chat.messages import Json, Tool

_BAR = "\uff5c"
DSML = f"{_BAR}DSML{_BAR}"
"""Inside every tag; a token of its own in DeepSeek's vocabularies."""
_BLOCKS = ("function_calls", "tool_calls")
"""Around all calls: V3.2's word, V4's word."""


class DsmlParser(CallParser):
    """Makes JSON of the arguments: a tag says whether its value is text or already JSON."""

    def __init__(self, dialect: Dialect, tools: Sequence[Tool], *, is_constrained: bool) -> None:
        mark = dialect.marked(DSML)
        self._ends = {f"<{mark}{word}>": f"</{mark}{word}>" for word in _BLOCKS}
        self._invoke, self._invoke_end = f'<{mark}invoke name="', f"</{mark}invoke>"
        self._parameter, self._parameter_end = f'<{mark}parameter name="', f"</{mark}parameter>"
        super().__init__(tools, self._ends, is_constrained=is_constrained)

    def _block(self, trigger: str) -> Steps[None]:
        yield from self._expect(self._invoke)
        is_call = True
        while is_call:
            yield from self._one()
            yield from self._reader.space()
            self._begin()
            is_call = yield from self._reader.literal(self._invoke)
        yield from self._reader.literal(self._ends[trigger])

    def _one(self) -> Steps[None]:
        """Reads a call from its name on."""
        self._open((yield from self._reader.name()))
        yield from self._expect('">')
        yield from self._reader.space()
        start = "{"
        while not (yield from self._reader.literal(self._invoke_end)):
            yield from self._expect(self._parameter)
            key: list[str] = []
            yield from self._text('"', key.append)
            self._add(f"{start}{json.dumps(''.join(key), ensure_ascii=False)}: ")
            yield from self._value()
            yield from self._reader.space()
            start = ", "
        self._add("}" if start == ", " else "{}")
        self._close()

    def _value(self) -> Steps[None]:
        yield from self._expect('string="')
        if (yield from self._reader.literal('true">')):
            self._add('"')
            yield from self._text(self._parameter_end, self._add_text)
            self._add('"')
        else:
            yield from self._expect('false">')
            yield from self._reader.space()
            yield from self._json(self._add)
            yield from self._expect(self._parameter_end)

    def _add_text(self, text: str) -> None:
        if text := text.replace(MARK, ""):
            self._add(json.dumps(text, ensure_ascii=False)[1:-1])

    def _text(self, end: str, sink: Sink) -> Steps[None]:
        """Reads up to ``end``, and that."""
        if (yield from self._reader.text(Stops([end]), sink)) is None:
            raise NotACallError


class DeepSeekDsml(Dialect):
    """DeepSeek V3.2 and V4."""

    name = "deepseek_dsml"
    markers = (DSML, "<think>", "</think>")
    reasoning = ReasoningTags("<think>", "</think>")

    def __init__(self, special_texts: Mapping[str, int], template: str = "") -> None:
        super().__init__(special_texts, template)
        self._word = _BLOCKS["tool_calls>" in template]

    @classmethod
    def fits(cls, template: str) -> bool:
        return DSML in template

    def parser(self, tools: Sequence[Tool], *, is_reasoning: bool = False, is_constrained: bool) -> Parser:
        parser = DsmlParser(self, tools, is_constrained=is_constrained)
        return with_reasoning(self, parser, is_reasoning=is_reasoning)

    def grammar(self, tools: Sequence[Tool], *, is_forced: bool, is_parallel: bool) -> str:
        start = f"start: {self.lark('<' + DSML)} rest\n{TEXT}"
        if not is_forced:
            start = free_text(self, DSML, is_parallel=is_parallel)
        lines = [
            start,
            f"rest: {self.lark(f'{self._word}>{chr(10)}')} call{'+' if is_parallel else ''} "
            + self.lark(f"</{DSML}{self._word}>"),
            f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}",
            self._text_rule(),
        ]
        for index, tool in enumerate(tools):
            lines += self._call_rules(f"call_{index}", tool)
        return "\n".join(lines)

    def _text_rule(self) -> str:
        """The rule ``text``: a value as bare text, and the end of its tag."""
        end = f"{DSML}parameter>\n"
        if DSML in self.special_texts:
            return (
                f"text: VALUE {self.lark(end)}\nVALUE: /(.|\\n)*<\\// & ~/(.|\\n)*{lark_regex(DSML)}(.|\\n)*/"
            )
        return f"text[lazy]: TEXT {self.lark('</' + end)}"

    def _call_rules(self, rule: str, tool: Tool) -> list[str]:
        """A call, its arguments in the order of the schema."""
        required, properties = tool.parameters.get("required"), tool.parameters.get("properties")
        shared = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
        words: list[str] = []
        lines: list[str] = []
        for key, schema in properties.items() if isinstance(properties, dict) else ():
            name = f"{rule}_{len(words)}"
            words.append(name if isinstance(required, list) and key in required else f"{name}?")
            tag = f'<{DSML}parameter name="{key}" string='
            lines.append(
                f"{name}: {self._value(tag, {**shared, **schema} if isinstance(schema, dict) else {})}"
            )
        head, end = self.lark(f'<{DSML}invoke name="{tool.name}">\n'), self.lark(f"</{DSML}invoke>\n")
        return [f"{rule}: {head} {' '.join(words)} {end}", *lines]

    def _value(self, tag: str, schema: Mapping[str, Json]) -> str:
        """A value and its tags: as bare text, as JSON, or, where the schema leaves that open, as either."""
        end = self.lark(f"</{DSML}parameter>\n")
        kind, values = schema.get("type"), schema.get("enum")
        text, value = self.lark(f'{tag}"true">'), self.lark(f'{tag}"false">')
        if isinstance(values, list) and all(isinstance(one, str) for one in values):
            return f"{text} ({' | '.join(lark_literal(str(one)) for one in values)}) {end}"
        if kind == "string":
            return f"{text} text"
        return f"{value} {lark_json(schema)} {end}" + ("" if isinstance(kind, str) else f" | {text} text")
